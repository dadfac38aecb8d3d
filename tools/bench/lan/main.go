// Command lan measures what the gateway costs on the LAN path: processor time per
// request over TLS, side by side with nginx and with a plain httputil.ReverseProxy in
// front of the same origin. Blocks of requests are interleaved, so that a noisy machine
// disturbs all alike; only ratios within one run mean anything.
package main

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"text/tabwriter"
	"time"
)

// goal is the criterion: the gateway's processor time to nginx's.
const goal = 1.6

// roleVariable makes this program, run again, one of the servers instead.
const roleVariable = "CLOUDREST_BENCH_LAN"

func main() {
	switch os.Getenv(roleVariable) {
	case "origin":
		exit(serveOrigin())
	case "reverseproxy":
		exit(serveReverseProxy())
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	exit(bench(ctx))
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench lan:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

type options struct {
	requests, blocks, conns, size int
	json                          bool
	gateway                       string
	pprof                         string
	only                          string
	gc                            int
}

// gate is one server under measurement.
type gate struct {
	name string
	addr string
	pid  int

	micros []float64 // processor time per request, by block
	rate   []float64 // requests a second, by block
}

func bench(ctx context.Context) error {
	var o options
	flag.IntVar(&o.requests, "n", 20000, "requests of one block")
	flag.IntVar(&o.blocks, "blocks", 7, "blocks for each server, interleaved")
	flag.IntVar(&o.conns, "c", 16, "connections at once, one request at a time on each")
	flag.IntVar(&o.size, "size", 4096, "bytes of an answer's body")
	flag.BoolVar(&o.json, "json", false, "print JSON")
	flag.StringVar(&o.gateway, "gateway", "", "built benchgate; default: build it now with the go command")
	flag.StringVar(&o.pprof, "pprof", "", "address for the gateway's profiler")
	flag.IntVar(&o.gc, "gc", 100, "GOGC of the gateway")
	flag.StringVar(&o.only, "only", "", "comma-separated: nginx, reverseproxy, gateway")
	flag.Parse()

	dir, err := os.MkdirTemp("", "cloudrest-bench-lan-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	certFile, keyFile, roots, err := certificate(dir)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	var servers sync.WaitGroup
	defer servers.Wait()
	defer cancel()
	start := func(cmd *exec.Cmd) (addr string, err error) { return startServer(&servers, cmd) }

	self, err := os.Executable()
	if err != nil {
		return err
	}
	again := func(role string, args ...string) *exec.Cmd {
		cmd := exec.CommandContext(ctx, self, args...)
		cmd.Env = append(os.Environ(), roleVariable+"="+role)
		return cmd
	}
	originAddr, err := start(again("origin", strconv.Itoa(o.size)))
	if err != nil {
		return fmt.Errorf("start the origin: %w", err)
	}
	want := func(name string) bool {
		return o.only == "" || slices.Contains(strings.Split(o.only, ","), name)
	}
	var gates []*gate
	add := func(name string, cmd *exec.Cmd) error {
		addr, err := start(cmd)
		if err != nil {
			return fmt.Errorf("start %s: %w", name, err)
		}
		gates = append(gates, &gate{name: name, addr: addr, pid: cmd.Process.Pid})
		return nil
	}
	if want("nginx") {
		if path, err := exec.LookPath("nginx"); err != nil {
			fmt.Fprintln(os.Stderr, "bench lan: nginx is not installed, no comparison with it (make deps)")
		} else if cmd, addr, err := nginx(ctx, path, dir, originAddr, certFile, keyFile); err != nil {
			return err
		} else {
			cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
			if err := launch(&servers, cmd); err != nil {
				return fmt.Errorf("start nginx: %w", err)
			}
			gates = append(gates, &gate{name: "nginx", addr: addr, pid: cmd.Process.Pid})
		}
	}
	if want("reverseproxy") {
		if err := add("httputil.ReverseProxy", again("reverseproxy", "http://"+originAddr, certFile, keyFile)); err != nil {
			return err
		}
	}
	if want("gateway") {
		if o.gateway == "" {
			o.gateway = filepath.Join(dir, "benchgate")
			build := exec.CommandContext(ctx, "go", "build", "-o", o.gateway, "github.com/cloudrest/cloudrest/firmware/internal/proxy/benchgate")
			build.Stderr = os.Stderr
			if err := build.Run(); err != nil {
				return fmt.Errorf("build the gateway: %w", err)
			}
		}
		args := []string{"-origin", "http://" + originAddr, "-cert", certFile, "-key", keyFile, "-concurrency", strconv.Itoa(o.conns), "-gc", strconv.Itoa(o.gc)}
		if o.pprof != "" {
			args = append(args, "-pprof", o.pprof)
		}
		if err := add("gateway", exec.CommandContext(ctx, o.gateway, args...)); err != nil {
			return err
		}
	}

	drivers := make([]*driver, len(gates))
	for i, g := range gates {
		if drivers[i], err = connect(ctx, g.addr, roots, o); err != nil {
			return fmt.Errorf("connect to %s: %w", g.name, err)
		}
		defer drivers[i].close()
		if err := drivers[i].run(ctx, o.requests/4); err != nil { // warm up
			return fmt.Errorf("%s: %w", g.name, err)
		}
	}
	for range o.blocks {
		for i, g := range gates {
			before, err := cpu(g.pid)
			if err != nil {
				return err
			}
			begin := time.Now()
			if err := drivers[i].run(ctx, o.requests); err != nil {
				return fmt.Errorf("%s: %w", g.name, err)
			}
			took := time.Since(begin)
			after, err := cpu(g.pid)
			if err != nil {
				return err
			}
			g.micros = append(g.micros, float64((after-before).Microseconds())/float64(o.requests))
			g.rate = append(g.rate, float64(o.requests)/took.Seconds())
		}
	}
	return report(gates, o)
}

// result is one row of the table, and of --json.
type result struct {
	Server         string  `json:"server"`
	MicrosMedian   float64 `json:"cpu_us_per_request"`
	MicrosMin      float64 `json:"cpu_us_min"`
	MicrosMax      float64 `json:"cpu_us_max"`
	RequestsPerSec float64 `json:"requests_per_second"`
	ToNginx        float64 `json:"ratio_to_nginx,omitempty"`        // median of the ratios of each round
	ToReverseProxy float64 `json:"ratio_to_reverseproxy,omitempty"` // likewise
	RSSKB          int     `json:"rss_kb"`
}

func report(gates []*gate, o options) error {
	find := func(name string) *gate {
		for _, g := range gates {
			if g.name == name {
				return g
			}
		}
		return nil
	}
	ratio := func(g, base *gate) float64 {
		if base == nil {
			return 0
		}
		var rs []float64
		for i := range g.micros {
			rs = append(rs, g.micros[i]/base.micros[i])
		}
		return median(rs)
	}
	var rows []result
	for _, g := range gates {
		rows = append(rows, result{
			Server: g.name, MicrosMedian: median(g.micros), MicrosMin: slices.Min(g.micros), MicrosMax: slices.Max(g.micros),
			RequestsPerSec: median(g.rate), ToNginx: ratio(g, find("nginx")), ToReverseProxy: ratio(g, find("httputil.ReverseProxy")),
			RSSKB: rss(g.pid),
		})
	}
	if o.json {
		e := json.NewEncoder(os.Stdout)
		e.SetIndent("", "  ")
		return e.Encode(map[string]any{"bench": "lan", "requests": o.requests, "blocks": o.blocks, "connections": o.conns,
			"body_bytes": o.size, "cpus": runtime.NumCPU(), "goal_ratio_to_nginx": goal, "rows": rows})
	}
	fmt.Printf("LAN path: GET of %d bytes over TLS 1.3 (AES-128-GCM, P-256), %d kept connections, %d blocks of %d requests each, interleaved\n",
		o.size, o.conns, o.blocks, o.requests)
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "server\tCPU us/request\tmin..max\tto nginx\tto ReverseProxy\trequests/s\tRSS MB\t")
	for _, r := range rows {
		fmt.Fprintf(t, "%s\t%.1f\t%.1f..%.1f\t%.2f\t%.2f\t%.0f\t%.1f\t\n", r.Server, r.MicrosMedian, r.MicrosMin, r.MicrosMax,
			r.ToNginx, r.ToReverseProxy, r.RequestsPerSec, float64(r.RSSKB)/1024)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if g := find("gateway"); g != nil && find("nginx") != nil {
		word := "met"
		if ratio(g, find("nginx")) > goal {
			word = "missed"
		}
		fmt.Printf("goal: at most %.1f times nginx: %s\n", goal, word)
	}
	return nil
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	if n := len(v); n%2 == 1 {
		return v[n/2]
	} else if n > 0 {
		return (v[n/2-1] + v[n/2]) / 2
	}
	return 0
}

// startServer runs a server that prints its address first.
func startServer(servers *sync.WaitGroup, cmd *exec.Cmd) (string, error) {
	out, err := cmd.StdoutPipe()
	if err != nil {
		return "", err
	}
	cmd.Stderr = os.Stderr
	if err := launch(servers, cmd); err != nil {
		return "", err
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		return "", fmt.Errorf("it printed no address: %w", err)
	}
	return strings.TrimSpace(line), nil
}

// launch starts cmd; when its context ends it gets SIGTERM and a little time.
func launch(servers *sync.WaitGroup, cmd *exec.Cmd) error {
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 3 * time.Second
	cmd.SysProcAttr = deathSignal()
	if err := cmd.Start(); err != nil {
		return err
	}
	servers.Go(func() { _ = cmd.Wait() }) // ended by us
	return nil
}

// nginx prepares Debian's nginx as a comparable reverse proxy in a directory of its own.
func nginx(ctx context.Context, path, dir, origin, cert, key string) (*exec.Cmd, string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, "", err
	}
	addr := l.Addr().String()
	if err := l.Close(); err != nil {
		return nil, "", err
	}
	user := ""
	if os.Getuid() == 0 {
		user = "user root;\n"
	}
	conf := user + fmt.Sprintf(`daemon off;
worker_processes 1;
pid %[1]s/nginx.pid;
error_log stderr error;
events { worker_connections 1024; }
http {
	access_log off;
	server_tokens off;
	client_body_temp_path %[1]s/body;
	proxy_temp_path %[1]s/proxy;
	fastcgi_temp_path %[1]s/fastcgi;
	uwsgi_temp_path %[1]s/uwsgi;
	scgi_temp_path %[1]s/scgi;
	keepalive_requests 100000000;
	upstream origin { server %[2]s; keepalive 64; keepalive_requests 100000000; }
	server {
		listen %[3]s ssl;
		ssl_certificate %[4]s;
		ssl_certificate_key %[5]s;
		ssl_protocols TLSv1.3;
		ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256;
		location / {
			proxy_pass http://origin;
			proxy_http_version 1.1;
			proxy_set_header Connection "";
			proxy_set_header Host $http_host;
			proxy_set_header X-Forwarded-For $remote_addr;
			proxy_set_header X-Forwarded-Proto https;
			proxy_set_header X-Forwarded-Host $http_host;
			proxy_set_header X-Cloudrest-Id $request_id;
			add_header X-Cloudrest-Id $request_id;
		}
	}
}
`, dir, origin, addr, cert, key)
	file := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
		return nil, "", err
	}
	return exec.CommandContext(ctx, path, "-c", file, "-p", dir, "-e", "stderr"), addr, nil
}

// serveOrigin answers every request with the same body from memory.
func serveOrigin() error {
	size, err := strconv.Atoi(os.Args[1])
	if err != nil {
		return err
	}
	body := []byte(strings.Repeat("0123456789abcdef", size/16+1))[:size]
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(l.Addr())
	return http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		h := w.Header()
		h.Set("Content-Type", "application/json")
		h.Set("Content-Length", strconv.Itoa(size))
		h.Set("Etag", `"0123456789"`)
		_, _ = w.Write(body)
	}))
}

