// Command lan measures what the gateway costs on the LAN path: processor time per request
// over TLS, beside nginx and a plain httputil.ReverseProxy in front of the same origin;
// and the gateway as a package with the service in its own process, beside net/http's
// server.
package main

import (
	"context"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"

	"github.com/cloudrest/cloudrest/tools/bench/internal/rig"
)

// goal is the gateway's processor time to nginx's.
const goal = 1.6

func main() {
	roles := rig.Peers()
	roles[rig.RoleEmbedded] = rig.ServeEmbedded
	rig.Main("lan", roles, bench)
}

// row is one row of the table, and of --json.
type row struct {
	Server         string  `json:"server"`
	Micros         float64 `json:"cpu_us_per_request"` // medians
	MicrosMin      float64 `json:"cpu_us_min"`
	MicrosMax      float64 `json:"cpu_us_max"`
	ToNginx        float64 `json:"ratio_to_nginx,omitempty"`
	ToReverseProxy float64 `json:"ratio_to_reverseproxy"`
	Rate           float64 `json:"requests_per_second"`
	RSS            int64   `json:"rss_bytes"`
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
	r, err := rig.New("lan", *bin)
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

// subjects starts the servers and connects to them.
func subjects(ctx context.Context, r *rig.Rig, l rig.Load) (list []*rig.Subject, err error) {
	origin, err := r.Origin(ctx, l.Size)
	if err != nil {
		return nil, err
	}
	add := func(s *rig.Server, roots *x509.CertPool, err error) error {
		if err != nil {
			return err
		}
		d, err := rig.Connect(ctx, rig.Target{Addr: s.Addr, Roots: roots}, l)
		if err != nil {
			return fmt.Errorf("%s: %w", s.Name, err)
		}
		list = append(list, &rig.Subject{Name: s.Name, Servers: []*rig.Server{s}, Driver: d})
		return nil
	}
	if s, err := r.Nginx(ctx, origin); errors.Is(err, rig.ErrNoNginx) {
		fmt.Fprintln(os.Stderr, "bench lan: no comparison with nginx:", err)
	} else if err := add(s, r.Roots, err); err != nil {
		return nil, err
	}
	s, err := r.ReverseProxy(ctx, origin)
	if err := add(s, r.Roots, err); err != nil {
		return nil, err
	}
	g, err := r.Gateway(ctx, origin, nil, l.Conns)
	if err != nil {
		return nil, err
	}
	if err := add(g.Server, g.Roots, nil); err != nil {
		return nil, err
	}
	if g, err = r.Embedded(ctx, nil, l); err != nil {
		return nil, err
	}
	if err := add(g.Server, g.Roots, nil); err != nil {
		return nil, err
	}
	s, err = r.Handler(ctx, l.Size)
	return list, add(s, r.Roots, err)
}

func report(l rig.Load, subjects []*rig.Subject) *rig.Report {
	p := &rig.Report{
		Bench: "lan",
		What: fmt.Sprintf("LAN path: GET of %d bytes over TLS 1.3 (AES-128-GCM, P-256), %d kept connections, %d interleaved blocks of %d requests, medians",
			l.Size, l.Conns, l.Blocks, l.Requests),
		Head: []string{"server", "CPU us/request", "min..max", "to nginx", "to ReverseProxy", "requests/s", "RSS MB"},
	}
	total := func(name string) []float64 {
		if s := rig.Find(subjects, name); s != nil {
			return s.Total()
		}
		return nil
	}
	nginx, proxy := total("nginx"), total("httputil.ReverseProxy")
	var rows []row
	for _, s := range subjects {
		cpu := s.Total()
		w := row{Server: s.Name, Micros: rig.Median(cpu), MicrosMin: slices.Min(cpu), MicrosMax: slices.Max(cpu),
			ToNginx: rig.Ratio(cpu, nginx), ToReverseProxy: rig.Ratio(cpu, proxy), Rate: rig.Median(s.Rate), RSS: s.Memory[0].RSS}
		rows = append(rows, w)
		toNginx := "-"
		if nginx != nil {
			toNginx = fmt.Sprintf("%.2f", w.ToNginx)
		}
		p.Lines = append(p.Lines, []string{w.Server, fmt.Sprintf("%.1f", w.Micros), fmt.Sprintf("%.1f..%.1f", w.MicrosMin, w.MicrosMax),
			toNginx, fmt.Sprintf("%.2f", w.ToReverseProxy), fmt.Sprintf("%.0f", w.Rate), fmt.Sprintf("%.1f", float64(w.RSS)/(1<<20))})
		if s.Name == "cloudrestd" && nginx != nil {
			p.Goals = append(p.Goals, rig.AtMost("cloudrestd's CPU per request to nginx's", goal, w.ToNginx))
		}
	}
	p.Rows = rows
	return p
}
