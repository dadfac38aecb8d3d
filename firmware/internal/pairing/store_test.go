package pairing

import (
	"context"
	"fmt"
	"maps"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cloudrest/cloudrest/firmware/internal/store"
)

func TestRestart(t *testing.T) {
	cs := connection(t)
	synctest.Test(t, func(t *testing.T) {
		m := &memory{}
		d := open(t, m, nil)
		owner, _ := d.pairAs(t, Owner, cs)
		guest, guestID := d.pairAs(t, Guest, cs)
		gone, goneID := d.pairAs(t, Member, cs)
		end := time.Now().Add(time.Hour).Truncate(time.Second).UTC()
		if _, err := d.change(actor{local: true, role: Owner}, guestID, nil, nil, &end); err != nil {
			t.Fatal(err)
		}
		d.Remove(goneID)
		d.Record(SecurityEvent{Event: "factory_reset", Detail: "by button"})
		d.flush()
		clients, events := d.Clients(), d.Events()
		d = open(t, m, nil)
		if got := d.Clients(); !reflect.DeepEqual(got, clients) || len(got) != 2 {
			t.Errorf("clients = %+v, want %+v", got, clients)
		}
		if got := d.Events(); !reflect.DeepEqual(got, events) || len(got) == 0 {
			t.Errorf("events = %+v, want %+v", got, events)
		}
		want(t, "owner", d.do("GET", "security", "", call{token: owner}), 200)
		want(t, "guest", d.do("GET", "session", "", call{token: guest}), 200)
		want(t, "revoked", d.do("GET", "session", "", call{token: gone}), 401)

		// Nothing of one owner is left for the next.
		d = open(t, m, func(c *Config) { c.Generation = 2 })
		want(t, "old owner", d.do("GET", "session", "", call{token: owner}), 401)
		if len(d.Clients()) != 0 || m.count(clientKey) != 0 || m.count(eventKey) != 0 {
			t.Errorf("after a reset: clients %v, stored %v", d.Clients(), m.values)
		}
	})
}

