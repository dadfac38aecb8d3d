package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cloudrest/cloudrest/firmware/gateway"
	"github.com/cloudrest/cloudrest/tether"
	"github.com/cloudrest/cloudrest/tether/settings"
	"github.com/cloudrest/cloudrest/tools/sample"
)

// cachingGarden is the sample behind the real gateway; its pin, with an owner's token, is in the
// file of that name.
func cachingGarden(t *testing.T, conf gateway.Config) (g *gateway.Gateway, m *remote, pinsFile string) {
	t.Helper()
	dir := t.TempDir()
	conf.StateDir, conf.HTTPS, conf.Name = filepath.Join(dir, "state"), "127.0.0.1:0", sample.Name
	if conf.OriginHandler == nil {
		conf.OriginHandler = sample.New(sample.Config{Slow: 20 * time.Millisecond})
	}
	g, err := gateway.New(conf)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- g.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run = %v", err)
		}
	})
	<-g.Ready()
	base, err := url.Parse(strings.TrimSuffix(g.URL(), "/"))
	if err != nil {
		t.Fatal(err)
	}
	e := pin{ID: g.ID(), Name: sample.Name, Pin: g.Fingerprint(), URL: g.URL(), Since: time.Now().UTC().Truncate(time.Second)}
	var got struct{ Token string }
	if err := lanRemote(base, e).call(ctx, http.MethodPost, tether.OwnPrefix+"v1/pair", `{"name":"laptop"}`, &got); err != nil {
		t.Fatal(err) // a new device's window is open
	}
	e.Token, pinsFile = got.Token, filepath.Join(dir, "pins.json")
	p, err := openPins(pinsFile)
	if err == nil {
		err = p.put(e)
	}
	if err != nil {
		t.Fatal(err)
	}
	m = lanRemote(base, e)
	t.Cleanup(m.client.CloseIdleConnections)
	return g, m, pinsFile
}

func TestCacheCommand(t *testing.T) {
	g, m, pinsFile := cachingGarden(t, gateway.Config{CacheRules: []string{"/zones* ttl=1h"}})
	run := func(args ...string) result {
		return cloudrest(t, environment{}, append([]string{"cache", g.ID().Short(), "--pins", pinsFile}, args...)...)
	}
	run().check(t, 0, "0 answers in 0 KiB of 4MiB; 0 hits", "")
	for _, path := range []string{sample.WeatherPath, "/echo", "/log/none", "/watering/log?days=1"} {
		_ = m.call(t.Context(), http.MethodGet, path, "", nil) // no rule is about them
	}
	for range 3 {
		if err := m.call(t.Context(), http.MethodGet, "/program", "", nil); err != nil {
			t.Fatal(err)
		}
	}
	r := run()
	r.check(t, 0, "PATH", "")
	if want := "client laptop ("; !strings.Contains(r.out, want) || !strings.Contains(r.out, "/program ") || !strings.Contains(r.out, "everybody") {
		t.Errorf("table:\n%swant /program for %s…), and the weather for everybody", r.out, want)
	}
	var list struct {
		Entries int
		Kept    []struct{ Path string }
	}
	if err := json.Unmarshal([]byte(run("--json", "--limit", "1").out), &list); err != nil || len(list.Kept) != 1 || list.Kept[0].Path != "/program" || list.Entries < 2 {
		t.Errorf("--json --limit 1 = %+v, %v, want /program and how many there are", list, err)
	}
	run("--limit", "1").check(t, 0, "are not listed)", "")
	run("/program").check(t, settings.ExitUsage, "", "--purge")
	run("/program", "--purge").check(t, 0, "1 stored answers removed", "")
	run("program", "--purge").check(t, exitStatus, "", "begins with /")
	run("--purge", "--json").check(t, 0, `{"removed":`, "")
	run().check(t, 0, "0 answers", "")

	// Who is not paired sees nothing.
	p, err := openPins(pinsFile)
	if err != nil {
		t.Fatal(err)
	}
	e := p.find(string(g.ID()))[0]
	e.Token = ""
	if err := errors.Join(p.remove(e.ID), p.put(e)); err != nil {
		t.Fatal(err)
	}
	run().check(t, exitStatus, "", "this device answers paired clients only")
}

func TestCacheCommandThroughRelay(t *testing.T) {
	var asked []string
	relay := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.Method+" "+r.RequestURI+" "+r.Header.Get("X-CloudREST-Token"))
		fmt.Fprint(w, `{"state":"on","entries":1,"limit":65536,"kept":[{"path":"/a\u001b[2J","status":404,"for":"credentials","body_bytes":2048,"age":75.04,"fresh":-3.2,"hits":7}]}`)
	}))
	defer relay.Close()
	r := cloudrest(t, environment{}, "cache", string(gardenID), "--relay", relay.URL, "--token", "crt_x")
	for _, want := range []string{"/a?[2J [404]", "1m15s", "stale for 3.2s", "2KiB", "credentials"} {
		r.check(t, 0, want, "")
	}
	cloudrest(t, environment{}, "cache", string(gardenID), "/zones*", "--purge", "--relay", relay.URL, "--token", "crt_x").check(t, 0, "removed", "")
	base := "/d/" + string(gardenID) + tether.OwnPrefix + "v1/cache?"
	if got, want := strings.Join(asked, "\n"), "GET "+base+"limit=200 crt_x\nDELETE "+base+"path=%2Fzones%2A crt_x"; got != want {
		t.Errorf("the relay was asked\n%s\nwant\n%s", got, want)
	}
}

// The step of the demo fails where nothing absorbs.
func TestPollStorm(t *testing.T) {
	for _, c := range []struct {
		cache int64
		want  string
	}{{0, ""}, {-1, "the cache does not absorb the storm"}} {
		g, m, pinsFile := cachingGarden(t, gateway.Config{Cache: c.cache})
		d := &demo{id: g.ID(), lanPath: m, demoOptions: demoOptions{dir: filepath.Dir(pinsFile)}}
		said, err := d.pollStorm(t.Context())
		if c.want == "" && (err != nil || !strings.Contains(said, "50 clients: ")) {
			t.Errorf("with a cache: %q, %v", said, err)
		}
		if c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("without a cache: %q, %v, want %q", said, err, c.want)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, m, pinsFile := cachingGarden(t, gateway.Config{})
	d := &demo{lanPath: m, demoOptions: demoOptions{dir: filepath.Dir(pinsFile)}}
	if _, err := d.poll(ctx, []*remote{m}, ""); !errors.Is(err, context.Canceled) {
		t.Errorf("a storm that is ended = %v, want context.Canceled", err)
	}
}
