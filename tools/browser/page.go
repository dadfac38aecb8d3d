package browser

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"time"
)

// Page is one tab in a profile of its own: its cookies are its own, so two pages are like two phones.
type Page struct {
	b       *Browser
	session string

	mu         sync.Mutex // guards what follows
	complaints []string
	gaveUp     error // after a wait that took all Patience, no other begins: a walk would take hours to fail
}

// Screen is what a page is shown on.
type Screen struct {
	Width, Height int     // CSS pixels
	Scale         float64 // device pixels per CSS pixel; 0 is 1
	Touch         bool    // a phone
	Dark          bool    // prefers-color-scheme
	Still         bool    // prefers-reduced-motion
}

// Screens that pages are looked at on.
var (
	Phone   = Screen{Width: 390, Height: 844, Scale: 2, Touch: true}
	Small   = Screen{Width: 360, Height: 640, Scale: 2, Touch: true}
	Desktop = Screen{Width: 1280, Height: 800, Scale: 1}
)

type object map[string]any

// Open opens an empty tab on a screen, with no cookies of others. Its user agent is that of the
// browser unless userAgent says another.
func (b *Browser) Open(ctx context.Context, s Screen, userAgent string) (*Page, error) {
	var profile struct {
		ID string `json:"browserContextId"`
	}
	if err := b.call(ctx, "", "Target.createBrowserContext", object{"disposeOnDetach": true}, &profile); err != nil {
		return nil, err
	}
	var target struct {
		ID string `json:"targetId"`
	}
	if err := b.call(ctx, "", "Target.createTarget", object{"url": "about:blank", "browserContextId": profile.ID}, &target); err != nil {
		return nil, err
	}
	var session struct {
		ID string `json:"sessionId"`
	}
	if err := b.call(ctx, "", "Target.attachToTarget", object{"targetId": target.ID, "flatten": true}, &session); err != nil {
		return nil, err
	}
	p := &Page{b: b, session: session.ID}
	b.mu.Lock()
	b.pages[p.session] = p
	b.mu.Unlock()
	for _, domain := range []string{"Page", "Runtime", "Log", "Network"} {
		if err := p.call(ctx, domain+".enable", nil, nil); err != nil {
			return nil, err
		}
	}
	if userAgent != "" {
		if err := p.call(ctx, "Emulation.setUserAgentOverride", object{"userAgent": userAgent}, nil); err != nil {
			return nil, err
		}
	}
	return p, p.Show(ctx, s)
}

func (p *Page) call(ctx context.Context, method string, params, result any) error {
	p.mu.Lock()
	err := p.gaveUp
	p.mu.Unlock()
	if err != nil {
		return err
	}
	return p.b.call(ctx, p.session, method, params, result)
}

// lost reports whether the page was given up.
func (p *Page) lost() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.gaveUp != nil
}

// late makes the error of a wait that has ended: what the page shows tells more than the deadline.
func (p *Page) late(parent, ctx context.Context, what string, last error) error {
	look, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
	defer cancel()
	text, _ := p.Text(look, "body")
	err := fmt.Errorf("%s: %w (%v); the page shows:\n%s\nand says: %q", what, context.Cause(ctx), last, text, p.Complaints())
	if parent.Err() == nil {
		p.mu.Lock()
		p.gaveUp = fmt.Errorf("given up after: %w", err)
		p.mu.Unlock()
	}
	return err
}

// Show moves the page to another screen.
func (p *Page) Show(ctx context.Context, s Screen) error {
	scale := s.Scale
	if scale == 0 {
		scale = 1
	}
	err := p.call(ctx, "Emulation.setDeviceMetricsOverride",
		object{"width": s.Width, "height": s.Height, "deviceScaleFactor": scale, "mobile": s.Touch}, nil)
	if err != nil {
		return err
	}
	colours, motion := "light", "no-preference"
	if s.Dark {
		colours = "dark"
	}
	if s.Still {
		motion = "reduce"
	}
	return p.call(ctx, "Emulation.setEmulatedMedia", object{"features": []object{
		{"name": "prefers-color-scheme", "value": colours}, {"name": "prefers-reduced-motion", "value": motion},
	}}, nil)
}