// The real store is a Bucket.
func TestRealStore(t *testing.T) {
	dir := t.TempDir()
	s, err := store.Open(store.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	cs := connection(t)
	fit := func(c *Config) { c.Store, c.Sync = s.Bucket("pairing"), s.Sync }
	d := open(t, &memory{}, fit)
	token, _ := d.pairAs(t, Owner, cs)
	_, goneID := d.pairAs(t, Member, cs)
	if err := d.Remove(goneID); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if s, err = store.Open(store.Config{Dir: dir}); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	d = open(t, &memory{}, fit)
	want(t, "token", d.do("GET", "session", "", call{token: token}), 200)
	if n := len(d.Clients()); n != 1 {
		t.Errorf("%d clients, want 1", n)
	}
}

// A damaged record is not a client, and does not keep the others out.
func TestDamagedRecords(t *testing.T) {
	cs := connection(t)
	m := &memory{}
	d := open(t, m, nil)
	token, id := d.pairAs(t, Owner, cs)
	good := string(m.values[clientKey+id])
	bad := map[string]string{
		clientKey + "a": "", clientKey + "b": "{}", clientKey + "c": good[:len(good)-5], clientKey: good,
		clientKey + "d": strings.Replace(good, `"owner"`, `"king"`, 1), clientKey + "e": strings.Replace(good, `"hash":"`, `"hash":"00`, 1),
		eventKey + "x": "{}", eventKey + "0000000000000009": "nonsense", firstKey: "nonsense", labelKey: "nonsense",
	}
	for k, v := range bad {
		m.values[k] = []byte(v)
	}
	d = open(t, m, nil)
	want(t, "token", d.do("GET", "session", "", call{token: token}), 200)
	if len(d.Clients()) != 1 || m.count(clientKey) != 1 {
		t.Errorf("clients = %v, stored %d, want one", d.Clients(), m.count(clientKey))
	}
}

// TestStoreFails: no token goes out that is not stored, and nothing is lost but the attempt.
func TestStoreFails(t *testing.T) {
	cs := connection(t)
	for name, set := range map[string]func(m *memory){
		"disk full":   func(m *memory) { m.fail(errFull, nil) },
		"flash fails": func(m *memory) { m.fail(nil, errFull) },
	} {
		m := &memory{}
		d := open(t, m, nil)
		owner, _ := d.pairAs(t, Owner, cs)
		member, memberID := d.pairAs(t, Member, cs)
		d.Open(WayButton, OpenOptions{})
		set(m)
		label := fmt.Sprintf(`{"name":"x","secret":%q}`, testLabel)
		for what, body := range map[string]string{"button": `{"name":"x"}`, "label": label} {
			g := want(t, name+", "+what, d.do("POST", "pair", body, call{tls: cs}), 503)
			if g.body.Token != "" || g.header.Get("Retry-After") == "" {
				t.Errorf("%s: %v, want no token", name, g)
			}
		}
		if len(d.Clients()) != 2 || m.count(clientKey) != 2 || m.count(labelKey) != 0 {
			t.Errorf("%s: %d clients, %d stored, %d labels used, want 2, 2, 0", name, len(d.Clients()), m.count(clientKey), m.count(labelKey))
		}
		if strings.Count(d.told(), EventPaired) != 2 {
			t.Errorf("%s: events %s", name, d.told())
		}
		want(t, name+", promote", d.do("PATCH", "clients/"+memberID, `{"role":"owner"}`, call{token: owner}), 503)
		want(t, name+", not promoted", d.do("GET", "security", "", call{token: member}), 403)
		again := open(t, &memory{values: maps.Clone(m.values)}, nil)
		for _, e := range again.Events() {
			if e.Event == EventPaired && strings.Contains(e.Detail, `"x"`) || e.Event == EventChanged {
				t.Errorf("%s: a restart remembers what did not happen: %+v", name, e)
			}
		}
		if got := again.Clients(); len(got) != 2 || got[0].Role == got[1].Role {
			t.Errorf("%s: a restart makes %+v", name, got)
		}
		if d.Stats().Storing {
			t.Errorf("%s: the status does not show it", name)
		}
		// Revoking works at once, and reaches the store when that works again.
		want(t, name+", revoke", d.do("DELETE", "clients/"+memberID, "", call{token: owner}), 503)
		want(t, name+", revoked", d.do("GET", "session", "", call{token: member}), 401)
		m.fail(nil, nil)
		d.flush()
		if n := m.count(clientKey); n != 1 {
			t.Errorf("%s: %d clients are stored after it works again, want 1", name, n)
		}
		want(t, name+", button again", d.do("POST", "pair", `{"name":"x"}`, call{tls: cs}), 200)
		want(t, name+", label again", d.do("POST", "pair", label, call{tls: cs}), 200)
	}
	if _, err := New(Config{}); err == nil {
		t.Error("New without anything is no error")
	}
}

// Each event is kept, and told, once, whatever the store does meanwhile.
func TestEventsOnce(t *testing.T) {
	m := &memory{}
	d := open(t, m, nil)
	for i := range 3 * maxEvents {
		m.fail(nil, nil)
		switch i % 3 {
		case 0:
			m.fail(errFull, nil)
		case 1:
			m.fail(nil, errFull)
		}
		d.Record(SecurityEvent{Event: "test", Detail: fmt.Sprint(i)})
		d.flush()
	}
	m.fail(nil, nil)
	d.flush()
	if n := m.count(eventKey); n != maxEvents {
		t.Errorf("%d events are stored, want %d", n, maxEvents)
	}
	for _, p := range []*Pairing{d.Pairing, open(t, m, nil).Pairing} {
		for i, e := range p.Events() {
			if want := fmt.Sprint(2*maxEvents + i); e.Detail != want {
				t.Fatalf("event %d is %q, want %q", i, e.Detail, want)
			}
		}
	}
	if got := strings.Count(d.told(), "test"); got != 3*maxEvents {
		t.Errorf("%d events were told, want %d", got, 3*maxEvents)
	}
}

// TestFlashWrites: what strangers and paired clients do all day writes little.
func TestFlashWrites(t *testing.T) {
	cs := connection(t)
	synctest.Test(t, func(t *testing.T) {
		m := &memory{}
		d := open(t, m, nil)
		token, id := d.pairAs(t, Owner, cs)
		done := make(chan error)
		ctx, stop := context.WithCancel(t.Context())
		go func() { done <- d.Run(ctx) }()
		synctest.Wait()
		before := m.changes
		o := &origin{}
		begin := time.Now()
		for i := 0; time.Since(begin) < 24*time.Hour; i++ {
			d.guard(o, "GET", "/x", bearerOf(token), "192.0.2.1:1")
			d.guard(o, "GET", "/x", bearerOf("crp_wrong"), fmt.Sprintf("10.0.%d.%d:1", i>>8&255, i&255))
			d.do("POST", "pair", `{}`, call{tls: cs})
			time.Sleep(20 * time.Second)
		}
		synctest.Wait()
		if got, most := m.changes-before, int(24*time.Hour/flushLast)+1; got > most || got < most-3 {
			t.Errorf("%d writes in a day, want about %d", got, most)
		}
		if last := open(t, m, nil).Clients()[0].LastUsed; time.Since(last) > flushLast+time.Minute {
			t.Errorf("the last use in the store is %v old, want at most %v", time.Since(last), flushLast)
		}
		d.guard(o, "GET", "/x", bearerOf(token), "192.0.2.1:1")
		used := d.Clients()[0].LastUsed
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if last := open(t, m, nil).Clients()[0]; last.ID != id || !last.LastUsed.Equal(used) {
			t.Errorf("last use after the end = %v, want %v", last.LastUsed, used)
		}
	})
	synctest.Test(t, func(t *testing.T) { // a member that opens windows all the time
		m := &memory{}
		d := open(t, m, nil)
		member, _ := d.pairAs(t, Member, cs)
		go d.Run(t.Context())
		before := m.changes
		for range 3600 {
			d.do("POST", "pair/window", "", call{token: member})
			d.do("DELETE", "pair/window", "", call{token: member})
			time.Sleep(time.Second)
		}
		synctest.Wait()
		if got := m.changes - before; got > 61 {
			t.Errorf("%d writes in an hour, want at most one a minute", got)
		}
	})
}
