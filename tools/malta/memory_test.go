//go:build linux

package malta

import (
	"context"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cloudrest/cloudrest/tether/trust"
	"github.com/cloudrest/cloudrest/tools/memory"
)

// What the gateway may take of the memory of a small board, in bytes resident.
const (
	maxIdle   = 11 * 1000 * 1000
	maxLoaded = 16 * 1000 * 1000
)

// The load. The emulated 24Kc cannot do 100 requests in a second; it does what it can.
const (
	requests  = 400
	clients   = 4
	upload    = 4 * mib
	loadTries = 3
	loadTime  = 10 * time.Minute // for all tries
)

// TestMemory runs the gateway on the board in memory cgroups of 32 MB and of 64 MB, which
// it has for itself, as a router has its memory for all: idle, and under load. It must stay
// within its budget and never be killed.
func TestMemory(t *testing.T) {
	b := newBoard(t, parted(t), 128*mib)
	b.on()
	b.sh("ip addr add 10.0.3.15/24 dev eth1; ip link set eth1 up")
	p := newPhone(b, "")
	p.up()
	both := spread(t, b.https, b.other)
	for n, size := range []int64{32 * mib, 64 * mib} {
		name := fmt.Sprintf("/sys/fs/cgroup/router%d", size/mib)
		// What is in the cache already is counted where it was read first: not here.
		b.sh("/etc/init.d/cloudrest stop; echo 3 >/proc/sys/vm/drop_caches")
		b.sh(fmt.Sprintf("mkdir %[1]s && echo %[2]d >%[1]s/memory.max && echo %[1]s >/tmp/procd/cgroup && /etc/init.d/cloudrest start", name, size))
		st := p.up()
		if n == 0 {
			if err := p.pair("Load", ""); err != nil {
				t.Fatal(err)
			}
		}
		b.sh("sleep 10") // it settles: announcements, the first questions to the service, what is given back
		procs := b.sh("cat " + name + "/cgroup.procs")
		if pid := b.sh("cat /tmp/procd/cloudrest.pid"); procs != pid {
			t.Fatalf("in the cgroup are the processes %q, want the gateway's %s alone", procs, pid)
		}
		usage := func() (u memory.Usage) {
			t.Helper()
			u, err := memory.ParseStatus(b.sh("cat /proc/" + procs + "/status"))
			if err != nil {
				t.Fatal(err)
			}
			return u
		}
		// It has given back what the start has needed; a phone that comes makes it fetch some
		// of that again.
		fresh := usage()
		for range 3 {
			if _, err := p.do("GET", "/zones", nil, nil); err != nil {
				t.Fatal(err)
			}
		}
		b.sh("sleep 10")
		idle := usage()
		b.note("%d MB: idle, resident %s, of it the program's own %s; before anybody came %s", size/mib, mb(idle.Resident), mb(idle.Own), mb(fresh.Resident))

		load := memory.Standard()
		load.Base, load.Token, load.TLS = "https://"+both, p.token, trust.Client(st.Pin)
		load.Clients, load.Requests, load.Upload = clients, requests, upload
		load.Notify = func(_ context.Context, line string) error {
			_, err := b.try("echo '" + line + "' >/var/run/cloudrest/notify")
			return err
		}
		ctx, cancel := context.WithTimeout(t.Context(), loadTime)
		var loaded memory.Usage
		did, err := load.Run(ctx, func() error { loaded = usage(); return nil })
		// On a machine that is busy with other things the board is so slow that handshakes
		// and connections to the service run into their time limits: that is not what is tested.
		for try := 2; err != nil && try <= loadTries && ctx.Err() == nil; try++ {
			b.note("load, once more: %v", err)
			did, err = load.Run(ctx, func() error { loaded = usage(); return nil })
		}
		cancel()
		if err != nil {
			t.Fatalf("load: %v", err)
		}
		events := b.sh("cat " + name + "/memory.events")
		peak, _ := strconv.ParseInt(b.sh("cat "+name+"/memory.peak"), 10, 64)
		b.note("%d MB: %d listeners, %d requests (%.0f in a second), upload of %s: resident %s, of it own %s, peak %s; the cgroup's peak with its caches in the kernel %s; %s",
			size/mib, load.Listeners, did.Requests, float64(did.Requests)/did.Took.Seconds(), mb(did.Uploaded), mb(loaded.Resident), mb(loaded.Own), mb(loaded.Peak), mb(peak), strings.ReplaceAll(events, "\n", ", "))
		if idle.Resident > maxIdle {
			t.Errorf("%d MB, idle: %d bytes resident, at most %d", size/mib, idle.Resident, maxIdle)
		}
		if loaded.Peak > maxLoaded {
			t.Errorf("%d MB, under load: %d bytes resident at the peak, at most %d", size/mib, loaded.Peak, maxLoaded)
		}
		if !strings.Contains(events+"\n", "oom_kill 0\n") {
			t.Errorf("%d MB: the kernel killed for want of memory: %s", size/mib, events)
		}
		if again := b.sh("cat /tmp/procd/cloudrest.pid"); again != procs {
			t.Errorf("%d MB: the gateway was process %s and is %s: it has ended in between", size/mib, procs, again)
		}
	}
	if found := badLog.FindString(b.since()); found != "" {
		t.Errorf("the log has %q", found)
	}
}

// spread takes connections on an address and hands them on to the ports in turn: the
// gateway lets in at most 48 from one client, and here are more of them than addresses.
func spread(t *testing.T, ports ...int) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var group sync.WaitGroup
	hand := func(from, to net.Conn) {
		group.Go(func() {
			io.Copy(to, from)
			from.Close()
			to.Close()
		})
	}
	group.Go(func() {
		for i := 0; ; i++ {
			c, err := l.Accept()
			if err != nil {
				return
			}
			d, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", ports[i%len(ports)]))
			if err != nil {
				c.Close()
				continue
			}
			context.AfterFunc(ctx, func() { c.Close(); d.Close() })
			hand(c, d)
			hand(d, c)
		}
	})
	t.Cleanup(func() {
		l.Close()
		cancel()
		group.Wait()
	})
	return l.Addr().String()
}

func mb(n int64) string { return fmt.Sprintf("%.1f MB", float64(n)/1e6) }
