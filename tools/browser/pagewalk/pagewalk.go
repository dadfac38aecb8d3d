// Package pagewalk walks through the page of a device (/.cloudrest/) in a real browser as a
// family would: the first phone pairs with the button and becomes owner, a second one asks and is let
// in, a third comes by invitation, an event arrives, one is revoked, one signs out. It knows the
// page only by what a person sees and by ids of elements, and the device not at all, so the same
// walk goes over a device made for tests and over the real gateway.
package pagewalk

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cloudrest/cloudrest/tools/browser"
)

// User agents of phones and tablets that people have.
const (
	Pixel  = "Mozilla/5.0 (Linux; Android 14; Pixel 8) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Mobile Safari/537.36"
	IPhone = "Mozilla/5.0 (iPhone; CPU iPhone OS 18_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.5 Mobile/15E148 Safari/604.1"
	IPad   = "Mozilla/5.0 (iPad; CPU OS 17_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.5 Mobile/15E148 Safari/604.1"
)

// Path is where the page is on a device.
const Path = "/.cloudrest/"

// Device is what is walked through. Nobody has paired with it yet, and pairing is closed.
type Device struct {
	URL   string   // https://host:port as a phone in the LAN would open it
	Pins  [][]byte // SHA-256 of the SubjectPublicKeyInfo of a certificate that it shows
	Hosts []string // names that lead to 127.0.0.1

	Button func() error                       // presses the button: opens pairing without confirmation
	Notify func(topic, data string) error     // has the maker's service send a notification
	Shot   func(name string, p *browser.Page) // is called in each state; nil: nothing
}

