// Command idle measures what an idle device costs at the relay: resident memory per
// device once the burst in which all of them connected has been given back. The devices
// are simulated in a process of their own (tools/fleet, the tether's real code), each with
// its own connection and key. After the burst they stay for more than one keepalive
// interval, so that what their PINGs leave behind counts too.
package main

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/cloudrest/cloudrest/tools/bench/internal/rig"
	"github.com/cloudrest/cloudrest/tools/fleet"
)

// The goals for one idle device, in KB of 1024 bytes.
const (
	goalPlain = 9
	goalTLS   = 18
)

const (
	roleFleet = "fleet"
	look      = 500 * time.Millisecond // between two looks at the relay while devices come
	spare     = 512                    // open files beside those of the devices
)

func main() {
	rig.Main("idle", map[string]rig.Role{roleFleet: serveFleet}, bench)
}

type options struct {
	devices int
	rate    float64
	hold    time.Duration
	most    time.Duration
	modes   string
}

// row is one row of the table, and of --json. Bytes, where not said otherwise.
type row struct {
	Mode    string  `json:"mode"`
	Devices int     `json:"devices"`
	Came    float64 `json:"connect_seconds"`
	CPU     float64 `json:"relay_cpu_us_per_connect"`
	Ping    float64 `json:"relay_cpu_ms_per_second_idle"`
	Before  int64   `json:"rss_before"`
	Peak    int64   `json:"rss_peak"`
	After   int64   `json:"rss_after"`
	Each    float64 `json:"rss_per_device"`
	Anon    float64 `json:"anonymous_per_device"` // without the mapped database
	Heap    float64 `json:"heap_per_device"`      // objects
	Stacks  float64 `json:"stacks_per_device"`
}

func bench(ctx context.Context) error {
	var o options
	flag.IntVar(&o.devices, "n", 10000, "devices")
	flag.Float64Var(&o.rate, "rate", 1000, "connections begun per second at most")
	flag.DurationVar(&o.hold, "hold", 35*time.Second, "how long the devices stay idle before the memory is read")
	flag.DurationVar(&o.most, "connect-within", 150*time.Second, "how long all devices together may take to connect")
	flag.StringVar(&o.modes, "modes", "plain,tls", "without TLS, with TLS")
	asJSON := flag.Bool("json", false, "print JSON")
	bin := flag.String("bin", "", "folder with cloudrelay; default: build it now")
	flag.Parse()
	if files := openFiles(); files < uint64(o.devices+spare) {
		return fmt.Errorf("%d devices need %d open files, and only %d are allowed: raise the limit (ulimit -n) or give a smaller -n", o.devices, o.devices+spare, files)
	}
	r, err := rig.New("idle", *bin)
	if err != nil {
		return err
	}
	defer r.Close()
	p := &rig.Report{
		Bench: "idle",
		What: fmt.Sprintf("relay memory per idle device: %d devices, read %v after the last one connected (KB of 1024 bytes)",
			o.devices, o.hold),
		Head: []string{"relay", "KB/device", "anonymous", "heap", "stacks", "RSS MB before", "peak", "after", "connect s", "CPU us/connect", "idle CPU"},
	}
	var rows []row
	for mode := range strings.SplitSeq(o.modes, ",") {
		w, err := measure(ctx, r, o, mode)
		if err != nil {
			return fmt.Errorf("%s: %w", mode, err)
		}
		rows = append(rows, w)
		kb := func(v float64) string { return fmt.Sprintf("%.1f", v/1024) }
		mb := func(v int64) string { return fmt.Sprintf("%.0f", float64(v)/(1<<20)) }
		name, goal := "without TLS", float64(goalPlain)
		if mode == "tls" {
			name, goal = "with TLS", goalTLS
		}
		p.Lines = append(p.Lines, []string{name, kb(w.Each), kb(w.Anon), kb(w.Heap), kb(w.Stacks), mb(w.Before), mb(w.Peak), mb(w.After),
			fmt.Sprintf("%.0f", w.Came), fmt.Sprintf("%.0f", w.CPU), fmt.Sprintf("%.1f%%", w.Ping/10)})
		p.Goals = append(p.Goals, rig.AtMost("KB of resident memory per idle device "+name, goal, w.Each/1024))
	}
	p.Rows = rows
	return p.Print(*asJSON)
}

