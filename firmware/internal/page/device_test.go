package page

import (
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cloudrest/cloudrest/tether"
	"github.com/cloudrest/cloudrest/tether/qrcode"
	"github.com/cloudrest/cloudrest/tether/sse"
	"github.com/cloudrest/cloudrest/tether/trust"
)

type object = map[string]any

// device is the page on a device that answers as the HTTP API of pairing and gateway says
// (SPEC.md, "LAN trust and pairing"), and whose state the tests set.
type device struct {
	srv  *httptest.Server
	ring *sse.Ring
	id   tether.DeviceID

	mu       sync.Mutex // guards what follows
	status   object
	window   struct{ open, confirm, fresh bool }
	until    time.Time
	role     string // that the window gives; "" is owner
	clients  []*client
	asks     []*asker
	secrets  map[string]string // of invitations, and their roles
	security []object
	events   int
	serial   int
	broken   bool // every answer is 503
}

type client struct {
	ID      string `json:"id"`
	Name    string `json:"name"`
	Role    string `json:"role"`
	Created string `json:"created"`
	Expires string `json:"expires,omitempty"`
	Used    string `json:"last_used,omitempty"`
	Code    string `json:"code,omitempty"`
	Way     string `json:"way"`
	You     bool   `json:"you"`
	token   string
}

type asker struct {
	Request string `json:"request"`
	Name    string `json:"name"`
	Role    string `json:"role"`
	Code    string `json:"code"`
	From    string `json:"from"`
	Asked   string `json:"asked"`
	decided chan struct{}
	client  *client // nil when decided: refused
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// newDevice starts a device that nobody has paired with.
func newDevice(t testing.TB) *device {
	d := &device{ring: sse.NewRing(1000, 1<<20), id: tether.NewDeviceID([]byte("page test")), secrets: map[string]string{}}
	d.status = object{
		"id": d.id, "name": "Window blind, kitchen", "version": "v1.4.0", "uptime": 3*86400 + 4*3600, "access": "paired",
		"certificate_sha256": strings.Repeat("5e", 32),
		"device":             object{"state": "known", "name": "Blind 2", "version": "2.1", "manufacturer": "Example"},
		"origin":             object{"state": "up"},
		"tether":             object{"state": "up", "relay": "wss://r1.example"},
		"notifications":      object{"epoch": fmt.Sprintf("%016x", 0xfeed), "appended": 0, "kept": 0, "unacknowledged": 0},
	}
	page, v1 := Handler(), d.api()
	d.srv = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, tether.OwnPrefix+"v1/") {
			http.StripPrefix(tether.OwnPrefix+"v1", v1).ServeHTTP(w, r)
			return
		}
		page.ServeHTTP(w, r)
	}))
	d.srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	d.srv.StartTLS()
	d.status["url"] = d.srv.URL
	t.Cleanup(func() {
		d.srv.CloseClientConnections()
		d.srv.Close()
	})
	return d
}

func (d *device) pin() []byte {
	sum := sha256.Sum256(d.srv.Certificate().RawSubjectPublicKeyInfo)
	return sum[:]
}

// set changes the device under its lock.
func (d *device) set(f func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f()
}

func (d *device) open(confirm bool, life time.Duration) {
	d.set(func() { d.window.open, d.window.confirm, d.until, d.role = true, confirm, time.Now().Add(life), "" })
}

func (d *device) notify(topic, data string) {
	d.set(func() {
		d.events++
		d.ring.Append(sse.Event{ID: tether.EventID{Epoch: 0xfeed, Seq: uint64(d.events)}.String(), Name: topic, Data: []byte(data)})
		n := d.status["notifications"].(object)
		n["appended"], n["kept"] = d.events, d.events
	})
}

// record, add and code need the lock.
func (d *device) record(event, client, detail string) {
	d.security = append(d.security, object{"time": stamp(time.Now()), "event": event, "client": client, "from": "192.168.1.23", "detail": detail})
}

func (d *device) add(name, role, way, code string) *client {
	d.serial++
	c := &client{ID: fmt.Sprintf("c%d", d.serial), Name: name, Role: role, Way: way, Code: code, Created: stamp(time.Now()), token: fmt.Sprintf("crp_%d", d.serial)}
	d.clients = append(d.clients, c)
	d.record("client_paired", c.ID, way)
	return c
}

func (d *device) code() string { return fmt.Sprintf("%06d", 482913+7919*d.serial) }

type refusal struct {
	status  int
	message string
}

const cookie = "__Secure-cloudrest"

