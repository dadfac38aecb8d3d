package sample

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"strings"
	"sync"
	"syscall"
)

// FIFO writes notifications into the gateway's named pipe, as a maker's service or a
// shell script would: one line, one write. It never waits for the gateway.
type FIFO struct {
	Path   string
	Logger *slog.Logger // nil: silent

	mu   sync.Mutex
	last string // the failure logged last; repeats are not logged
}

// Line is a Config.Notify. A line that cannot be written now (the gateway is not
// running, or its pipe is full) is dropped: the log says so when that begins and ends.
func (f *FIFO) Line(line string) {
	err := f.write(line)
	f.mu.Lock()
	defer f.mu.Unlock()
	text := ""
	if err != nil {
		text = err.Error()
	}
	if f.Logger != nil && text != f.last {
		if err != nil {
			f.Logger.Warn("notifications are dropped", "fifo", f.Path, "err", err)
		} else {
			f.Logger.Info("notifications arrive again", "fifo", f.Path)
		}
	}
	f.last = text
}

func (f *FIFO) write(line string) error {
	// Without O_NONBLOCK, opening would wait for a reader; with it the answer is ENXIO.
	p, err := os.OpenFile(f.Path, os.O_WRONLY|syscall.O_NONBLOCK, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENXIO):
		return errors.New("the gateway is not running")
	case err != nil:
		return err
	}
	defer p.Close()
	if i, err := p.Stat(); err != nil || i.Mode()&fs.ModeNamedPipe == 0 {
		return fmt.Errorf("%s is no named pipe", f.Path)
	}
	// A write of up to PIPE_BUF (4096) bytes is never mixed with another's (pipe(7)).
	_, err = p.WriteString(strings.NewReplacer("\n", " ", "\r", " ").Replace(line) + "\n")
	return err
}
