// Command irrigation runs the sample maker's REST service of package sample on
// localhost, to put the gateway in front of.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/cloudrest/cloudrest/tools/sample"
)

const usage = `An irrigation controller with a REST service, as a device maker would write it: plain
HTTP on localhost. Put CloudREST in front of it:

  irrigation --listen 127.0.0.1:8080 --fifo /run/cloudrest/notify
  cloudrestd --origin http://127.0.0.1:8080 --fifo /run/cloudrest/notify

  curl http://127.0.0.1:8080/zones
  curl -X POST http://127.0.0.1:8080/zones/2/start

Options:
`

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(args []string, stdout, stderr io.Writer) int {
	f := flag.NewFlagSet("irrigation", flag.ContinueOnError)
	f.SetOutput(stderr)
	listen := f.String("listen", "127.0.0.1:8080", "`address` to listen on: host:port (port 0: any free one), or unix:///path")
	fifo := f.String("fifo", "", "named pipe of the gateway, `path`; each change is written there as a line")
	slow := f.Duration("slow", 3*time.Second, "how long GET /diagnostics takes")
	minute := f.Duration("minute", time.Minute, "how long a minute of watering lasts; shorter to try things out")
	f.Usage = func() {
		io.WriteString(f.Output(), usage)
		f.PrintDefaults()
	}
	switch err := f.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return 2
	case f.NArg() > 0:
		fmt.Fprintf(stderr, "irrigation: unexpected argument %q; see irrigation --help\n", f.Arg(0))
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	logger := slog.New(slog.NewTextHandler(stderr, nil))

	cfg := sample.Config{Slow: *slow, Minute: *minute}
	if *fifo != "" {
		cfg.Notify = (&sample.FIFO{Path: *fifo, Logger: logger}).Line
	}
	if err := serve(ctx, *listen, sample.New(cfg), stdout, logger); err != nil {
		fmt.Fprintf(stderr, "irrigation: %v\n", err)
		return 1
	}
	return 0
}

// serve runs until ctx is done. It prints the address once it can be reached.
func serve(ctx context.Context, listen string, c *sample.Controller, stdout io.Writer, logger *slog.Logger) error {
	network, address := "tcp", listen
	if path, ok := strings.CutPrefix(listen, "unix://"); ok {
		network, address = "unix", path
		// One left behind by a killed run would be in the way.
		if i, err := os.Lstat(path); err == nil && i.Mode()&os.ModeSocket != 0 {
			os.Remove(path)
		}
	}
	l, err := net.Listen(network, address)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	if network == "unix" {
		fmt.Fprintf(stdout, "listening on unix://%s\n", address)
	} else {
		fmt.Fprintf(stdout, "listening on http://%s\n", l.Addr())
	}

	// Streams (SSE) end with streams, so that they do not hold up Shutdown.
	streams, end := context.WithCancel(context.Background())
	defer end()
	srv := &http.Server{
		Handler: c, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute,
		BaseContext: func(net.Listener) context.Context { return streams },
		ErrorLog:    slog.NewLogLogger(logger.Handler(), slog.LevelWarn),
	}
	clock := make(chan error, 1)
	go func() { clock <- c.Run(ctx) }()
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		<-ctx.Done()
		end()
		grace, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		defer cancel()
		if srv.Shutdown(grace) != nil {
			srv.Close()
		}
	}()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve: %w", err)
	}
	<-stopped
	return <-clock
}