// api serves v1; paths begin after it. Each answer is made under the lock, except that of a wait.
func (d *device) api() http.Handler {
	mux := http.NewServeMux()
	type handler func(r *http.Request, me *client, q map[string]string) any
	signIn := func(w http.ResponseWriter, c *client) {
		http.SetCookie(w, &http.Cookie{Name: cookie, Value: c.token, Path: tether.OwnPrefix, HttpOnly: true, Secure: true, SameSite: http.SameSiteStrictMode})
	}
	type paired struct{ c *client }
	handle := func(pattern, roles string, f handler) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			var q map[string]string
			var raw object
			json.NewDecoder(r.Body).Decode(&raw)
			q = map[string]string{}
			for k, v := range raw {
				q[k] = fmt.Sprint(v)
			}
			d.mu.Lock()
			if d.window.open && time.Now().After(d.until) {
				d.window.open = false
			}
			var me *client
			if ck, err := r.Cookie(cookie); err == nil {
				if i := slices.IndexFunc(d.clients, func(c *client) bool { return c.token == ck.Value }); i >= 0 {
					me = d.clients[i]
				}
			}
			var v any
			switch {
			case d.broken:
				v = refusal{503, "the change cannot be stored: is the device's storage full?"}
			case roles != "" && me == nil:
				v = refusal{401, "this needs a token: pair first"}
			case roles != "" && !strings.Contains(roles, me.Role):
				v = refusal{403, "only an owner may do this"}
			default:
				if me != nil {
					me.Used = stamp(time.Now())
				}
				v = f(r, me, q)
			}
			d.mu.Unlock()
			if wait, ok := v.(func() any); ok {
				v = wait()
			}
			h := w.Header()
			h.Set("Cache-Control", "no-store")
			h.Set("Content-Type", "application/json")
			status := http.StatusOK
			switch a := v.(type) {
			case nil:
				if pattern == "DELETE /session" {
					http.SetCookie(w, &http.Cookie{Name: cookie, Path: tether.OwnPrefix, Secure: true, MaxAge: -1})
				}
				w.WriteHeader(http.StatusNoContent)
				return
			case refusal:
				status, v = a.status, object{"error": a.status, "message": a.message}
			case *asker:
				status, v = 202, object{"state": "waiting", "request": a.Request, "code": a.Code}
			case paired:
				signIn(w, a.c)
				v = object{"state": "paired", "client": a.c, "code": a.c.Code}
			}
			w.WriteHeader(status)
			json.NewEncoder(w).Encode(v)
		})
	}
	const all, users, owners = "owner member guest", "owner member", "owner"
	handle("GET /status", "", func(*http.Request, *client, map[string]string) any { return maps.Clone(d.status) })
	handle("GET /pair", "", func(*http.Request, *client, map[string]string) any {
		v := object{"open": d.window.open, "confirm": d.window.confirm, "fresh": d.window.fresh, "paired": len(d.clients) > 0}
		if d.window.open {
			v["until"] = stamp(d.until)
		}
		return v
	})
	handle("POST /pair", "", func(r *http.Request, _ *client, q map[string]string) any {
		if s := q["secret"]; s != "" {
			role, ok := d.secrets[s]
			if !ok {
				return refusal{403, "the secret is wrong, used up or too old: ask for a new invitation"}
			}
			delete(d.secrets, s)
			return paired{d.add(q["name"], role, "invitation", d.code())}
		}
		if !d.window.open {
			return refusal{403, "pairing is closed: press the button on the device, or run cloudrestd pair --open"}
		}
		if !d.window.confirm {
			d.window.open = false
			return paired{d.add(q["name"], cmp.Or(d.role, "owner"), "button", d.code())}
		}
		d.serial++
		a := &asker{Request: fmt.Sprintf("q%d", d.serial), Name: q["name"], Role: cmp.Or(d.role, "owner"), Code: d.code(), From: "192.168.1.57",
			Asked: stamp(time.Now()), decided: make(chan struct{})}
		d.asks = append(d.asks, a)
		return a
	})
	handle("GET /pair/{request}", "", func(r *http.Request, _ *client, _ map[string]string) any {
		i := slices.IndexFunc(d.asks, func(a *asker) bool { return a.Request == r.PathValue("request") })
		if i < 0 {
			return refusal{410, "the request is over"}
		}
		a := d.asks[i]
		return func() any {
			select {
			case <-a.decided:
			case <-r.Context().Done():
				return nil
			case <-time.After(25 * time.Second):
				return a
			}
			d.mu.Lock()
			defer d.mu.Unlock()
			if a.client == nil {
				return refusal{403, "you were refused"}
			}
			return paired{a.client}
		}
	})
	handle("POST /pair/window", users, func(_ *http.Request, me *client, q map[string]string) any {
		d.window.open, d.window.confirm, d.until, d.role = true, true, time.Now().Add(time.Minute), cmp.Or(q["role"], "member")
		d.record("window_opened", me.ID, "for a minute")
		return object{"open": true, "until": stamp(d.until), "confirm": true, "paired": true, "fresh": false}
	})
	handle("DELETE /pair/window", users, func(*http.Request, *client, map[string]string) any {
		d.window.open = false
		return nil
	})
	handle("GET /pair/requests", users, func(*http.Request, *client, map[string]string) any {
		list := []*asker{}
		for _, a := range d.asks {
			select {
			case <-a.decided:
			default:
				list = append(list, a)
			}
		}
		return list
	})
	decide := func(r *http.Request, q map[string]string, yes bool) any {
		i := slices.IndexFunc(d.asks, func(a *asker) bool { return a.Request == r.PathValue("request") })
		if i < 0 {
			return refusal{410, "the request is over"}
		}
		a := d.asks[i]
		defer close(a.decided)
		if !yes {
			d.record("pair_refused", "", fmt.Sprintf("%q: refused", a.Name))
			return nil
		}
		a.client = d.add(a.Name, cmp.Or(q["role"], a.Role), "client", a.Code)
		d.window.open = false
		return object{"client": a.client}
	}
	handle("POST /pair/{request}/approve", users, func(r *http.Request, _ *client, q map[string]string) any { return decide(r, q, true) })
	handle("POST /pair/{request}/refuse", users, func(r *http.Request, _ *client, q map[string]string) any { return decide(r, q, false) })
	handle("GET /clients", all, func(_ *http.Request, me *client, _ map[string]string) any {
		list := []client{}
		for _, c := range d.clients {
			if me.Role == "owner" || c == me {
				v := *c
				v.You = c == me
				list = append(list, v)
			}
		}
		return object{"clients": list}
	})
	handle("DELETE /clients/{id}", all, func(r *http.Request, me *client, _ map[string]string) any {
		i := slices.IndexFunc(d.clients, func(c *client) bool { return c.ID == r.PathValue("id") })
		if i < 0 || me.Role != "owner" && d.clients[i] != me {
			return refusal{404, "there is no such client"}
		}
		d.record("client_revoked", d.clients[i].ID, d.clients[i].Name)
		d.clients = slices.Delete(d.clients, i, i+1)
		return nil
	})
	handle("PATCH /clients/{id}", owners, func(r *http.Request, _ *client, q map[string]string) any {
		i := slices.IndexFunc(d.clients, func(c *client) bool { return c.ID == r.PathValue("id") })
		if i < 0 {
			return refusal{404, "there is no such client"}
		}
		c := d.clients[i]
		c.Name, c.Role = cmp.Or(q["name"], c.Name), cmp.Or(q["role"], c.Role)
		return object{"client": c}
	})
	handle("POST /invitations", owners, func(_ *http.Request, me *client, q map[string]string) any {
		d.serial++
		secret := fmt.Sprintf("secret-%016d", d.serial)
		d.secrets[secret] = cmp.Or(q["role"], "member")
		url := trust.Invitation{URL: d.srv.URL, ID: d.id, Pin: fmt.Sprintf("%x", d.pin()), Secret: secret}.String()
		svg, err := qrcode.SVG(url)
		if err != nil {
			return refusal{500, err.Error()}
		}
		d.record("invitation_made", me.ID, "to become "+d.secrets[secret])
		return object{"url": url, "svg": string(svg), "expires": stamp(time.Now().Add(10 * time.Minute))}
	})
	handle("DELETE /invitations", owners, func(*http.Request, *client, map[string]string) any {
		clear(d.secrets)
		return nil
	})
	handle("GET /session", all, func(_ *http.Request, me *client, _ map[string]string) any {
		v := *me
		v.You = true
		return object{"client": v}
	})
	handle("DELETE /session", "", func(*http.Request, *client, map[string]string) any { return nil })
	handle("GET /security", owners, func(*http.Request, *client, map[string]string) any { return slices.Clone(d.security) })
	handle("DELETE /cache", owners, func(*http.Request, *client, map[string]string) any {
		d.status["cache"].(object)["entries"] = 0
		return object{"removed": 3}
	})
	mux.HandleFunc("GET /events", func(w http.ResponseWriter, r *http.Request) { sse.Serve(w, r, d.ring, sse.Options{}) })
	return mux
}
