// Command cachetests runs the public conformance suite for HTTP caches (http-tests/cache-tests)
// against our cache and prints the score. The suite is no part of this repository: fetch it
// with git or npm, install what it needs with npm, and name its folder.
//
//	git clone https://github.com/http-tests/cache-tests && npm --prefix cache-tests install
//	go run ./tools/cachetests -suite cache-tests
//
// The suite's origin server runs behind the cache, its client in front, both in node. The
// score counts as the suite's web site does: a test whose dependency fails does not pass.
//
// With -path the suite runs through the daemons that users run: through cloudrestd, or through
// cloudrelay, the tether and cloudrestd. They are built from the present source and keep what
// they keep in a temporary directory.
//
//	go run ./tools/cachetests -suite cache-tests -path gateway,relay -runs 3
package main

import (
	"bufio"
	"cmp"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cloudrest/cloudrest/tether/httpcache"
	"github.com/cloudrest/cloudrest/tether/httpcache/shared"
)

//go:embed client.mjs
var client string

// startTime bounds the start of the suite's server, runTime one run of its client.
const (
	startTime = 20 * time.Second
	runTime   = 10 * time.Minute
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "cachetests:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	suite := flag.String("suite", "", "folder of the suite; required")
	policy := flag.String("policy", "gateway,relay", "whose policy the cache has: gateway, relay, or none for no cache at all")
	base := flag.String("base", "", "URL of a server that is tested instead of a cache in this process; it must have the suite's server, on -port, behind it")
	port := flag.Int("port", 0, "port of the suite's server on loopback; default: any")
	path := flag.String("path", "", "through the built daemons instead of a cache in this process: gateway, relay, or both with a comma")
	var options []string
	flag.Func("gateway", "with -path: one more option for cloudrestd, such as --cache=off; repeated", func(s string) error { options = append(options, s); return nil })
	verbose := flag.Bool("v", false, "with -path: show what the daemons log")
	id := flag.String("id", "", "run only this test and show its messages")
	runs := flag.Int("runs", 1, "how often")
	asJSON := flag.Bool("json", false, "print JSON")
	flag.Parse()
	if *suite == "" {
		return errors.New("the folder of the suite is missing: -suite")
	}
	if _, err := os.Stat(filepath.Join(*suite, "test-engine", "client", "runner.mjs")); err != nil {
		return fmt.Errorf("%s is not the suite: %w", *suite, err)
	}
	origin, end, err := startOrigin(ctx, *suite, *port)
	if err != nil {
		return err
	}
	defer end()
	bin, err := os.MkdirTemp("", "cloudrest-cachetests-bin-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(bin)
	logs := io.Discard
	if *verbose {
		logs = os.Stderr
	}
	policies := strings.Split(*policy, ",")
	switch {
	case *base != "":
		policies = []string{*base}
	case *path != "":
		policies = strings.Split(*path, ",")
	}
	for range *runs {
		for _, p := range policies {
			target, ca, stop := *base, "", func() {}
			switch {
			case target != "":
			case *path != "":
				d, err := newDaemons(bin, logs, options)
				if err != nil {
					return err
				}
				defer d.close()
				if target, ca, err = d.start(ctx, p, origin); err != nil {
					return err
				}
				stop = d.close
			default:
				if target, stop, err = serve(p, origin); err != nil {
					return err
				}
				defer stop()
			}
			list, err := runClient(ctx, *suite, target, ca, *id)
			stop()
			if err != nil {
				return err
			}
			if err := report(p, list, *asJSON); err != nil {
				return err
			}
		}
	}
	return nil
}

// startOrigin starts the suite's server.
func startOrigin(ctx context.Context, suite string, port int) (*url.URL, func(), error) {
	if port == 0 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, nil, err
		}
		port = l.Addr().(*net.TCPAddr).Port
		l.Close()
	}
	cmd := exec.CommandContext(ctx, "node", "--no-warnings", "test-engine/server/server.mjs")
	cmd.Dir = suite
	cmd.Env = append(os.Environ(), "npm_config_protocol=http", "npm_config_port="+strconv.Itoa(port), "npm_config_pidfile="+os.DevNull)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, nil, fmt.Errorf("start the suite's server: %w", err)
	}
	end := func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }
	ready := make(chan bool, 1)
	go func() {
		s := bufio.NewScanner(out)
		for s.Scan() {
			if strings.HasPrefix(s.Text(), "Listening") {
				ready <- true
			}
		}
		close(ready)
	}()
	select {
	case ok := <-ready:
		if !ok {
			end()
			return nil, nil, errors.New("the suite's server ended at once")
		}
	case <-time.After(startTime):
		end()
		return nil, nil, errors.New("the suite's server does not get ready")
	}
	return &url.URL{Scheme: "http", Host: net.JoinHostPort("127.0.0.1", strconv.Itoa(port))}, end, nil
}