// event takes note of what Chromium says of the page.
func (p *Page) event(method string, params json.RawMessage) {
	var e struct {
		Type      string `json:"type"`
		Exception struct {
			Text      string `json:"text"`
			Exception struct {
				Description string `json:"description"`
			} `json:"exception"`
		} `json:"exceptionDetails"`
		Args []struct {
			Value       any    `json:"value"`
			Description string `json:"description"`
		} `json:"args"`
		Entry struct {
			Source, Level, Text, URL string
		} `json:"entry"`
	}
	if json.Unmarshal(params, &e) != nil {
		return
	}
	var complaint string
	switch method {
	case "Runtime.exceptionThrown":
		complaint = e.Exception.Text + " " + e.Exception.Exception.Description
	case "Runtime.consoleAPICalled":
		if e.Type != "error" && e.Type != "warning" && e.Type != "assert" {
			return
		}
		complaint = "console." + e.Type
		for _, a := range e.Args {
			complaint += fmt.Sprint(" ", a.Value, " ", a.Description)
		}
	case "Log.entryAdded":
		// That an answer was 401 or that a server was away is not the page's fault.
		if e.Entry.Source == "network" || e.Entry.Level != "error" && e.Entry.Level != "warning" {
			return
		}
		complaint = e.Entry.Source + ": " + e.Entry.Text + " " + e.Entry.URL
	default:
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.complaints) < 100 {
		p.complaints = append(p.complaints, strings.TrimSpace(complaint))
	}
}

// Complaints returns what the console had to say since the tab was opened: uncaught exceptions,
// errors and warnings, violations of the Content-Security-Policy. Failed requests are not in it.
func (p *Page) Complaints() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.complaints...)
}

// Go opens an address and waits until the document is complete.
func (p *Page) Go(ctx context.Context, url string) error {
	var answer struct {
		ErrorText string `json:"errorText"`
	}
	if err := p.call(ctx, "Page.navigate", object{"url": url}, &answer); err != nil {
		return err
	}
	if answer.ErrorText != "" {
		return fmt.Errorf("open %s: %s", url, answer.ErrorText)
	}
	return p.Wait(ctx, "document.readyState === 'complete' && location.href !== 'about:blank'")
}

// Offline cuts the page from the network, or connects it again.
func (p *Page) Offline(ctx context.Context, off bool) error {
	return p.call(ctx, "Network.emulateNetworkConditions",
		object{"offline": off, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}, nil)
}

// Eval evaluates a JavaScript expression in the page, awaits it if it is a promise, and reads
// its value, which must have a JSON form, into v unless nil.
func (p *Page) Eval(ctx context.Context, expression string, v any) error {
	var answer struct {
		Result struct {
			Value json.RawMessage `json:"value"`
		} `json:"result"`
		Exception *struct {
			Text      string `json:"text"`
			Exception struct {
				Description string `json:"description"`
			} `json:"exception"`
		} `json:"exceptionDetails"`
	}
	err := p.call(ctx, "Runtime.evaluate",
		object{"expression": expression, "returnByValue": true, "awaitPromise": true, "userGesture": true}, &answer)
	if err != nil {
		return err
	}
	if e := answer.Exception; e != nil {
		return fmt.Errorf("evaluate %.200s: %s %s", expression, e.Text, e.Exception.Description)
	}
	if v == nil {
		return nil
	}
	if len(answer.Result.Value) == 0 {
		answer.Result.Value = json.RawMessage("null") // undefined
	}
	if err := json.Unmarshal(answer.Result.Value, v); err != nil {
		return fmt.Errorf("read the value of %.200s: %w", expression, err)
	}
	return nil
}

// Wait waits until a JavaScript expression is true. An error in it counts as not yet: the
// document may be on its way. When it does not become true in time the error tells what the page shows.
func (p *Page) Wait(parent context.Context, expression string) error {
	ctx, cancel := context.WithTimeout(parent, Patience)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		var ok bool
		err := p.Eval(ctx, "Boolean("+expression+")", &ok)
		if err == nil && ok {
			return nil
		}
		if p.lost() {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return p.late(parent, ctx, fmt.Sprintf("wait for %.200s", expression), err)
		}
	}
}

// visible is the JavaScript for "the element that a selector names, if a person can see it".
func visible(selector string) string {
	return fmt.Sprintf("[...document.querySelectorAll(%s)].find(e => e.checkVisibility({visibilityProperty: true}))", quote(selector))
}

// See waits until an element that the CSS selector names can be seen.
func (p *Page) See(ctx context.Context, selector string) error {
	return p.Wait(ctx, visible(selector))
}

// Miss waits until no element that the CSS selector names can be seen.
func (p *Page) Miss(ctx context.Context, selector string) error {
	return p.Wait(ctx, "!"+visible(selector))
}

