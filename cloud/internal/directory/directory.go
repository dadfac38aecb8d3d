// Package directory answers one question: through which connection is a device reached
// now. A newer connection always takes over from an older one; a late goodbye of the
// older one changes nothing. Memory serves one process; the directory of several nodes
// keeps the same promises in Redis.
package directory

import (
	"context"
	"errors"
	"sync"

	"github.com/cloudrest/cloudrest/tether"
)

// ErrNotFound means that no connection of the device is known.
var ErrNotFound = errors.New("device has no connection")

// Route names a connection.
type Route struct {
	Conn  string // the node that holds it, in the words of who claimed
	Epoch uint64 // rises with every claim of the device
}

// Directory is safe for concurrent use. Each call ends with its context.
type Directory interface {
	// Claim makes conn the connection of the device from now on, whoever had it before,
	// and returns an epoch higher than that of every earlier claim of the device.
	Claim(ctx context.Context, id tether.DeviceID, conn string) (epoch uint64, err error)
	// Release ends the claim with this epoch. A newer claim stays: then nothing happens.
	Release(ctx context.Context, id tether.DeviceID, epoch uint64) error
	// Lookup returns the newest claim, or ErrNotFound.
	Lookup(ctx context.Context, id tether.DeviceID) (Route, error)
}

// Memory is the directory of one process. The zero value is not usable; see NewMemory.
type Memory struct {
	mu     sync.RWMutex
	routes map[tether.DeviceID]Route // guarded by mu; only devices with a connection
	epoch  uint64                    // one counter for all: it outlives every entry; guarded by mu
}

// NewMemory returns an empty directory.
func NewMemory() *Memory { return &Memory{routes: map[tether.DeviceID]Route{}} }

// Claim implements Directory; it does not fail.
func (m *Memory) Claim(_ context.Context, id tether.DeviceID, conn string) (uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.epoch++
	m.routes[id] = Route{Conn: conn, Epoch: m.epoch}
	return m.epoch, nil
}

// Release implements Directory; it does not fail.
func (m *Memory) Release(_ context.Context, id tether.DeviceID, epoch uint64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.routes[id].Epoch == epoch {
		delete(m.routes, id)
	}
	return nil
}

// Lookup implements Directory.
func (m *Memory) Lookup(_ context.Context, id tether.DeviceID) (Route, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	r, ok := m.routes[id]
	if !ok {
		return Route{}, ErrNotFound
	}
	return r, nil
}
