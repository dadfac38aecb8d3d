package page

import (
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cloudrest/cloudrest/tether"
	"github.com/cloudrest/cloudrest/tether/trust"
	"github.com/cloudrest/cloudrest/tools/browser"
	. "github.com/cloudrest/cloudrest/tools/browser/pagewalk"
)

// states are the tests of TestStates, in one browser; each has a device of its own.
var states = map[string]func(t *testing.T, d *device, open func(screen browser.Screen, agent string) *browser.Page){
	"hostile texts": hostile, "window with approval": approval, "answers to the asker": answers, "device away": away, "foreign invitation": foreign,
	"member": member, "rename": rename, "no pairing here": noPairing, "troubles": troubles, "cache": cached, "many events": manyEvents, "first start": firstStart, "keyboard": keyboard,
}

func TestStates(t *testing.T) {
	b := Start(t, newDevice(t).walked(t)) // httptest has one certificate for all
	for name, f := range states {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // most of the time they wait for the page to ask again
			d := newDevice(t)
			f(t, d, func(screen browser.Screen, agent string) *browser.Page {
				t.Helper()
				p, err := b.Open(t.Context(), screen, agent)
				Do(t, err)
				t.Cleanup(func() {
					if c := p.Complaints(); len(c) > 0 {
						t.Errorf("the console says %q", c)
					}
				})
				return p
			})
		})
	}
}

// look checks a state, in light and dark, and takes its picture when asked.
func look(t *testing.T, name string, p *browser.Page, screen browser.Screen) {
	t.Helper()
	Check(t, p, name)
	dark := screen
	dark.Dark = true
	Do(t, p.Show(t.Context(), dark))
	Check(t, p, name+" (dark)")
	Do(t, p.Show(t.Context(), screen))
	if f := shot(t, screen); f != nil {
		f(name, p)
	}
}

// enter opens the page as a client that has paired.
func (d *device) enter(t *testing.T, p *browser.Page, name, role string) {
	t.Helper()
	var c *client
	d.set(func() { c = d.add(name, role, "button", d.code()) })
	set := fmt.Sprintf("document.cookie = '%s=%s; path=%s; secure'", cookie, c.token, tether.OwnPrefix)
	Do(t, p.Go(t.Context(), d.srv.URL+Path+"page.css"), p.Eval(t.Context(), set, nil), p.Go(t.Context(), d.srv.URL+Path), p.Read(t.Context(), "#me", name))
}

// Whatever outsiders call things, the page shows it as text.
func hostile(t *testing.T, d *device, open func(browser.Screen, string) *browser.Page) {
	ctx := t.Context()
	bad := func(where string) string {
		return `<img src=x onerror="document.title='` + where + `'"><script>document.title='` + where + `'</script>"'&lt;` + where
	}
	d.set(func() {
		d.status["name"], d.status["url"] = bad("name"), "javascript:document.title='url'"
		d.status["device"] = object{"state": "known", "name": bad("model"), "version": "1", "warnings": []string{bad("warning")}, "error": bad("error")}
		d.status["origin"] = object{"state": "down"}
		d.status["tether"] = object{"state": "down", "relay": bad("relay"), "error": bad("reason")}
		d.security = append(d.security, object{"time": stamp(time.Now()), "event": bad("kind"), "client": bad("client"), "from": bad("from"), "detail": bad("detail")})
		d.asks = append(d.asks, &asker{Request: "q<1>", Name: bad("asker"), Role: "member", Code: bad("code"), From: bad("source"), Asked: stamp(time.Now()), decided: make(chan struct{})})
		d.add(bad("other"), "guest", bad("way"), "123456")
	})
	p := open(browser.Small, IPhone)
	d.enter(t, p, bad("me"), "owner")
	Do(t, p.Read(ctx, "#events-state", "Live"))
	d.notify(bad("topic"), bad("data")+"\n\nsecond line")
	Do(t, p.Read(ctx, "#event-list", bad("data")), p.Read(ctx, "#event-list", bad("topic")), p.Read(ctx, "h1", bad("name")),
		p.Read(ctx, "#warnings", bad("warning")), p.Read(ctx, "#s-service", bad("error")), p.Read(ctx, "#s-reach", bad("reason")),
		p.Read(ctx, "#security-list", bad("client")), p.Read(ctx, "#security-list", bad("detail")), p.Read(ctx, "#security-list", bad("from")),
		p.Read(ctx, "#request-list", bad("asker")), p.Read(ctx, "#request-list", bad("source")), p.Read(ctx, "#client-list", bad("other")), p.Read(ctx, "#me", bad("me")),
		p.Click(ctx, "#client-list li:last-child summary"), p.Read(ctx, "#client-list", bad("way")))
	look(t, "hostile", p, browser.Small)
	// What the device answers to a deed, too.
	Do(t, p.Click(ctx, "#request-list .primary"), p.Read(ctx, "#notice", bad("asker")))
	var found struct {
		Title, Links   string
		Images, Script int
	}
	Do(t, p.Eval(ctx, "({Title: document.title, Images: document.images.length, Script: document.scripts.length, Links: [...document.links].map(a => a.href).join()})", &found))
	if found.Title != bad("name") || found.Images != 1 || found.Script != 1 || found.Links != "" {
		t.Errorf("the page has %+v: want one image, one script, no link and the name as title", found)
	}
}