// Start starts a browser that trusts the device, for the time of a test; it skips the test when there is none.
func Start(t *testing.T, d Device) *browser.Browser {
	t.Helper()
	b, err := browser.Start(t.Context(), browser.Config{Pins: d.Pins, Hosts: d.Hosts})
	if errors.Is(err, browser.ErrAbsent) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

// Do ends the test at the first error.
func Do(t *testing.T, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

// Walk walks. Every phone's page is checked for complaints of the console, and each state for
// what Check finds.
func Walk(t *testing.T, d Device) {
	ctx := t.Context()
	b := Start(t, d)
	shot := d.Shot
	if shot == nil {
		shot = func(string, *browser.Page) {}
	}
	look := func(name string, p *browser.Page) {
		t.Helper()
		Check(t, p, name)
		shot(name, p)
	}
	open := func(screen browser.Screen, agent string) *browser.Page {
		t.Helper()
		p, err := b.Open(ctx, screen, agent)
		Do(t, err)
		t.Cleanup(func() {
			if c := p.Complaints(); len(c) > 0 {
				t.Errorf("the console of a phone says %q", c)
			}
		})
		return p
	}

	// The first phone sees how to pair, waits for the button, pairs and is owner.
	first := open(browser.Phone, Pixel)
	Do(t, first.Go(ctx, d.URL+Path), first.Read(ctx, "#join", "Press the button"), first.Read(ctx, "#join-window", "closed"))
	Do(t, first.Wait(ctx, "document.querySelector('#join-name').value === 'Pixel 8'"))
	Steady(t, first)
	look("closed", first)
	Do(t, d.Button(), first.Read(ctx, "#join-window", "open for"))
	look("open", first)
	Do(t, first.Fill(ctx, "#join-name", "Anna's phone"), first.Click(ctx, "#join-go"), first.Read(ctx, "#join", "Paired"))
	code := digits(ctx, t, first, "#join .step[data-step=done] .code")
	look("paired", first)
	Do(t, first.Click(ctx, "#join-same"), first.Read(ctx, "#client-list", "Anna's phone"), first.Read(ctx, "#client-list", "owner"),
		first.Read(ctx, "#me", "Anna's phone"), first.Miss(ctx, "#join"), first.Read(ctx, "#events-state", "Live"))
	Do(t, first.Click(ctx, "#client-list summary"), first.See(ctx, "#client-list form"))
	if got, err := first.Text(ctx, "#client-list dl"); err != nil || !strings.Contains(only(got), code) {
		t.Errorf("the list of phones shows %q, %v: want the code %s", got, err, code)
	}
	look("owner", first)
	Do(t, first.Click(ctx, "#client-list summary"))

	// The owner opens pairing; the second phone asks; both see the same code.
	Do(t, first.Choose(ctx, "#add-role", "member"), first.Click(ctx, "#add-window"), first.Read(ctx, "#add-open", "Pairing is open for"))
	look("window", first)
	second := open(browser.Small, IPhone)
	Do(t, second.Go(ctx, d.URL+Path), second.Read(ctx, "#join-window", "open for"), second.Click(ctx, "#join-go"), second.Read(ctx, "#join", "Compare this code"))
	code = digits(ctx, t, second, "#join .step[data-step=wait] .code")
	look("waiting", second)
	Do(t, first.Read(ctx, "#request-list", "iPhone"))
	if got := digits(ctx, t, first, "#request-list .code"); got != code {
		t.Errorf("the owner sees the code %s, the second phone %s", got, code)
	}
	look("request", first)
	Do(t, first.Click(ctx, "#request-list .primary"), second.Read(ctx, "#join", "Paired"), second.Click(ctx, "#join-same"),
		second.Read(ctx, "#me", "member"), second.Miss(ctx, "#security"), second.Miss(ctx, "#add-qr"), first.Read(ctx, "#client-list", "iPhone"), first.Miss(ctx, "#requests"))
	look("member", second)

	// The third phone's camera reads the QR code, and opening its address pairs.
	Do(t, first.Choose(ctx, "#add-role", "guest"), first.Click(ctx, "#add-qr"), first.See(ctx, "#add-image"), first.Read(ctx, "#add-left", "works once"))
	look("invite", first)
	link := Camera(t, first, "#add-image")
	if u, err := url.Parse(link); err != nil || !strings.HasPrefix(u.Fragment, "c=") {
		t.Fatalf("the QR code says %q: want an invitation", link)
	}
	third := open(browser.Phone, IPad)
	Do(t, third.Go(ctx, link), third.Read(ctx, "#me", "iPad"), third.Read(ctx, "#me", "guest"), third.Miss(ctx, "#add"))
	var address string
	if Do(t, third.Eval(ctx, "location.href", &address)); strings.Contains(address, "#") {
		t.Errorf("the address still holds the invitation: %s", address)
	}
	Do(t, first.Click(ctx, "#add-end"), first.See(ctx, "#add-qr"), first.Read(ctx, "#client-list", "iPad"))
	fourth := open(browser.Phone, Pixel)
	Do(t, fourth.Go(ctx, link), fourth.See(ctx, "#join-error"), fourth.Read(ctx, "#join-error", "invitation"))
	look("used invitation", fourth)

	// An event arrives everywhere.
	Do(t, d.Notify("zone", "motion in the hall"))
	for _, p := range []*browser.Page{first, second, third} {
		Do(t, p.Read(ctx, "#event-list", "motion in the hall"), p.Read(ctx, "#event-list", "zone"))
	}
	look("events", first)

	// The second phone is revoked, and its page says so.
	row := "#client-list > li:has(input[value='iPhone'])"
	Do(t, first.Click(ctx, row+" summary"), first.Click(ctx, row+" .danger"), first.Read(ctx, row+" .confirm", "Revoke iPhone?"))
	look("revoke", first)
	Do(t, first.Click(ctx, row+" .confirm .danger"), first.Miss(ctx, row), second.Read(ctx, "#notice", "not paired any more"), second.See(ctx, "#join"), second.Miss(ctx, "#people"))
	look("revoked", second)
	Do(t, first.Read(ctx, "#security-list", "Revoked"), first.Read(ctx, "#security-list", "Paired"))
	look("home", first)
	Do(t, first.Go(ctx, d.URL+Path), first.Read(ctx, "#client-list", "iPad"), first.Read(ctx, "#event-list", "motion in the hall"))
	Steady(t, first)
	Do(t, first.Show(ctx, browser.Desktop))
	look("home on a desktop", first)

	// The guest signs out and is a stranger again.
	Do(t, third.Click(ctx, "#out"), third.Click(ctx, "#me .confirm .danger"), third.Miss(ctx, "#me"), third.See(ctx, "#join"))
}

// Camera reads a QR code off the screen.
func Camera(t *testing.T, p *browser.Page, selector string) string {
	t.Helper()
	zbar, err := exec.LookPath("zbarimg")
	if err != nil {
		t.Skip("zbarimg is not installed (Debian: zbar-tools)")
	}
	Do(t, p.See(t.Context(), selector), p.Eval(t.Context(), fmt.Sprintf("(e => (e.scrollIntoView({block: 'center', behavior: 'instant'}), e.decode?.()))(document.querySelector(%q))", selector), nil))
	png, err := p.Screenshot(t.Context(), false)
	Do(t, err)
	file := filepath.Join(t.TempDir(), "screen.png")
	Do(t, os.WriteFile(file, png, 0o600))
	var complaints bytes.Buffer
	cmd := exec.CommandContext(t.Context(), zbar, "--quiet", "--raw", "--oneshot", "-Sdisable", "-Sqrcode.enable", file)
	cmd.Stderr = &complaints
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("zbarimg reads nothing off the screen: %v\n%s", err, complaints.Bytes())
	}
	return strings.TrimSpace(string(out))
}

// digits reads a comparison code.
func digits(ctx context.Context, t *testing.T, p *browser.Page, selector string) string {
	t.Helper()
	text, err := p.Text(ctx, selector)
	Do(t, err)
	code := only(text)
	if len(code) != 6 {
		t.Fatalf("%s shows %q: want a code of 6 digits", selector, text)
	}
	return code
}

// only keeps the digits.
func only(s string) string {
	return strings.Map(func(r rune) rune {
		if r < '0' || r > '9' {
			return -1
		}
		return r
	}, s)
}

// audit lists what makes a page hard to use, as far as a program can see it.
const audit = `(() => {
	const bad = []
	const seen = e => e.checkVisibility({visibilityProperty: true}) && e.getClientRects().length
	const name = e => e.tagName.toLowerCase() + (e.id ? '#' + e.id : '') + ' "' + (e.innerText || '').slice(0, 30) + '"'
	if (document.documentElement.scrollWidth > document.documentElement.clientWidth) bad.push('wider than the screen: ' + document.documentElement.scrollWidth + ' > ' + document.documentElement.clientWidth)
	for (const e of document.querySelectorAll('a, button, input, select, summary')) {
		if (!seen(e)) continue
		const r = e.getBoundingClientRect()
		if (r.height < 40 || r.width < 40) bad.push('target of ' + r.width + 'x' + r.height + ': ' + name(e))
		const label = e.getAttribute('aria-label') || (e.labels?.length ? e.labels[0].innerText : /^(INPUT|SELECT)$/.test(e.tagName) ? '' : e.innerText)
		if (!label?.trim()) bad.push('no label: ' + name(e))
	}
	for (const e of document.querySelectorAll('img')) if (seen(e) && !e.alt) bad.push('no alt: ' + name(e))
	for (const e of document.querySelectorAll('progress')) if (seen(e) && !e.getAttribute('aria-label')) bad.push('no label: ' + name(e))
	const ids = [...document.querySelectorAll('[id]')].map(e => e.id)
	for (const id of ids) if (ids.indexOf(id) !== ids.lastIndexOf(id)) bad.push('id used twice: ' + id)
	for (const e of document.querySelectorAll('[aria-labelledby]')) if (!document.getElementById(e.getAttribute('aria-labelledby'))) bad.push('labelled by nothing: ' + name(e))
	const levels = [...document.querySelectorAll('h1, h2, h3')].filter(seen).map(e => +e.tagName[1])
	if (levels[0] !== 1 || levels.filter(l => l === 1).length !== 1) bad.push('headings: ' + levels)

	// Contrast of text (WCAG 2.1 §1.4.3): 4.5, or 3 for large text. What is disabled does not count.
	const canvas = new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true})
	const over = colours => { // paints colours over each other
		canvas.clearRect(0, 0, 1, 1)
		for (const c of colours) { canvas.fillStyle = c; canvas.fillRect(0, 0, 1, 1) }
		return [...canvas.getImageData(0, 0, 1, 1).data]
	}
	const light = ([r, g, b]) => {
		const [x, y, z] = [r, g, b].map(v => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
		return .2126 * x + .7152 * y + .0722 * z
	}
	const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT)
	const done = new Set
	for (let n; n = walker.nextNode();) {
		const e = n.parentElement
		if (!n.data.trim() || done.has(e) || !seen(e) || e.closest('script, noscript, option, :disabled')) continue
		done.add(e)
		const layers = []
		for (let p = e; p; p = p.parentElement) layers.unshift(getComputedStyle(p).backgroundColor)
		const style = getComputedStyle(e), back = over(layers), front = over([...layers, style.color])
		const [a, b] = [light(front), light(back)].sort((x, y) => y - x)
		const size = parseFloat(style.fontSize), large = size >= 24 || size >= 18.66 && style.fontWeight >= 700
		const ratio = (a + .05) / (b + .05)
		if (ratio < (large ? 3 : 4.5)) bad.push('contrast ' + ratio.toFixed(2) + ': ' + name(e))
	}
	return bad
})()`

// Flaws lists what makes the page hard to use on a phone: controls without a label or too small for
// a finger (40 CSS pixels), text that hardly differs from its ground, a page wider than the screen.
func Flaws(ctx context.Context, p *browser.Page) ([]string, error) {
	var flaws []string
	err := p.Eval(ctx, audit, &flaws)
	return flaws, err
}

// Check reports the Flaws of a page in a state.
func Check(t *testing.T, p *browser.Page, name string) {
	t.Helper()
	flaws, err := Flaws(t.Context(), p)
	Do(t, err)
	for _, f := range flaws {
		t.Errorf("page %q: %s", name, f)
	}
}

// Steady reports parts that moved by themselves while the page loaded: who taps then hits the wrong one.
func Steady(t *testing.T, p *browser.Page) {
	t.Helper()
	var shift json.Number
	// The Layout Instability API leaves out what a tap caused.
	Do(t, p.Eval(t.Context(), `new Promise(done => {
		let sum = 0
		new PerformanceObserver(list => { for (const e of list.getEntries()) if (!e.hadRecentInput) sum += e.value }).observe({type: 'layout-shift', buffered: true})
		setTimeout(() => done(sum), 50)
	})`, &shift))
	if v, err := shift.Float64(); err != nil || v > 0.1 {
		t.Errorf("the page moved by %s while it loaded, want at most 0.1", shift)
	}
}