// measure runs one relay with its fleet.
func measure(ctx context.Context, r *rig.Rig, o options, mode string) (row, error) {
	w := row{Mode: mode, Devices: o.devices}
	if mode != "plain" && mode != "tls" {
		return w, errors.New(`no such mode: want "plain" or "tls"`)
	}
	relay, err := r.Relay(ctx, "relay-"+mode, mode == "tls", "--log-level", "info", "--max-devices", strconv.Itoa(max(o.devices, 1000)))
	if err != nil {
		return w, err
	}
	defer relay.Stop()
	before, err := relay.Scrape(ctx) // also makes the metrics' own memory part of "before"
	if err != nil {
		return w, err
	}
	start := rig.Resident(relay.PID)
	w.Before = start.RSS
	cpu, err := rig.CPU(relay.PID)
	if err != nil {
		return w, err
	}
	begin := time.Now()
	devices, err := r.Again(ctx, "fleet", roleFleet, relay.URL, r.Cert, strconv.Itoa(o.devices), fmt.Sprint(o.rate))
	if err != nil {
		return w, err
	}
	defer devices.Stop()
	if err := online(ctx, relay, &w, o); err != nil {
		return w, err
	}
	w.Came = time.Since(begin).Seconds()
	connected, err := rig.CPU(relay.PID)
	if err != nil {
		return w, err
	}
	w.CPU = float64((connected - cpu).Microseconds()) / float64(o.devices)
	if err := pause(ctx, o.hold); err != nil {
		return w, err
	}
	now := rig.Resident(relay.PID)
	idle, err := rig.CPU(relay.PID)
	if err != nil {
		return w, err
	}
	w.Ping = float64((idle - connected).Milliseconds()) / o.hold.Seconds()
	after, err := relay.Scrape(ctx)
	if err != nil {
		return w, err
	}
	if n := int(after[metricOnline]); n != o.devices {
		return w, fmt.Errorf("%d devices were online at the end, want %d", n, o.devices)
	}
	each := func(v float64) float64 { return v / float64(o.devices) }
	w.After, w.Peak = now.RSS, max(w.Peak, now.RSS)
	w.Each, w.Anon = each(float64(now.RSS-start.RSS)), each(float64(now.Anon-start.Anon))
	w.Heap, w.Stacks = each(after[metricHeap]-before[metricHeap]), each(after[metricStacks]-before[metricStacks])
	return w, nil
}

// What is read of the relay's metrics.
const (
	metricOnline = "cloudrelay_devices_online"
	metricHeap   = "go_memstats_heap_alloc_bytes"
	metricStacks = "go_memstats_stack_inuse_bytes"
)

// online waits until all devices have come, and notes the most memory meanwhile.
func online(ctx context.Context, relay *rig.Relay, w *row, o options) error {
	for deadline := time.Now().Add(o.most); ; {
		m, err := relay.Scrape(ctx)
		if err != nil {
			return err
		}
		w.Peak = max(w.Peak, rig.Resident(relay.PID).RSS)
		n := int(m[metricOnline])
		if n >= o.devices {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("after %v only %d of %d devices are online", o.most, n, o.devices)
		}
		if err := pause(ctx, look); err != nil {
			return err
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// serveFleet is the devices.
func serveFleet(ctx context.Context, args []string) error {
	u, err := url.Parse(args[0])
	if err != nil {
		return err
	}
	pool, err := rig.Roots(args[1])
	if err != nil {
		return err
	}
	n, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	rate, err := strconv.ParseFloat(args[3], 64)
	if err != nil {
		return err
	}
	f, err := fleet.New(fleet.Config{Devices: n, Relay: u, TLS: &tls.Config{RootCAs: pool}, Seed: "idle", Rate: rate})
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintln(os.Stdout, "fleet"); err != nil {
		return err
	}
	return f.Run(ctx)
}