// A window that wants approval: the asker is told so, may stop, is refused, is let in.
func approval(t *testing.T, d *device, open func(browser.Screen, string) *browser.Page) {
	ctx := t.Context()
	owner, asker := open(browser.Desktop, ""), open(browser.Phone, Pixel)
	d.enter(t, owner, "Desk", "owner")
	d.open(true, time.Minute)
	Do(t, asker.Go(ctx, d.srv.URL+Path), asker.Read(ctx, "#join-lead", "asked to approve"), asker.Click(ctx, "#join-go"), asker.Read(ctx, "#join", "Compare this code"))
	Do(t, asker.Click(ctx, "#join-stop"), asker.See(ctx, "#join-form"), owner.Read(ctx, "#request-list", "Pixel 8"), owner.Click(ctx, "#request-list button:not(.primary)"),
		owner.Read(ctx, "#notice", "refused"), owner.Miss(ctx, "#requests"))
	Do(t, asker.Click(ctx, "#join-go"), asker.Read(ctx, "#join", "Compare this code"), owner.Read(ctx, "#request-list", "Pixel 8"))
	look(t, "request on a desktop", owner, browser.Desktop)
	Do(t, owner.Click(ctx, "#request-list button:not(.primary)"), asker.Read(ctx, "#join-error", "refused"))
	// The owner gives another role than the one asked for.
	Do(t, asker.Click(ctx, "#join-go"), owner.Choose(ctx, "#request-list select", "guest"), owner.Click(ctx, "#request-list .primary"), asker.Read(ctx, "#join", "Paired"))
	// The codes differ: the asker takes itself out.
	Do(t, asker.Click(ctx, "#join-other"), asker.Read(ctx, "#join-error", "Removed again"), owner.Read(ctx, "#security-list", "Revoked: Pixel 8"))
	look(t, "removed again", asker, browser.Phone)
}

// Each answer that is not yes says what to do.
func answers(t *testing.T, d *device, open func(browser.Screen, string) *browser.Page) {
	ctx := t.Context()
	p := open(browser.Small, IPhone)
	d.open(true, time.Minute)
	Do(t, p.Go(ctx, d.srv.URL+Path), p.Click(ctx, "#join-go"), p.Read(ctx, "#join", "Compare this code"))
	d.set(func() { d.asks = nil }) // the wait that began goes on; the next question finds nothing
	d.srv.CloseClientConnections()
	Do(t, p.Read(ctx, "#join-error", "Nobody approved in time"))
	// Closing between the last look and the tap.
	Do(t, p.Wait(ctx, "!document.querySelector('#join-go').disabled"))
	d.set(func() { d.window.open = false })
	Do(t, p.Eval(ctx, "document.querySelector('#join-form').requestSubmit()", nil), p.Read(ctx, "#join-error", "press the button"), p.Read(ctx, "#join-window", "closed"),
		p.Wait(ctx, "document.querySelector('#join-go').disabled"))
	look(t, "closed in between", p, browser.Small)
	// A page that is open sees that the window opened, and that it ended.
	d.open(false, 3*time.Second)
	Do(t, p.Read(ctx, "#join-window", "open for"), p.Wait(ctx, "!document.querySelector('#join-go').disabled"), p.Read(ctx, "#join-window", "closed"))
}

