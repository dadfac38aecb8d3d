// Command benchgate is the gateway's LAN path and nothing else: edge, proxy, admit and
// origin, for tools/bench/lan, which may not import them. It prints the address it
// listens on.
package main

import (
	"context"
	"crypto/tls"
	"flag"
	"fmt"
	"net"
	"net/http"
	_ "net/http/pprof"
	"net/url"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/cloudrest/cloudrest/firmware/internal/admit"
	"github.com/cloudrest/cloudrest/firmware/internal/origin"
	"github.com/cloudrest/cloudrest/firmware/internal/proxy"
	"github.com/cloudrest/cloudrest/firmware/internal/proxy/edge"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "benchgate:", err)
		os.Exit(1)
	}
}

func run() error {
	target := flag.String("origin", "", "URL of the origin")
	cert := flag.String("cert", "", "certificate file")
	key := flag.String("key", "", "key file")
	concurrency := flag.Int("concurrency", 16, "requests in the origin at once")
	gc := flag.Int("gc", 100, "GOGC")
	profile := flag.String("pprof", "", "address of the profiler, off by default")
	flag.Parse()
	debug.SetGCPercent(*gc)
	u, err := url.Parse(*target)
	if err != nil {
		return err
	}
	pair, err := tls.LoadX509KeyPair(*cert, *key)
	if err != nil {
		return err
	}
	client, err := origin.New(origin.Config{URL: u, MaxIdle: *concurrency})
	if err != nil {
		return err
	}
	p, err := proxy.New(proxy.Config{Origin: client, Gate: admit.New(admit.Config{Concurrency: *concurrency})})
	if err != nil {
		return err
	}
	s, err := edge.New(edge.Config{Handler: p.For(admit.LAN), TLS: &tls.Config{Certificates: []tls.Certificate{pair}}})
	if err != nil {
		return err
	}
	if *profile != "" {
		go func() { _ = http.ListenAndServe(*profile, nil) }()
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(l.Addr())
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, func() { _ = s.Close() })
	return s.Serve(l)
}