// serveReverseProxy is the peer: what a few lines of Go give.
func serveReverseProxy() error {
	target, err := url.Parse(os.Args[1])
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(l.Addr())
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConnsPerHost = 64
	p := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			r.SetXForwarded()
		},
		Transport: transport,
	}
	return http.ServeTLS(l, p, os.Args[2], os.Args[3])
}

// certificate writes a self-signed P-256 certificate for the loopback address.
func certificate(dir string) (certFile, keyFile string, roots *x509.CertPool, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", "", nil, err
	}
	t := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "bench"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, &key.PublicKey, key)
	if err != nil {
		return "", "", nil, err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return "", "", nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return "", "", nil, err
	}
	roots = x509.NewCertPool()
	roots.AddCert(cert)
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for file, b := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: der}, keyFile: {Type: "PRIVATE KEY", Bytes: pkcs8}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(b), 0o600); err != nil {
			return "", "", nil, err
		}
	}
	return certFile, keyFile, roots, nil
}

// driver keeps connections open and asks on all of them at once.
type driver struct {
	conns []*tls.Conn
	in    []*bufio.Reader
	ask   []byte
	size  int
}

func connect(ctx context.Context, addr string, roots *x509.CertPool, o options) (*driver, error) {
	d := &driver{size: o.size}
	d.ask = []byte("GET /api/v1/zones?since=17 HTTP/1.1\r\nHost: " + addr + "\r\nUser-Agent: bench/1\r\nAccept: application/json\r\n" +
		"Accept-Language: en\r\nAuthorization: Bearer 0123456789abcdef0123456789abcdef\r\n\r\n")
	dialer := &tls.Dialer{Config: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13, NextProtos: []string{"http/1.1"}}}
	deadline := time.Now().Add(10 * time.Second)
	for len(d.conns) < o.conns {
		c, err := dialer.DialContext(ctx, "tcp", addr)
		if err != nil {
			if len(d.conns) > 0 || time.Now().After(deadline) || ctx.Err() != nil {
				return nil, err
			}
			time.Sleep(20 * time.Millisecond) // it is starting
			continue
		}
		tc := c.(*tls.Conn)
		if s := tc.ConnectionState(); s.CipherSuite != tls.TLS_AES_128_GCM_SHA256 {
			return nil, fmt.Errorf("cipher suite %s, want the same for all: TLS_AES_128_GCM_SHA256", tls.CipherSuiteName(s.CipherSuite))
		}
		d.conns = append(d.conns, tc)
		d.in = append(d.in, bufio.NewReaderSize(tc, 16<<10))
	}
	return d, nil
}

func (d *driver) close() {
	for _, c := range d.conns {
		_ = c.Close()
	}
}

// run asks n times in all.
func (d *driver) run(ctx context.Context, n int) error {
	var left atomic.Int64
	left.Store(int64(n))
	errs := make([]error, len(d.conns))
	var wg sync.WaitGroup
	for i := range d.conns {
		wg.Go(func() {
			for left.Add(-1) >= 0 && ctx.Err() == nil && errs[i] == nil {
				errs[i] = d.one(i)
			}
		})
	}
	wg.Wait()
	return errors.Join(append(errs, ctx.Err())...)
}

func (d *driver) one(i int) error {
	if _, err := d.conns[i].Write(d.ask); err != nil {
		return err
	}
	resp, err := http.ReadResponse(d.in[i], nil)
	if err != nil {
		return err
	}
	n, err := io.Copy(io.Discard, resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK || n != int64(d.size) {
		return fmt.Errorf("status %d with %d bytes, want 200 with %d", resp.StatusCode, n, d.size)
	}
	return nil
}
