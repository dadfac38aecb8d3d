package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/cloudrest/cloudrest/tether/settings"
)

// maxLine is how long a notification may be, in bytes with its newline: what one write
// to a pipe carries unbroken (PIPE_BUF, pipe(7)).
const maxLine = 4096

func notifyCommand(env environment) *settings.Command {
	var fifo, socket string
	return &settings.Command{
		Name: "notify", Summary: "send notifications on the device itself", Args: "[TEXT...]", MaxArgs: -1,
		Long: "Writes one line into the gateway's named pipe or UNIX socket. Without TEXT, each line of standard input is one " +
			"notification. A line is at most 4095 bytes long.",
		Samples: []settings.Sample{
			{Says: "one", Line: "cloudrest notify --fifo /run/cloudrest/notify \"tank is empty\""},
			{Says: "all lines of a program", Line: "sensor-watch | cloudrest notify --socket /run/cloudrest/notify.sock"},
		},
		Declare: func(s *settings.Set) {
			fifo, socket = "", ""
			s.Path(&fifo, "fifo", "the gateway's named pipe")
			s.Path(&socket, "notify-socket", "the gateway's UNIX socket", settings.What("PATH"))
		},
		Run: func(ctx context.Context, in *settings.Parsed, _ io.Writer) error {
			var w io.WriteCloser
			var err error
			switch {
			case (fifo == "") == (socket == ""):
				return cannot("give --fifo PATH or --notify-socket PATH, as the gateway was started with")
			case fifo != "":
				w, err = openFIFO(fifo)
			default:
				w, err = new(net.Dialer).DialContext(ctx, "unix", socket)
				if err != nil {
					err = fmt.Errorf("connect to %s: %w: is the gateway running with --notify-socket %s?", socket, err, socket)
				}
			}
			if err != nil {
				return cannot("%w", err)
			}
			lines := io.Reader(env.stdin)
			if len(in.Args) > 0 {
				lines = strings.NewReader(strings.Join(in.Args, " "))
			}
			if err := errors.Join(writeLines(w, lines), w.Close()); err != nil {
				return cannot("%w", err)
			}
			return nil
		},
	}
}

func openFIFO(path string) (*os.File, error) {
	// With O_NONBLOCK an absent reader is an error (ENXIO) instead of a wait.
	f, err := os.OpenFile(path, os.O_WRONLY|syscall.O_NONBLOCK, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENXIO):
		return nil, fmt.Errorf("open %s: the gateway does not read it: is it running with --fifo %s?", path, path)
	case err != nil:
		return nil, err
	}
	if i, err := f.Stat(); err != nil || i.Mode()&fs.ModeNamedPipe == 0 {
		f.Close()
		return nil, fmt.Errorf("open %s: it is no named pipe", path)
	}
	return f, nil
}

// writeWait is how long a full pipe is waited for.
const writeWait = 10 * time.Second

// writeLines sends each line in one write.
func writeLines(w io.Writer, lines io.Reader) error {
	in := bufio.NewScanner(lines)
	in.Buffer(nil, 1<<20)
	for n := 1; in.Scan(); n++ {
		line := strings.TrimRight(in.Text(), "\r")
		if strings.TrimSpace(line) == "" {
			continue
		}
		if len(line) >= maxLine {
			return fmt.Errorf("line %d is %d bytes long, at most %d are taken", n, len(line), maxLine-1)
		}
		if d, ok := w.(interface{ SetWriteDeadline(time.Time) error }); ok {
			d.SetWriteDeadline(time.Now().Add(writeWait)) // not for every kind of file; then the write itself fails when full
		}
		if _, err := io.WriteString(w, line+"\n"); err != nil {
			return fmt.Errorf("send line %d: %w", n, err)
		}
	}
	return in.Err()
}