// Read waits until an element that the CSS selector names can be seen and holds a text.
func (p *Page) Read(ctx context.Context, selector, text string) error {
	return p.Wait(ctx, fmt.Sprintf("[...document.querySelectorAll(%s)].some(e => e.checkVisibility({visibilityProperty: true}) && e.innerText.includes(%s))",
		quote(selector), quote(text)))
}

// Text returns what the first visible element that the CSS selector names shows, or "".
func (p *Page) Text(ctx context.Context, selector string) (string, error) {
	var text string
	err := p.Eval(ctx, "("+visible(selector)+")?.innerText ?? ''", &text)
	return text, err
}

// Click waits until the element can be seen and is not disabled, brings it into view and clicks
// on its middle, if nothing else lies over it there.
func (p *Page) Click(ctx context.Context, selector string) error {
	at, err := p.reach(ctx, selector)
	if err != nil {
		return err
	}
	for _, kind := range []string{"mouseMoved", "mousePressed", "mouseReleased"} {
		o := object{"type": kind, "x": at[0], "y": at[1], "clickCount": 1}
		if kind != "mouseMoved" {
			o["button"] = "left"
		}
		if err := p.call(ctx, "Input.dispatchMouseEvent", o, nil); err != nil {
			return err
		}
	}
	return nil
}

// reach waits until an element could be clicked and returns where.
func (p *Page) reach(parent context.Context, selector string) ([]float64, error) {
	var at []float64
	find := `(() => {
		const e = ` + visible(selector) + `
		if (!e || e.disabled) return null
		e.scrollIntoView({block: 'center', behavior: 'instant'})
		const r = e.getBoundingClientRect(), x = r.x + r.width/2, y = r.y + r.height/2
		const hit = document.elementFromPoint(x, y)
		if (!e.contains(hit) && !hit?.contains(e)) return null
		// Two looks at the same place: nothing is moving.
		return new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => {
			const s = e.getBoundingClientRect()
			done(Math.abs(s.x - r.x) + Math.abs(s.y - r.y) < 1 ? [x, y] : null)
		})))
	})()`
	ctx, cancel := context.WithTimeout(parent, Patience)
	defer cancel()
	for {
		err := p.Eval(ctx, find, &at)
		if err == nil && at != nil {
			return at, nil
		}
		if p.lost() {
			return nil, err
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return nil, p.late(parent, ctx, "reach "+selector, err)
		}
	}
}

// Fill clicks into a text field and types a text in place of what is there.
func (p *Page) Fill(ctx context.Context, selector, text string) error {
	if err := p.Click(ctx, selector); err != nil {
		return err
	}
	if err := p.Eval(ctx, visible(selector)+".select()", nil); err != nil {
		return err
	}
	return p.call(ctx, "Input.insertText", object{"text": text}, nil)
}

// Choose chooses a value of a select element.
func (p *Page) Choose(ctx context.Context, selector, value string) error {
	if err := p.See(ctx, selector); err != nil {
		return err
	}
	var ok bool
	err := p.Eval(ctx, fmt.Sprintf(`(e => {
		e.value = %s
		e.dispatchEvent(new Event('input', {bubbles: true}))
		e.dispatchEvent(new Event('change', {bubbles: true}))
		return e.value === %[1]s
	})(%s)`, quote(value), visible(selector)), &ok)
	if err == nil && !ok {
		err = fmt.Errorf("choose in %s: it has no %q", selector, value)
	}
	return err
}

// Press presses a key, such as "Tab", "Enter" or "Escape".
func (p *Page) Press(ctx context.Context, key string) error {
	code := map[string]int{"Tab": 9, "Enter": 13, "Escape": 27, " ": 32}[key]
	text := map[string]string{"Enter": "\r", " ": " "}[key]
	for _, kind := range []string{"keyDown", "keyUp"} {
		o := object{"type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code}
		if kind == "keyDown" && text != "" {
			o["text"] = text
		}
		if err := p.call(ctx, "Input.dispatchKeyEvent", o, nil); err != nil {
			return err
		}
	}
	return nil
}

// Screenshot returns a picture (PNG) of what the screen shows, or of the whole page.
func (p *Page) Screenshot(ctx context.Context, whole bool) ([]byte, error) {
	var shot struct {
		Data []byte `json:"data"` // base64 in JSON
	}
	err := p.call(ctx, "Page.captureScreenshot", object{"format": "png", "captureBeyondViewport": whole}, &shot)
	return shot.Data, err
}

// quote writes a JavaScript string.
func quote(s string) string {
	text, _ := json.Marshal(s) // a string always has a JSON form
	return string(text)
}
