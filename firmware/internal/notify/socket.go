package notify

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// idleLimit is after how long a silence a connection is closed, so that forgotten ones do not fill the bound.
const idleLimit = 5 * time.Minute

// probeTime is for the question whether somebody else listens on the path.
const probeTime = time.Second

// acceptRetry is the wait after a connection could not be accepted.
const acceptRetry = time.Second

var errIdle = errors.New("connection idle")

// socket listens until ctx is done or something is wrong with it.
func (n *Notifier) socket(ctx, hand context.Context) error {
	l, err := n.listen(ctx, n.cfg.Socket)
	if err != nil {
		return fmt.Errorf("open the socket: %w", err)
	}
	n.note("socket", nil)
	mine, err := os.Lstat(n.cfg.Socket)
	if err != nil {
		l.Close()
		return fmt.Errorf("look at the socket: %w", err)
	}
	// A connection ends with the listener, in whatever way that ends.
	ctx, cancel := context.WithCancel(ctx)
	var conns sync.WaitGroup
	defer conns.Wait()
	defer cancel()
	defer l.Close()
	defer context.AfterFunc(ctx, func() { l.SetDeadline(time.Unix(1, 0)) })()
	places := make(chan struct{}, n.cfg.Connections)
	for {
		// Those that find no place wait in the kernel's backlog, and what they write too.
		select {
		case places <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		conn, err := n.accept(ctx, l, mine)
		if err != nil || conn == nil {
			return err
		}
		n.connections.Add(1)
		conns.Go(func() {
			defer func() {
				conn.Close()
				n.connections.Add(-1)
				<-places
			}()
			n.logPeer(conn)
			err := n.readLines(ctx, hand, conn, func(last time.Time) error {
				if time.Since(last) >= idleLimit {
					return errIdle
				}
				return nil
			})
			if err != nil {
				n.log.Debug("notification connection ended", "err", err)
			}
		})
	}
}

// accept waits for a connection; it is nil when ctx is done. It notices when the path is not ours any more.
func (n *Notifier) accept(ctx context.Context, l *net.UnixListener, mine fs.FileInfo) (*net.UnixConn, error) {
	for ctx.Err() == nil {
		_ = l.SetDeadline(time.Now().Add(n.lookEvery))
		if ctx.Err() != nil {
			break // its deadline was overwritten
		}
		conn, err := l.AcceptUnix()
		switch {
		case err == nil:
			n.note("socket", nil)
			return conn, nil
		case ctx.Err() != nil:
		case errors.Is(err, os.ErrDeadlineExceeded):
			if fi, err := os.Lstat(n.cfg.Socket); err != nil || !os.SameFile(fi, mine) {
				l.SetUnlinkOnClose(false) // it would remove what is there now
				return nil, errReplaced
			}
		case errors.Is(err, net.ErrClosed):
			return nil, fmt.Errorf("accept: %w", err)
		default: // no more files, most likely: those that are connected go on
			n.note("socket", fmt.Errorf("accept: %w", err))
			select {
			case <-ctx.Done():
			case <-time.After(acceptRetry):
			}
			continue
		}
		n.note("socket", nil)
	}
	return nil, nil
}

// listen makes the socket at path. One that is left over from an earlier start is replaced; one that is being
// listened on is not.
func (n *Notifier) listen(ctx context.Context, path string) (*net.UnixListener, error) {
	if err := n.prepare(path, fs.ModeSocket); err != nil {
		return nil, err
	}
	if fi, err := os.Lstat(path); err == nil {
		if err := acceptable(path, fi, fs.ModeSocket); err != nil {
			return nil, err
		}
		if c, err := net.DialTimeout("unix", path, probeTime); err == nil {
			c.Close()
			return nil, fmt.Errorf("%w: another process listens on %s", ErrUnsafe, path)
		}
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	err = os.Chmod(path, n.cfg.SockMode)
	if err == nil && n.cfg.Group > 0 {
		err = os.Lchown(path, -1, n.cfg.Group)
	}
	if err != nil {
		l.Close()
		return nil, err
	}
	return l.(*net.UnixListener), nil
}

// logPeer says who writes (SO_PEERCRED, unix(7)).
func (n *Notifier) logPeer(conn *net.UnixConn) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		if c, err := syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED); err == nil {
			n.log.Debug("notification connection", "pid", c.Pid, "uid", c.Uid)
		}
	})
}
