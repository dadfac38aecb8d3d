package gateway

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/cloudrest/cloudrest/firmware/internal/fetch"
	"github.com/cloudrest/cloudrest/firmware/internal/pairing"
	"github.com/cloudrest/cloudrest/firmware/internal/proxy/edge"
)

// controlFile is the UNIX socket in the state directory for the programs of whoever owns
// the machine: they have an owner's rights. The directory is 0700 and the socket 0600.
const controlFile = "control.sock"

// maxSocketPath is how long the path of a UNIX socket may be (unix(7): 108 with the NUL).
const maxSocketPath = 107

// ErrNotRunning means that no gateway uses the state directory.
var ErrNotRunning = errors.New("no cloudrestd runs with this state directory: start it first")

// controlPath is the path of the socket. A long one is reached through a file descriptor
// of its directory; release gives that back.
func controlPath(dir string) (path string, release func(), err error) {
	path = filepath.Join(dir, controlFile)
	if len(path) <= maxSocketPath {
		return path, func() {}, nil
	}
	d, err := os.Open(dir)
	if err != nil {
		return "", nil, err
	}
	return "/proc/self/fd/" + strconv.Itoa(int(d.Fd())) + "/" + controlFile, func() { d.Close() }, nil
}

// control answers the gateway's own API on the socket until ctx is done.
func (g *Gateway) control(ctx context.Context) error {
	path, release, err := controlPath(g.cfg.StateDir)
	if err != nil {
		return fmt.Errorf("open the control socket: %w", err)
	}
	defer release()
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) { // we hold the lock of the directory: it is an old one
		return fmt.Errorf("open the control socket: %w", err)
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "unix", path)
	if err != nil {
		return fmt.Errorf("open the control socket: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return fmt.Errorf("open the control socket: %w", err)
	}
	s, err := edge.New(edge.Config{Logger: g.log, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		g.own(w, pairing.Local(r))
	})})
	if err != nil {
		l.Close()
		return err
	}
	return g.serve(ctx, s, l)
}

// Control sends a request for the gateway's own API (/.cloudrest/v1/...), such as one to
// http://device/.cloudrest/v1/clients, to the gateway that runs with this state directory.
// It has the rights of an owner. It fails with ErrNotRunning if none runs. The caller
// closes the answer's body.
func Control(stateDir string, r *http.Request) (*http.Response, error) {
	return fetch.Do(r, func(ctx context.Context) (net.Conn, error) {
		path, release, err := controlPath(stateDir)
		if err == nil {
			defer release()
			var c net.Conn
			if c, err = (&net.Dialer{}).DialContext(ctx, "unix", path); err == nil {
				return c, nil
			}
		}
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
			err = ErrNotRunning
		}
		return nil, fmt.Errorf("%s: %w", filepath.Join(stateDir, controlFile), err)
	})
}