// The device goes away and comes back, and the page with it.
func away(t *testing.T, d *device, open func(browser.Screen, string) *browser.Page) {
	ctx := t.Context()
	p := open(browser.Phone, Pixel)
	d.enter(t, p, "Phone", "owner")
	Do(t, p.Read(ctx, "#events-state", "Live"), p.Offline(ctx, true))
	d.srv.CloseClientConnections()
	Do(t, p.See(ctx, "#offline"), p.Read(ctx, "#state", "Not reachable"), p.Read(ctx, "#events-state", "Trying again"))
	look(t, "away", p, browser.Phone)
	d.notify("zone", "while away")
	Do(t, p.Offline(ctx, false), p.Miss(ctx, "#offline"), p.Read(ctx, "#state", "Online"), p.Read(ctx, "#event-list", "while away"), p.Read(ctx, "#events-state", "Live"))
	// A deed that the device cannot do says so, and can be done again.
	d.set(func() { d.broken = true })
	Do(t, p.Click(ctx, "#add-qr"), p.Read(ctx, "#notice", "storage full"), p.Read(ctx, "#notice", "Try again"))
	d.set(func() { d.broken = false })
	Do(t, p.Click(ctx, "#add-qr"), p.See(ctx, "#add-image"))

	// The page may be there before the device answers.
	d.set(func() { d.broken = true })
	q := open(browser.Phone, Pixel)
	Do(t, q.Go(ctx, d.srv.URL+Path))
	d.set(func() { d.broken = false })
	Do(t, q.See(ctx, "#join"))
}

// An invitation's secret goes to the device that it is for, and to no other.
func foreign(t *testing.T, d *device, open func(browser.Screen, string) *browser.Page) {
	ctx := t.Context()
	d.set(func() { d.secrets["secret-of-another-one"] = "owner" })
	i := trust.Invitation{URL: d.srv.URL, ID: tether.NewDeviceID([]byte("another")), Pin: fmt.Sprintf("%x", d.pin()), Secret: "secret-of-another-one"}
	p := open(browser.Phone, Pixel)
	Do(t, p.Go(ctx, i.String()), p.Read(ctx, "#join-error", "another device"))
	d.set(func() {
		if len(d.clients) > 0 || d.secrets[i.Secret] == "" {
			t.Error("the secret of another device was used here")
		}
	})
	// The camera may open the link in a tab that shows the page already.
	i.ID = d.id
	Do(t, p.Eval(ctx, "location.hash = '"+i.String()[strings.Index(i.String(), "#"):]+"'", nil), p.Read(ctx, "#me", "Pixel 8"), p.Read(ctx, "#notice", "Welcome"))
	Do(t, p.Eval(ctx, "location.hash = '#c=x'", nil), p.Read(ctx, "#notice", "paired already"))
	q := open(browser.Phone, Pixel)
	Do(t, q.Go(ctx, d.srv.URL+Path+"#c=half.of"), q.Read(ctx, "#join-error", "not complete"))
}

// A member sees itself, opens pairing and lets in who asks; a guest only looks.
func member(t *testing.T, d *device, open func(browser.Screen, string) *browser.Page) {
	ctx := t.Context()
	p, asker, guest := open(browser.Phone, IPad), open(browser.Phone, Pixel), open(browser.Small, IPhone)
	d.set(func() { d.add("Somebody else", "owner", "button", "") })
	d.enter(t, p, "Tablet", "member")
	for _, sel := range []string{"#security", "#add-qr", "#add-role", "#requests"} {
		Do(t, p.Miss(ctx, sel))
	}
	Do(t, p.Click(ctx, "#add-window"), p.Read(ctx, "#add-open", "Pairing is open"), asker.Go(ctx, d.srv.URL+Path), asker.Click(ctx, "#join-go"),
		p.Click(ctx, "#request-list .primary"), asker.Read(ctx, "#join", "Paired"), p.Miss(ctx, "#requests"))
	if text, err := p.Text(ctx, "#client-list"); err != nil || strings.Contains(text, "Somebody") {
		t.Errorf("a member sees %q, %v", text, err)
	}
	Do(t, p.Click(ctx, "#add-window"), p.Click(ctx, "#add-close"), p.See(ctx, "#add-window"))
	// It takes itself out.
	Do(t, p.Click(ctx, "#client-list summary"), p.Click(ctx, "#client-list .danger"), p.Read(ctx, "#client-list .confirm", "Remove this tablet?"))
	look(t, "member", p, browser.Phone)
	Do(t, p.Click(ctx, "#client-list .confirm button"), p.Miss(ctx, ".confirm"), p.Click(ctx, "#client-list .danger"), p.Click(ctx, "#client-list .confirm .danger"), p.See(ctx, "#join"), p.Miss(ctx, "#events"))
	d.enter(t, guest, "Visitor", "guest")
	Do(t, guest.See(ctx, "#events"), guest.Miss(ctx, "#add"))
	look(t, "guest", guest, browser.Small)
}

