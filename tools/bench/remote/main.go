// Command remote measures what the path from the internet costs: processor time of relay
// and gateway together for each request that goes client, TLS, cloudrelay, tether over
// TLS, gateway, service. The measure is one plain httputil.ReverseProxy hop over TLS in
// front of the same service.
package main

import (
	"context"
	"crypto/tls"
	"flag"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/cloudrest/cloudrest/tools/bench/internal/rig"
	"github.com/cloudrest/cloudrest/tools/fleet"
)

// goal is the processor time of relay and gateway together to that of the plain hop.
const goal = 1.9

// comeWait is how long a device may take to appear at the relay.
const comeWait = 20 * time.Second

// Names of the ways; each of ours shows the relay first and the device's end second.
const (
	plainHop   = "httputil.ReverseProxy, one hop"
	realPath   = "cloudrelay + cloudrestd"
	memoryPath = "cloudrelay + gateway package, in-memory handler"
	barePath   = "cloudrelay + tether alone, in-memory handler"
)

const roleDevice = "device"

func main() {
	roles := rig.Peers()
	roles[rig.RoleEmbedded] = rig.ServeEmbedded
	roles[roleDevice] = serveDevice
	rig.Main("remote", roles, bench)
}

// row is one row of the table, and of --json.
type row struct {
	Path      string  `json:"path"`
	Micros    float64 `json:"cpu_us_per_request"` // medians
	MicrosMin float64 `json:"cpu_us_min"`
	MicrosMax float64 `json:"cpu_us_max"`
	Relay     float64 `json:"cpu_us_relay,omitempty"`
	Device    float64 `json:"cpu_us_device,omitempty"`
	Ratio     float64 `json:"ratio_to_plain_hop"`
	Rate      float64 `json:"requests_per_second"`
	RSS       []int64 `json:"rss_bytes"` // of each process
}

func bench(ctx context.Context) error {
	var l rig.Load
	flag.IntVar(&l.Requests, "n", 8000, "requests of one block")
	flag.IntVar(&l.Blocks, "blocks", 9, "blocks for each path, interleaved")
	flag.IntVar(&l.Conns, "c", 16, "connections at once, one request at a time on each")
	flag.IntVar(&l.Size, "size", 4096, "bytes of an answer's body")
	asJSON := flag.Bool("json", false, "print JSON")
	bin := flag.String("bin", "", "folder with cloudrelay and cloudrestd; default: build them now")
	flag.Parse()
	r, err := rig.New("remote", *bin)
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

// subjects starts the servers and waits until the devices have come.
func subjects(ctx context.Context, r *rig.Rig, l rig.Load) (list []*rig.Subject, err error) {
	origin, err := r.Origin(ctx, l.Size)
	if err != nil {
		return nil, err
	}
	add := func(name string, t rig.Target, servers ...*rig.Server) error {
		t.Roots = r.Roots
		d, err := rig.Connect(ctx, t, l)
		if err == nil {
			err = d.Patiently(ctx, comeWait)
		}
		if err != nil {
			return fmt.Errorf("%s: %w\n%s", name, err, servers[len(servers)-1].Said())
		}
		list = append(list, &rig.Subject{Name: name, Servers: servers, Driver: d})
		return nil
	}
	plain, err := r.ReverseProxy(ctx, origin)
	if err != nil {
		return nil, err
	}
	if err := add(plainHop, rig.Target{Addr: plain.Addr}, plain); err != nil {
		return nil, err
	}
	relay, err := r.Relay(ctx, "relay", true)
	if err != nil {
		return nil, err
	}
	through := func(id string) rig.Target {
		return rig.Target{Addr: relay.Addr, Prefix: "/d/" + id, Token: relay.Token}
	}
	g, err := r.Gateway(ctx, origin, relay, l.Conns)
	if err != nil {
		return nil, err
	}
	if err := add(realPath, through(g.ID), relay.Server, g.Server); err != nil {
		return nil, err
	}
	if g, err = r.Embedded(ctx, relay, l); err != nil {
		return nil, err
	}
	if err := add(memoryPath, through(g.ID), relay.Server, g.Server); err != nil {
		return nil, err
	}
	device, err := r.Again(ctx, "device", roleDevice, relay.URL, r.Cert, strconv.Itoa(l.Size))
	if err != nil {
		return nil, err
	}
	return list, add(barePath, through(device.Addr), relay.Server, device) // its first line is its ID
}

// serveDevice is a device of tools/fleet: the tether's code and a handler.
func serveDevice(ctx context.Context, args []string) error {
	u, err := url.Parse(args[0])
	if err != nil {
		return err
	}
	pool, err := rig.Roots(args[1])
	if err != nil {
		return err
	}
	size, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	const seed = "bench"
	f, err := fleet.New(fleet.Config{Devices: 1, Relay: u, TLS: &tls.Config{RootCAs: pool}, Seed: seed, Rate: -1,
		Handler: func(int) http.Handler { return rig.Answer(size) }})
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintln(os.Stdout, fleet.ID(seed, 0)); err != nil {
		return err
	}
	return f.Run(ctx)
}

func report(l rig.Load, subjects []*rig.Subject) *rig.Report {
	p := &rig.Report{
		Bench: "remote",
		What: fmt.Sprintf("remote path: GET of %d bytes, client - TLS - relay - TLS - device, %d kept connections, %d interleaved blocks of %d requests, medians",
			l.Size, l.Conns, l.Blocks, l.Requests),
		Head: []string{"path", "CPU us/request", "min..max", "relay", "device", "to one plain hop", "requests/s", "RSS MB"},
	}
	base := rig.Find(subjects, plainHop).Total()
	var rows []row
	for _, s := range subjects {
		cpu := s.Total()
		w := row{Path: s.Name, Micros: rig.Median(cpu), MicrosMin: slices.Min(cpu), MicrosMax: slices.Max(cpu), Ratio: rig.Ratio(cpu, base), Rate: rig.Median(s.Rate)}
		relay, device, rss := "-", "-", ""
		for i, m := range s.Memory {
			w.RSS = append(w.RSS, m.RSS)
			if i > 0 {
				rss += " + "
			}
			rss += fmt.Sprintf("%.0f", float64(m.RSS)/(1<<20))
		}
		if len(s.Micros) == 2 {
			w.Relay, w.Device = rig.Median(s.Micros[0]), rig.Median(s.Micros[1])
			relay, device = fmt.Sprintf("%.1f", w.Relay), fmt.Sprintf("%.1f", w.Device)
		}
		rows = append(rows, w)
		p.Lines = append(p.Lines, []string{w.Path, fmt.Sprintf("%.1f", w.Micros), fmt.Sprintf("%.1f..%.1f", w.MicrosMin, w.MicrosMax),
			relay, device, fmt.Sprintf("%.2f", w.Ratio), fmt.Sprintf("%.0f", w.Rate), rss})
		if s.Name == realPath {
			p.Goals = append(p.Goals, rig.AtMost("relay's and gateway's CPU per request to one plain hop's", goal, w.Ratio))
		}
	}
	p.Rows = rows
	return p
}