// serve puts a cache with that policy in front of the origin.
func serve(policy string, origin *url.URL) (target string, stop func(), err error) {
	var conf shared.Config
	switch policy {
	case "gateway":
		conf = shared.Gateway()
	case "relay":
		conf = shared.Relay()
		// What the maker of a device says who wants answers while it is offline.
		rule, err := httpcache.ParseRule("/* stale=1m")
		if err != nil {
			return "", nil, err
		}
		conf.Rules = []httpcache.Rule{rule}
	case "none":
	default:
		return "", nil, fmt.Errorf("policy %q, want gateway, relay or none", policy)
	}
	var h http.Handler = &httputil.ReverseProxy{
		Rewrite:       func(r *httputil.ProxyRequest) { r.SetURL(origin); r.Out.Host = r.In.Host },
		FlushInterval: -1, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0), // some tests want failures
	}
	if policy != "none" {
		c, err := shared.New(conf)
		if err != nil {
			return "", nil, err
		}
		stop = func() { _ = c.Close() }
		h = c.Handler(h, nil)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	s := &http.Server{Handler: h, ReadHeaderTimeout: startTime}
	go s.Serve(l)
	closeCache := stop
	return "http://" + l.Addr().String(), func() {
		_ = s.Close()
		if closeCache != nil {
			closeCache()
		}
	}, nil
}

// test is one test with its outcome.
type test struct {
	ID      string `json:"id"`
	Kind    string `json:"kind"` // required, optimal, check
	CDN     bool   `json:"cdn"`
	Outcome string `json:"outcome"` // pass, fail, optional_fail, setup_fail, dependency_fail, yes, no ...
	Message string `json:"message,omitempty"`
}

// runClient runs the suite's client. ca is a PEM file of who certifies the target, or "".
func runClient(ctx context.Context, suite, target, ca, id string) (list []test, err error) {
	ctx, cancel := context.WithTimeout(ctx, runTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, "node", "--no-warnings", "--input-type=module", "-")
	cmd.Dir = suite
	cmd.Stdin = strings.NewReader(client)
	cmd.Env = append(os.Environ(), "CACHETESTS_BASE="+target, "CACHETESTS_ID="+id, "NODE_EXTRA_CA_CERTS="+ca)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("run the suite's client: %w", err)
	}
	if id != "" {
		fmt.Printf("%s\n", out)
		return nil, nil
	}
	i := strings.LastIndex(strings.TrimSpace(string(out)), "\n") + 1
	if err := json.Unmarshal(out[i:], &list); err != nil {
		return nil, fmt.Errorf("read the suite's results: %w", err)
	}
	return list, nil
}

// score is what one group of tests came to.
type score struct {
	Passed int    `json:"passed"`
	Of     int    `json:"of"`
	Missed []test `json:"missed"`
}

func report(name string, list []test, asJSON bool) error {
	if list == nil {
		return nil
	}
	scores := map[string]*score{}
	for _, t := range list {
		if t.Kind == "check" {
			continue // the suite only asks; no answer is better
		}
		group := t.Kind
		if t.CDN {
			group += " for a CDN"
		}
		s := scores[group]
		if s == nil {
			s = &score{}
			scores[group] = s
		}
		s.Of++
		if t.Outcome == "pass" {
			s.Passed++
		} else {
			s.Missed = append(s.Missed, t)
		}
	}
	if asJSON {
		return json.NewEncoder(os.Stdout).Encode(map[string]any{"cache": name, "scores": scores})
	}
	for _, group := range []string{"required", "optimal", "required for a CDN", "optimal for a CDN"} {
		s := scores[group]
		if s == nil || name == "gateway" && strings.HasSuffix(group, "CDN") {
			continue // a gateway is none: it leaves CDN-Cache-Control to the relay
		}
		fmt.Printf("%-8s %-18s %3d of %3d\n", name, group, s.Passed, s.Of)
		slices.SortFunc(s.Missed, func(a, b test) int { return cmp.Compare(a.ID, b.ID) })
		for _, t := range s.Missed {
			fmt.Printf("           %-16s %s: %s\n", t.Outcome, t.ID, t.Message)
		}
	}
	return nil
}