// Names and roles are changed; what somebody types is not overwritten by what the device says meanwhile.
func rename(t *testing.T, d *device, open func(browser.Screen, string) *browser.Page) {
	ctx := t.Context()
	p := open(browser.Phone, Pixel)
	d.set(func() { d.add("Old name", "member", "label", "123456") })
	d.enter(t, p, "Me", "owner")
	row := "#client-list > li:nth-child(2) "
	Do(t, p.Click(ctx, row+"summary"), p.Fill(ctx, row+"input", "Kitchen wall"))
	var asked atomic.Int32
	d.set(func() { d.clients[0].Used = stamp(time.Now().Add(-time.Hour)); asked.Add(1) })
	Do(t, p.Eval(ctx, "new Promise(r => setTimeout(r, 500))", nil), p.Choose(ctx, row+"select", "guest"), p.Click(ctx, row+"form button"), p.Read(ctx, "#notice", "Saved"),
		p.Read(ctx, "#client-list", "Kitchen wall"), p.Read(ctx, "#client-list", "guest, used 1 h ago"))
	d.set(func() {
		if c := d.clients[0]; c.Name != "Kitchen wall" || c.Role != "guest" {
			t.Errorf("the device has %+v, want the new name and role", c)
		}
	})
}

// Where the maker's service decides who may do what, there is nothing to pair.
func noPairing(t *testing.T, d *device, open func(browser.Screen, string) *browser.Page) {
	ctx := t.Context()
	d.set(func() { d.status["access"] = "open" })
	real := d.srv.Config.Handler
	d.srv.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if p := r.URL.Path; strings.HasSuffix(p, "v1/pair") || strings.HasSuffix(p, "v1/session") {
			http.NotFound(w, r)
			return
		}
		real.ServeHTTP(w, r)
	})
	p := open(browser.Phone, Pixel)
	Do(t, p.Go(ctx, d.srv.URL+Path), p.Read(ctx, "#warnings", "Everybody in this network"), p.Miss(ctx, "#join"), p.Read(ctx, "#events-state", "Live"))
	look(t, "open to all", p, browser.Phone)
}

// What is wrong is said in words.
func troubles(t *testing.T, d *device, open func(browser.Screen, string) *browser.Page) {
	ctx := t.Context()
	d.set(func() {
		d.status["origin"], d.status["url"] = object{"state": "down"}, ""
		d.status["device"] = object{"state": "waiting", "error": "connection refused"}
		d.status["tether"] = object{"state": "down", "retry_at": stamp(time.Now().Add(40 * time.Second)), "error": "no route to host"}
		d.status["notifications"] = object{"kept": 7, "unacknowledged": 3, "dropped_unacknowledged": 2, "fifo_error": "the FIFO is gone", "epoch": "", "appended": 7}
	})
	p := open(browser.Phone, Pixel)
	Do(t, p.Go(ctx, d.srv.URL+Path), p.Read(ctx, "#state", "Its service does not answer"), p.Read(ctx, "#s-service", "connection refused"), p.Read(ctx, "#s-reach", "Next try in"),
		p.Read(ctx, "#s-address", "Not known yet"), p.Read(ctx, "#warnings", "FIFO is gone"), p.Click(ctx, "#status summary"), p.Read(ctx, "#s-notes", "7 kept, 3 not delivered yet, 2 lost"), p.Read(ctx, "#s-id", string(d.id)))
	look(t, "troubles", p, browser.Phone)
	d.set(func() { d.status["origin"] = object{"state": "up"} })
	Do(t, p.Read(ctx, "#state", "only in this network"))
	d.set(func() { d.status["tether"] = object{"state": "off"} })
	Do(t, p.Read(ctx, "#state", "Online, in this network"), p.Read(ctx, "#s-reach", "In this network only"))
}

