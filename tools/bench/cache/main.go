// Command cache measures what an answer from the store costs: processor time per request over
// TLS at cloudrestd, beside nginx with proxy_cache, beside nginx and cloudrestd without a cache,
// beside cloudrestd as it is, with a service whose answers have an ETag and no lifetime and with one
// that says nothing of caches, and beside net/http's server with the answer in memory.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"

	"github.com/cloudrest/cloudrest/tools/bench/internal/rig"
)

// Goals for a hit: to nginx's hit, and to our own path without a cache; and for what is asked each
// time, to that path.
const (
	goalNginx    = 1.3
	goalUncached = 0.35
	goalAsked    = 1.15
)

// Names of rows that others are compared with.
const (
	cached   = "cloudrestd, from its cache"
	nginxHit = "nginx proxy_cache"
	asked    = "cloudrestd, validating"
	plain    = "cloudrestd, no cache fields"
	uncached = "cloudrestd --cache=off"
)

// keepAll is the maker's rule that lets every answer be kept; the requests have a token, and
// without "public" each bearer would have his own.
const keepAll = "/* ttl=1h public"

func main() { rig.Main("cache", rig.Peers(), bench) }

// row is one row of the table, and of --json.
type row struct {
	Server     string  `json:"server"`
	Micros     float64 `json:"cpu_us_per_request"` // medians
	MicrosMin  float64 `json:"cpu_us_min"`
	MicrosMax  float64 `json:"cpu_us_max"`
	ToNginx    float64 `json:"ratio_to_nginx_hit,omitempty"`
	ToAsked    float64 `json:"ratio_to_validating"`
	ToUncached float64 `json:"ratio_to_uncached"`
	Rate       float64 `json:"requests_per_second"`
	RSS        int64   `json:"rss_bytes"`
}

func bench(ctx context.Context) error {
	var l rig.Load
	flag.IntVar(&l.Requests, "n", 10000, "requests of one block")
	flag.IntVar(&l.Blocks, "blocks", 9, "blocks for each server, interleaved")
	flag.IntVar(&l.Conns, "c", 16, "connections at once, one request at a time on each")
	flag.IntVar(&l.Size, "size", 4096, "bytes of an answer's body")
	asJSON := flag.Bool("json", false, "print JSON")
	bin := flag.String("bin", "", "folder with cloudrestd; default: build it now")
	flag.Parse()
	r, err := rig.New("cache", *bin)
	if err != nil {
		return err
	}
	defer r.Close()
	subjects, err := subjects(ctx, r, l)
	if err != nil {
		return err
	}
	if err := rig.Run(ctx, l, subjects); err != nil {
		return err
	}
	return report(l, subjects).Print(*asJSON)
}

// subjects starts the servers and connects to them; the first block is not measured and
// fills the caches.
func subjects(ctx context.Context, r *rig.Rig, l rig.Load) (list []*rig.Subject, err error) {
	origin, err := r.Origin(ctx, l.Size)
	if err != nil {
		return nil, err
	}
	add := func(s *rig.Server, prefix string, roots *x509.CertPool, err error) error {
		if err != nil {
			return err
		}
		d, err := rig.Connect(ctx, rig.Target{Addr: s.Addr, Roots: roots, Prefix: prefix}, l)
		if err != nil {
			return fmt.Errorf("%s: %w", s.Name, err)
		}
		list = append(list, &rig.Subject{Name: s.Name, Servers: []*rig.Server{s}, Driver: d})
		return nil
	}
	for _, start := range []func(context.Context, *rig.Server) (*rig.Server, error){r.NginxCache, r.Nginx} {
		if s, err := start(ctx, origin); errors.Is(err, rig.ErrNoNginx) {
			fmt.Fprintln(os.Stderr, "bench cache: no comparison with nginx:", err)
		} else if err := add(s, "", r.Roots, err); err != nil {
			return nil, err
		}
	}
	for _, g := range []struct {
		name, prefix string
		options      []string
	}{{cached, "", []string{"--cache-rules", keepAll}}, {asked, "", nil}, {plain, rig.PlainPrefix, nil}, {uncached, "", []string{"--cache=off"}}} {
		gw, err := r.Gateway(ctx, origin, nil, l.Conns, g.options...)
		if err != nil {
			return nil, err
		}
		gw.Name = g.name
		if from, err := fromCache(ctx, gw); err != nil {
			return nil, fmt.Errorf("%s: %w", g.name, err)
		} else if from != (g.name == cached) {
			return nil, fmt.Errorf("%s: answered from its cache: %v", g.name, from)
		}
		if err := add(gw.Server, g.prefix, gw.Roots, nil); err != nil {
			return nil, err
		}
	}
	s, err := r.Handler(ctx, l.Size)
	return list, add(s, "", r.Roots, err)
}

