package gateway

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/cloudrest/cloudrest/firmware/internal/statefile"
	"github.com/cloudrest/cloudrest/firmware/internal/store"
)

// resetFile keeps the generation in the state directory, apart from the store, which a
// factory reset removes.
const resetFile = "reset.json"

// ErrFactoryReset is what Run returns after a factory reset was asked for: call New and Run
// again. New finishes the reset, also after a power cut in between.
var ErrFactoryReset = errors.New("gateway: factory reset")

// generation counts the owners a device has had: every factory reset begins the next one.
// What belongs to an earlier one (pairings, bindings to accounts) no longer counts.
type generation struct {
	Number  uint32 `json:"generation"`
	Pending bool   `json:"pending"` // the old owner's data is still to be removed
}

// readGeneration reads the file; first is true where there is none yet.
func readGeneration(dir string) (g generation, first bool, err error) {
	text, err := statefile.Read(filepath.Join(dir, resetFile))
	if errors.Is(err, fs.ErrNotExist) {
		return generation{}, true, nil
	}
	if err == nil {
		err = json.Unmarshal(text, &g)
	}
	if err != nil {
		// Nobody can tell which pairings count: better an error than an old owner who is in.
		return g, false, fmt.Errorf("read the generation: %w: if the device has no owner yet, remove %s", err, filepath.Join(dir, resetFile))
	}
	return g, false, nil
}

func (g generation) write(dir string) error {
	text, err := json.Marshal(g)
	if err != nil {
		return err
	}
	return statefile.Write(filepath.Join(dir, resetFile), append(text, '\n'))
}

// beginGeneration returns the present generation. If a reset is pending, it removes the old
// owner's data first: identity, device key, LAN authority, factory certificate and label
// stay, they are the device's. fresh means that this is the generation's first start.
func beginGeneration(cfg store.Config) (g generation, fresh bool, err error) {
	g, first, err := readGeneration(cfg.Dir)
	if err != nil || !first && !g.Pending {
		return g, false, err
	}
	if g.Pending {
		if err = store.Wipe(cfg); err != nil {
			return g, false, fmt.Errorf("factory reset: %w", err)
		}
		g.Pending = false
	}
	if err = g.write(cfg.Dir); err != nil {
		return g, false, fmt.Errorf("begin a generation: %w", err)
	}
	return g, true, nil
}

// decideReset makes the next start one of a new generation.
func decideReset(dir string, present uint32) (uint32, error) {
	next := generation{Number: present + 1, Pending: true}
	if err := next.write(dir); err != nil {
		return 0, fmt.Errorf("factory reset: %w", err)
	}
	return next.Number, nil
}

// FactoryReset makes the device one without an owner: pairings, cache, journal and owner
// data go, identity and device key stay, and the generation rises. It returns once that is
// decided for good; Run then ends with ErrFactoryReset.
func (g *Gateway) FactoryReset(why string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.resetting {
		return nil
	}
	next, err := decideReset(g.cfg.StateDir, g.generation)
	if err != nil {
		return err
	}
	g.resetting = true
	g.log.Warn("factory reset: the device forgets its owner and everything of theirs", "security", eventReset, "reason", why, "generation", next)
	g.cache.PurgeAll()
	close(g.reset)
	return nil
}

// FactoryReset is the same for a state directory that no gateway is using; if one is, the
// error is statefile.ErrLocked.
func FactoryReset(dir string) error {
	unlock, err := statefile.Lock(dir)
	if err != nil {
		return err
	}
	defer unlock()
	g, _, err := readGeneration(dir)
	if err != nil {
		return err
	}
	if _, err = decideReset(dir, g.Number); err != nil {
		return err
	}
	_, _, err = beginGeneration(store.Config{Dir: dir})
	return err
}