// Everybody sees what the cache does; an owner empties it.
func cached(t *testing.T, d *device, open func(browser.Screen, string) *browser.Page) {
	ctx := t.Context()
	d.set(func() {
		d.status["cache"] = object{"state": "on", "entries": 3, "bytes": 5000, "hits": 40, "misses": 8, "validations": 2}
	})
	p := open(browser.Phone, Pixel)
	Do(t, p.Go(ctx, d.srv.URL+Path), p.Click(ctx, "#status summary"), p.Read(ctx, "#s-cache", "3 answers kept (5 KB), 40 of 50 requests"), p.Miss(ctx, "#cache-empty"))
	d.enter(t, p, "Phone", "owner")
	Do(t, p.Click(ctx, "#status summary"), p.See(ctx, "#cache-empty"))
	look(t, "cache", p, browser.Phone)
	Do(t, p.Click(ctx, "#cache-empty"), p.Read(ctx, "#s-cache", "0 answers kept"))
}

// The last 50 events are shown, newest first, each once.
func manyEvents(t *testing.T, d *device, open func(browser.Screen, string) *browser.Page) {
	ctx := t.Context()
	for i := range 80 {
		d.notify("count", fmt.Sprintf("number %d.", i+1))
	}
	p := open(browser.Desktop, "")
	d.enter(t, p, "Desk", "owner")
	ids := "[...document.querySelectorAll('#event-list li')].map(e => +e.dataset.id.split('-')[1])"
	expect := func(newest int) {
		t.Helper()
		Do(t, p.Wait(ctx, fmt.Sprintf("(n => n.length === 50 && n.every((v, i) => v === %d - i))(%s)", newest, ids)))
	}
	expect(80)
	d.notify("count", "one more")
	expect(81)
	d.srv.CloseClientConnections()
	d.notify("count", "after the cut")
	expect(82)
	for range 20 {
		d.set(func() { d.record("bad_token", "", "a wrong token") })
	}
	Do(t, p.Click(ctx, "#security-more"), p.Wait(ctx, "document.querySelectorAll('#security-list li').length > 20"), p.Miss(ctx, "#security-more"))
	look(t, "many events on a desktop", p, browser.Desktop)
}

// A new device says that the first to pair becomes its owner.
func firstStart(t *testing.T, d *device, open func(browser.Screen, string) *browser.Page) {
	ctx := t.Context()
	d.open(false, 9*time.Minute)
	d.set(func() { d.window.fresh = true })
	p := open(browser.Phone, IPhone)
	Do(t, p.Go(ctx, d.srv.URL+Path), p.Read(ctx, "#join", "becomes its owner"), p.Read(ctx, "#join-window", "min"))
	look(t, "first start", p, browser.Phone)
	Do(t, p.Click(ctx, "#join-go"), p.Read(ctx, "#join", "Paired"), p.Click(ctx, "#join-same"), p.Read(ctx, "#me", "owner"))
}

// Nothing needs a mouse.
func keyboard(t *testing.T, d *device, open func(browser.Screen, string) *browser.Page) {
	ctx := t.Context()
	p := open(browser.Desktop, "")
	d.open(false, time.Minute)
	Do(t, p.Go(ctx, d.srv.URL+Path), p.Wait(ctx, "!document.querySelector('#join-go').disabled"))
	focus := func(what string) {
		t.Helper()
		for range 30 {
			var id string
			if Do(t, p.Press(ctx, "Tab"), p.Eval(ctx, "document.activeElement.id || document.activeElement.innerText", &id)); strings.HasPrefix(id, what) {
				return
			}
		}
		t.Fatalf("Tab never comes to %s", what)
	}
	focus("join-go")
	Do(t, p.Press(ctx, "Enter"), p.Read(ctx, "#join", "Paired"))
	focus("join-same")
	Do(t, p.Press(ctx, "Enter"), p.Read(ctx, "#me", "owner"))
	focus("out")
	Do(t, p.Press(ctx, "Enter"), p.See(ctx, "#me .confirm"))
	var focused string
	if Do(t, p.Eval(ctx, "document.activeElement.innerText", &focused)); focused != "Cancel" {
		t.Errorf("after a question %q has the focus, want Cancel", focused)
	}
	Do(t, p.Press(ctx, "Enter"), p.Miss(ctx, ".confirm"))
	if Do(t, p.Eval(ctx, "document.activeElement.id", &focused)); focused != "out" {
		t.Errorf("after Cancel %q has the focus, want the button that asked", focused)
	}
}