// fromCache reports whether the same question is answered from the store the second time.
func fromCache(ctx context.Context, g *rig.Gateway) (hit bool, err error) {
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: g.Roots}}
	defer tr.CloseIdleConnections()
	for range 2 {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+g.Addr+"/asked-twice", nil)
		if err != nil {
			return false, err
		}
		resp, err := (&http.Client{Transport: tr}).Do(r)
		if err != nil {
			return false, err
		}
		_, err = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if err != nil {
			return false, err
		}
		hit = strings.Contains(resp.Header.Get("Cache-Status"), "; hit")
	}
	return hit, nil
}

func report(l rig.Load, subjects []*rig.Subject) *rig.Report {
	p := &rig.Report{
		Bench: "cache",
		What: fmt.Sprintf("answers from the store: GET of %d bytes over TLS 1.3 (AES-128-GCM, P-256), %d kept connections, %d interleaved blocks of %d requests, medians",
			l.Size, l.Conns, l.Blocks, l.Requests),
		Head: []string{"server", "CPU us/request", "min..max", "to nginx's hit", "to validating", "to --cache=off", "requests/s", "RSS MB"},
	}
	total := func(name string) []float64 {
		if s := rig.Find(subjects, name); s != nil {
			return s.Total()
		}
		return nil
	}
	hit, validating, off := total(nginxHit), total(asked), total(uncached)
	var rows []row
	for _, s := range subjects {
		cpu := s.Total()
		w := row{Server: s.Name, Micros: rig.Median(cpu), MicrosMin: slices.Min(cpu), MicrosMax: slices.Max(cpu),
			ToNginx: rig.Ratio(cpu, hit), ToAsked: rig.Ratio(cpu, validating), ToUncached: rig.Ratio(cpu, off), Rate: rig.Median(s.Rate), RSS: s.Memory[0].RSS}
		rows = append(rows, w)
		toNginx := "-"
		if hit != nil {
			toNginx = fmt.Sprintf("%.2f", w.ToNginx)
		}
		p.Lines = append(p.Lines, []string{w.Server, fmt.Sprintf("%.1f", w.Micros), fmt.Sprintf("%.1f..%.1f", w.MicrosMin, w.MicrosMax),
			toNginx, fmt.Sprintf("%.2f", w.ToAsked), fmt.Sprintf("%.2f", w.ToUncached), fmt.Sprintf("%.0f", w.Rate), fmt.Sprintf("%.1f", float64(w.RSS)/(1<<20))})
		if s.Name == cached {
			if hit != nil {
				p.Goals = append(p.Goals, rig.AtMost("CPU of our hit to nginx's", goalNginx, w.ToNginx))
			}
			p.Goals = append(p.Goals, rig.AtMost("CPU of our hit to cloudrestd that has each answer validated", goalUncached, w.ToAsked),
				rig.AtMost("CPU of our hit to cloudrestd without a cache", goalUncached, w.ToUncached))
		}
		if s.Name == asked || s.Name == plain {
			p.Goals = append(p.Goals, rig.AtMost("CPU of "+s.Name+", to that without a cache", goalAsked, w.ToUncached))
		}
	}
	p.Rows = rows
	return p
}
