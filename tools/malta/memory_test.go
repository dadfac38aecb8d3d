//go:build linux

package malta

import (
	"context"
	"fmt"
	"strconv"
	"strings"
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
	requests = 600
	upload   = 4 * mib
	loadTime = 10 * time.Minute // at most
)

// TestMemory runs the gateway on the board in memory cgroups of 32 MB and of 64 MB, which
// it has for itself, as a router has its memory for all: idle, and under load. It must stay
// within its budget and never be killed.
func TestMemory(t *testing.T) {
	b := newBoard(t, parted(t), 128*mib)
	b.on()
	b.sh("/etc/init.d/cloudrest stop")
	p := newPhone(b, "")
	for n, size := range []int64{32 * mib, 64 * mib} {
		name := fmt.Sprintf("/sys/fs/cgroup/router%d", size/mib)
		// Without swap, which a router has not got either.
		b.sh(fmt.Sprintf("mkdir %[1]s && echo %[2]d >%[1]s/memory.max && echo %[1]s >/tmp/procd/cgroup && /etc/init.d/cloudrest start", name, size))
		st := p.up()
		if n == 0 {
			if err := p.pair("Load", ""); err != nil {
				t.Fatal(err)
			}
		}
		b.sh("sleep 10") // it settles: announcements, the first questions to the service
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
		idle := usage()
		b.note("%d MB: idle, resident %s, of it the program's own %s", size/mib, mb(idle.Resident), mb(idle.Own))

		load := memory.Standard()
		load.Base, load.Token, load.TLS = fmt.Sprintf("https://127.0.0.1:%d", b.https), p.token, trust.Client(st.Pin)
		load.Clients, load.Requests, load.Upload = 4, requests, upload
		load.Notify = func(_ context.Context, line string) error {
			_, err := b.try("echo '" + line + "' >/var/run/cloudrest/notify")
			return err
		}
		ctx, cancel := context.WithTimeout(t.Context(), loadTime)
		var loaded memory.Usage
		did, err := load.Run(ctx, func() error { loaded = usage(); return nil })
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
		b.sh("/etc/init.d/cloudrest stop")
	}
	if said := b.since(); strings.Contains(said, "panic") || strings.Contains(said, "ended with 1") {
		t.Errorf("the log:\n%s", said)
	}
}

func mb(n int64) string { return fmt.Sprintf("%.1f MB", float64(n)/1e6) }
