// Package sample is a maker's REST service as makers write them: an irrigation
// controller on plain HTTP, which knows nothing of TLS, phones or relays. The demo, the
// tests and the benchmarks put it behind the gateway as the origin.
//
//	GET  /device               who this is, with fields that only its maker knows
//	GET  /zones                all zones; ETag, If-None-Match
//	GET  /zones/{n}            one zone; PUT changes its name, minutes, enabled (If-Match)
//	POST /zones/{n}/start      water now; {"minutes": 5}
//	POST /zones/{n}/stop
//	GET  /program              the weekly program; PUT replaces it (If-Match)
//	GET  /watering/log         ?from=2026-05-01&days=7
//	GET  /weather              slow too, a tenth of that; may be kept for two seconds (Cache-Control)
//	GET  /diagnostics          slow: valves are tried one by one
//	GET  /events               zone states as Server-Sent Events
//	GET  /ws                   WebSocket: echoes; ?state=1 also sends zone states
//	GET  /firmware             ?size=1048576: that many bytes, always the same; ranges
//	POST /upload               counts and hashes the body
//	POST /factory/connect      apiFactoryConnect: join the factory's network (package tether/provisioning)
//	GET  /factory/connect      which one it joined
//	     /echo                 what the service saw of the request
//
// State is in memory and starts the same each time.
package sample

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	// Name is what GET /device calls the controller.
	Name = "Garden irrigation"
	// Zones is how many zones the controller has, numbered from 1.
	Zones = 6
	// MaxMinutes is the longest watering.
	MaxMinutes = 240
	// MaxLogDays is the longest stretch of GET /watering/log.
	MaxLogDays = 366
	// WeatherPath is what is polled, and WeatherAge how old an answer of it may be.
	WeatherPath = "/weather"
	WeatherAge  = 2 * time.Second
	// MaxBody is the size of the largest JSON body taken, in bytes.
	MaxBody = 64 << 10

	maxName       = 64 // bytes
	minPhrase     = 8  // bytes of a WPA passphrase (IEEE 802.11 §J.4)
	maxPhrase     = 64
	maxStarts     = 8
	litresPerMin  = 12.5
	defaultSlow   = 3 * time.Second
	defaultMinute = time.Minute
)

// Config is what a Controller can be told; the zero value is fine.
type Config struct {
	// Notify is called with one line of text at each change ("zone 2 started, 10 min"),
	// in order, while the controller is locked: it must not block nor call back.
	Notify func(line string)
	// Slow is how long GET /diagnostics takes, and GET /weather a tenth of it; default 3 s.
	Slow time.Duration
	// Minute is how long a watering minute lasts, shorter in tests; default 1 min.
	Minute time.Duration
	// Now is the clock; default time.Now.
	Now func() time.Time
}

// Zone is one valve with its sprinklers.
type Zone struct {
	ID        int    `json:"id"`
	Name      string `json:"name"`
	Enabled   bool   `json:"enabled"`
	Minutes   int    `json:"minutes"`   // of one watering in the program
	State     string `json:"state"`     // "idle" or "watering"
	Remaining int    `json:"remaining"` // minutes of this watering, rounded up
}

// Program is when to water by itself.
type Program struct {
	Enabled  bool     `json:"enabled"`
	Starts   []string `json:"starts"` // "06:00", local time of the garden
	Days     []string `json:"days"`   // "mon" to "sun"
	RainSkip bool     `json:"rainSkip"`
}

// Watering is an entry of the log.
type Watering struct {
	Zone    int       `json:"zone"`
	Start   time.Time `json:"start"`
	Minutes int       `json:"minutes"`
	Litres  float64   `json:"litres"`
	Cause   string    `json:"cause"` // "program" or "manual"
}

// Controller is the service, an http.Handler. It is safe for concurrent use.
type Controller struct {
	cfg Config
	mux *http.ServeMux

	mu      sync.Mutex // guards all below
	zones   [Zones]zone
	program Program
	version int // of the program, for its ETag
	manual  []Watering
	factory Joined
	changed chan struct{} // closed and replaced at each change
	wake    chan struct{} // tells Run that an end may have come nearer; holds one
}

type zone struct {
	Zone
	until   time.Time // while watering
	begun   time.Time
	version int // counts changes, from 1
}

var weekdays = []string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"} // as time.Weekday

// maxManual bounds the log of waterings by hand; the oldest are dropped.
const maxManual = 1000

// New makes a controller; Run makes its waterings end.
func New(cfg Config) *Controller {
	if cfg.Slow == 0 {
		cfg.Slow = defaultSlow
	}
	if cfg.Minute == 0 {
		cfg.Minute = defaultMinute
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	c := &Controller{
		cfg:     cfg,
		program: Program{Enabled: true, Starts: []string{"06:00", "21:30"}, Days: []string{"mon", "wed", "fri"}, RainSkip: true},
		version: 1,
		changed: make(chan struct{}),
		wake:    make(chan struct{}, 1),
	}
	for i, name := range [Zones]string{"Front lawn", "Roses", "Vegetables", "Hedge", "Greenhouse", "Orchard"} {
		c.zones[i] = zone{Zone: Zone{ID: i + 1, Name: name, Enabled: true, Minutes: 10 + 2*i, State: "idle"}, version: 1}
	}
	m := http.NewServeMux()
	m.HandleFunc("GET /{$}", c.home)
	m.HandleFunc("GET /device", c.device)
	m.HandleFunc("GET /zones", c.getZones)
	m.HandleFunc("GET /zones/{n}", c.getZone)
	m.HandleFunc("PUT /zones/{n}", c.putZone)
	m.HandleFunc("POST /zones/{n}/start", c.start)
	m.HandleFunc("POST /zones/{n}/stop", c.stop)
	m.HandleFunc("GET /program", c.getProgram)
	m.HandleFunc("PUT /program", c.putProgram)
	m.HandleFunc("GET /watering/log", c.log)
	m.HandleFunc("GET /diagnostics", c.diagnostics)
	m.HandleFunc("GET "+WeatherPath, c.weather)
	m.HandleFunc("GET /events", c.events)
	m.HandleFunc("GET /ws", c.webSocket)
	m.HandleFunc("GET /firmware", c.firmware)
	m.HandleFunc("POST /upload", c.upload)
	m.HandleFunc("PUT /upload", c.upload)
	m.HandleFunc("POST /factory/connect", c.join)
	m.HandleFunc("GET /factory/connect", c.joined)
	m.HandleFunc("/echo", c.echo)
	c.mux = m
	return c
}

// ServeHTTP answers one request.
func (c *Controller) ServeHTTP(w http.ResponseWriter, r *http.Request) { c.mux.ServeHTTP(w, r) }

// Run ends waterings when their minutes are over, until ctx is done; it returns nil.
func (c *Controller) Run(ctx context.Context) error {
	for {
		c.mu.Lock()
		c.settle()
		next := time.Hour
		for i := range c.zones {
			if z := &c.zones[i]; z.State == "watering" {
				next = min(next, z.until.Sub(c.cfg.Now()))
			}
		}
		c.mu.Unlock()
		t := time.NewTimer(max(next, 0))
		select {
		case <-ctx.Done():
			t.Stop()
			return nil
		case <-c.wake:
			t.Stop()
		case <-t.C:
		}
	}
}

// settle ends the waterings whose time is over. c.mu is held.
func (c *Controller) settle() {
	now := c.cfg.Now()
	for i := range c.zones {
		if z := &c.zones[i]; z.State == "watering" && !now.Before(z.until) {
			c.finish(z, z.until)
		}
	}
}

// finish ends one watering. c.mu is held.
func (c *Controller) finish(z *zone, at time.Time) {
	minutes := int((at.Sub(z.begun) + c.cfg.Minute - 1) / c.cfg.Minute)
	if len(c.manual) == maxManual {
		c.manual = slices.Delete(c.manual, 0, 1)
	}
	c.manual = append(c.manual, Watering{z.ID, z.begun.UTC().Truncate(time.Second), minutes, litresPerMin * float64(minutes), "manual"})
	z.State = "idle"
	c.change(z, "zone %d stopped", z.ID)
}

// change counts a change of z and tells everyone. c.mu is held.
func (c *Controller) change(z *zone, format string, args ...any) {
	if z != nil {
		z.version++
	}
	close(c.changed)
	c.changed = make(chan struct{})
	select {
	case c.wake <- struct{}{}:
	default:
	}
	if c.cfg.Notify != nil {
		c.cfg.Notify(fmt.Sprintf(format, args...))
	}
}

// view is z as clients see it. c.mu is held.
func (c *Controller) view(z *zone) Zone {
	v := z.Zone
	if v.State == "watering" {
		v.Remaining = int((z.until.Sub(c.cfg.Now()) + c.cfg.Minute - 1) / c.cfg.Minute)
	}
	return v
}

func (c *Controller) device(w http.ResponseWriter, r *http.Request) {
	tagged(w, r, `"device-2"`, map[string]any{
		"name": Name, "manufacturer": "Rainmaker Works", "version": "2.4.1", "revision": "C",
		"api": "v1", "email": "owner@example.com", "apiFactoryConnect": "/factory/connect",
		// Only the maker knows these; they travel to the relay as they are.
		"zones": Zones, "location": map[string]any{"lat": 45.07, "lon": 7.68}, "valves": []string{"24VAC", "latching"},
	})
}

// Joined is the answer of GET /factory/connect. A real controller would tell its network
// manager; this one has only the network of its machine, and remembers what it was told.
type Joined struct {
	SSID    string `json:"ssid"`
	Station string `json:"station"` // empty: it was never asked
	Asked   int    `json:"asked"`   // how often
}

// join takes what the gateway says in the factory: 202 the first time, as a service that
// has to wait for its Wi-Fi, 200 when it is asked again.
func (c *Controller) join(w http.ResponseWriter, r *http.Request) {
	var in struct{ SSID, Passphrase, Security, Station string }
	if !decode(w, r, &in) {
		return
	}
	if in.Passphrase != "" && (len(in.Passphrase) < minPhrase || len(in.Passphrase) > maxPhrase) {
		fail(w, http.StatusBadRequest, "passphrase: want %d to %d bytes", minPhrase, maxPhrase)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	status := http.StatusAccepted
	if c.factory.SSID == in.SSID && c.factory.Asked > 0 {
		status = http.StatusOK
	}
	c.factory = Joined{in.SSID, in.Station, c.factory.Asked + 1}
	answer(w, status, c.factory)
}

func (c *Controller) joined(w http.ResponseWriter, _ *http.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	answer(w, http.StatusOK, c.factory)
}

func (c *Controller) getZones(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	c.settle()
	views, tag := make([]Zone, 0, Zones), ""
	for i := range c.zones {
		views = append(views, c.view(&c.zones[i]))
		tag += "." + strconv.Itoa(c.zones[i].version) + "-" + strconv.Itoa(views[i].Remaining)
	}
	c.mu.Unlock()
	tagged(w, r, `"zones`+tag+`"`, views)
}

// find is the zone that the path names, or nil after a 404.
func (c *Controller) find(w http.ResponseWriter, r *http.Request) *zone {
	n, err := strconv.Atoi(r.PathValue("n"))
	if err != nil || n < 1 || n > Zones {
		fail(w, http.StatusNotFound, "no zone %q: zones are 1 to %d", r.PathValue("n"), Zones)
		return nil
	}
	return &c.zones[n-1]
}

func zoneTag(z *zone, view Zone) string {
	return fmt.Sprintf(`"zone-%d.%d-%d"`, z.ID, z.version, view.Remaining)
}

func (c *Controller) getZone(w http.ResponseWriter, r *http.Request) {
	z := c.find(w, r)
	if z == nil {
		return
	}
	c.mu.Lock()
	c.settle()
	view := c.view(z)
	tag := zoneTag(z, view)
	c.mu.Unlock()
	tagged(w, r, tag, view)
}

func (c *Controller) putZone(w http.ResponseWriter, r *http.Request) {
	z := c.find(w, r)
	if z == nil {
		return
	}
	var in struct {
		Name    *string
		Minutes *int
		Enabled *bool
	}
	if !decode(w, r, &in) {
		return
	}
	switch {
	case in.Name != nil && (*in.Name == "" || len(*in.Name) > maxName || strings.ContainsAny(*in.Name, "\r\n")):
		fail(w, http.StatusBadRequest, "name: want one line of 1 to %d bytes", maxName)
		return
	case in.Minutes != nil && (*in.Minutes < 1 || *in.Minutes > MaxMinutes):
		fail(w, http.StatusBadRequest, "minutes: want 1 to %d", MaxMinutes)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.settle()
	if !ifMatch(w, r, zoneTag(z, c.view(z))) {
		return
	}
	if in.Name != nil {
		z.Name = *in.Name
	}
	if in.Minutes != nil {
		z.Minutes = *in.Minutes
	}
	if in.Enabled != nil {
		z.Enabled = *in.Enabled
	}
	c.change(z, "zone %d changed", z.ID)
	view := c.view(z)
	w.Header().Set("ETag", zoneTag(z, view))
	answer(w, http.StatusOK, view)
}

func (c *Controller) start(w http.ResponseWriter, r *http.Request) {
	z := c.find(w, r)
	if z == nil {
		return
	}
	in := struct{ Minutes int }{}
	if r.ContentLength != 0 && !decode(w, r, &in) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.settle()
	if in.Minutes == 0 {
		in.Minutes = z.Minutes
	}
	switch {
	case in.Minutes < 1 || in.Minutes > MaxMinutes:
		fail(w, http.StatusBadRequest, "minutes: want 1 to %d", MaxMinutes)
		return
	case !z.Enabled:
		fail(w, http.StatusConflict, "zone %d is not enabled", z.ID)
		return
	case z.State == "watering":
		fail(w, http.StatusConflict, "zone %d is being watered already", z.ID)
		return
	}
	z.State, z.begun = "watering", c.cfg.Now()
	z.until = z.begun.Add(time.Duration(in.Minutes) * c.cfg.Minute)
	c.change(z, "zone %d started, %d min", z.ID, in.Minutes)
	answer(w, http.StatusAccepted, c.view(z))
}

func (c *Controller) stop(w http.ResponseWriter, r *http.Request) {
	z := c.find(w, r)
	if z == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.settle()
	if z.State == "watering" {
		c.finish(z, c.cfg.Now())
	}
	answer(w, http.StatusOK, c.view(z))
}

func (c *Controller) programTag() string { return fmt.Sprintf(`"program-%d"`, c.version) }

func (c *Controller) getProgram(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	p, tag := c.program, c.programTag()
	c.mu.Unlock()
	tagged(w, r, tag, p)
}

func (c *Controller) putProgram(w http.ResponseWriter, r *http.Request) {
	var in Program
	if !decode(w, r, &in) {
		return
	}
	if err := in.validate(); err != nil {
		fail(w, http.StatusBadRequest, "%v", err)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !ifMatch(w, r, c.programTag()) {
		return
	}
	c.program = in
	c.version++
	c.change(nil, "program changed")
	w.Header().Set("ETag", c.programTag())
	answer(w, http.StatusOK, in)
}

func (p Program) validate() error {
	if len(p.Starts) > maxStarts {
		return fmt.Errorf("starts: at most %d", maxStarts)
	}
	for _, s := range p.Starts {
		if _, err := time.Parse("15:04", s); err != nil {
			return fmt.Errorf("starts: %q is no time of day such as 06:30", s)
		}
	}
	if len(p.Days) > len(weekdays) {
		return fmt.Errorf("days: at most %d", len(weekdays))
	}
	for _, d := range p.Days {
		if !slices.Contains(weekdays, d) {
			return fmt.Errorf("days: %q is none of mon, tue, wed, thu, fri, sat, sun", d)
		}
	}
	return nil
}

// log answers with what the program watered on those days, the same for the same
// question, and with what was watered by hand since the start.
func (c *Controller) log(w http.ResponseWriter, r *http.Request) {
	now := c.cfg.Now().UTC()
	from, days := now.Truncate(24*time.Hour).AddDate(0, 0, -6), 7
	var err error
	if s := r.URL.Query().Get("from"); s != "" {
		if from, err = time.Parse(time.DateOnly, s); err != nil {
			fail(w, http.StatusBadRequest, "from: %q is no date such as 2026-05-01", s)
			return
		}
	}
	if s := r.URL.Query().Get("days"); s != "" {
		if days, err = strconv.Atoi(s); err != nil || days < 1 || days > MaxLogDays {
			fail(w, http.StatusBadRequest, "days: want 1 to %d", MaxLogDays)
			return
		}
	}
	to := from.AddDate(0, 0, days)
	c.mu.Lock()
	c.settle()
	p, zones, manual := c.program, c.zones, slices.Clone(c.manual)
	c.mu.Unlock()

	entries := []Watering{}
	for day := from; day.Before(to); day = day.AddDate(0, 0, 1) {
		if !p.Enabled || !slices.Contains(p.Days, weekdays[day.Weekday()]) || p.RainSkip && rained(day) {
			continue
		}
		for _, s := range slices.Sorted(slices.Values(p.Starts)) {
			clock, _ := time.Parse("15:04", s) // validated
			at := day.Add(time.Duration(clock.Hour())*time.Hour + time.Duration(clock.Minute())*time.Minute)
			for i := range zones {
				z := &zones[i]
				if z.Enabled && at.Before(now) {
					entries = append(entries, Watering{z.ID, at, z.Minutes, litresPerMin * float64(z.Minutes), "program"})
				}
				at = at.Add(time.Duration(z.Minutes) * time.Minute)
			}
		}
	}
	for _, e := range manual {
		if !e.Start.Before(from) && e.Start.Before(to) {
			entries = append(entries, e)
		}
	}
	slices.SortStableFunc(entries, func(a, b Watering) int { return a.Start.Compare(b.Start) })
	answer(w, http.StatusOK, map[string]any{"from": from.Format(time.DateOnly), "days": days, "waterings": entries})
}

// rained says whether it rained that day: about one in five, always the same ones.
func rained(day time.Time) bool {
	sum := sha256.Sum256([]byte(day.Format(time.DateOnly)))
	return sum[0] < 51
}

// works takes its time; false: nobody waits for the answer any more.
func works(r *http.Request, long time.Duration) bool {
	t := time.NewTimer(long)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-r.Context().Done():
		return false
	}
}

// weather asks a sensor over a slow bus.
func (c *Controller) weather(w http.ResponseWriter, r *http.Request) {
	if !works(r, c.cfg.Slow/10) {
		return
	}
	w.Header().Set("Cache-Control", "public, max-age="+strconv.Itoa(int(WeatherAge/time.Second)))
	answer(w, http.StatusOK, map[string]any{"temperature": 21.5, "rain": rained(c.cfg.Now()), "time": c.cfg.Now().UTC()})
}

func (c *Controller) diagnostics(w http.ResponseWriter, r *http.Request) {
	if !works(r, c.cfg.Slow) {
		return
	}
	valves := map[string]string{}
	for i := range Zones {
		valves[strconv.Itoa(i+1)] = "ok"
	}
	answer(w, http.StatusOK, map[string]any{"pump": "ok", "pressure": 3.2, "valves": valves})
}

func (c *Controller) upload(w http.ResponseWriter, r *http.Request) {
	h := sha256.New()
	n, err := io.Copy(h, r.Body)
	if err != nil {
		fail(w, http.StatusBadRequest, "body ended after %d bytes: %v", n, err)
		return
	}
	answer(w, http.StatusOK, map[string]any{"bytes": n, "sha256": hex.EncodeToString(h.Sum(nil))})
}

func (c *Controller) echo(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, MaxBody))
	if err != nil {
		fail(w, http.StatusRequestEntityTooLarge, "body: %v", err)
		return
	}
	answer(w, http.StatusOK, Echo{r.Method, r.URL.RequestURI(), r.Host, r.RemoteAddr, r.Header, string(body)})
}

// Echo is the answer of /echo: the request as the service saw it.
type Echo struct {
	Method string      `json:"method"`
	Path   string      `json:"path"` // with the query
	Host   string      `json:"host"`
	Peer   string      `json:"peer"` // address of the connection: the gateway's
	Header http.Header `json:"header"`
	Body   string      `json:"body"`
}

func (c *Controller) home(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	// Links without a leading slash work behind any prefix, such as the relay's /d/<id>/.
	io.WriteString(w, `<!doctype html><meta name=viewport content="width=device-width"><title>Garden irrigation</title>
<style>body{font:16px/1.5 system-ui,sans-serif;max-width:40rem;margin:2rem auto;padding:0 1rem}td,th{padding:.2rem 1rem .2rem 0;text-align:left}</style>
<h1>Garden irrigation</h1><table><thead><tr><th>Zone<th>State<th>Minutes<th></thead><tbody id=z></table>
<p><a href=device>device</a> · <a href=zones>zones</a> · <a href=program>program</a> · <a href=watering/log>log</a> · <a href=diagnostics>diagnostics (slow)</a>
<script>
const rows={},put=z=>{const r=rows[z.id]??=document.getElementById('z').insertRow();r.replaceChildren();
r.insertCell().textContent=z.name;r.insertCell().textContent=z.state;r.insertCell().textContent=z.state=='idle'?z.minutes:z.remaining+' left';
const b=document.createElement('button');b.textContent=z.state=='idle'?'start':'stop';
b.onclick=()=>fetch('zones/'+z.id+'/'+b.textContent,{method:'POST'});r.insertCell().append(b)};
new EventSource('events').addEventListener('zone',e=>put(JSON.parse(e.data)));
</script>`)
}

// tagged answers a GET with v under the entity tag, or 304 (RFC 9110 §13.1.2).
func tagged(w http.ResponseWriter, r *http.Request, tag string, v any) {
	w.Header().Set("ETag", tag)
	w.Header().Set("Cache-Control", "no-cache")
	if listed(r.Header.Values("If-None-Match"), tag) {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	answer(w, http.StatusOK, v)
}

// ifMatch reports whether the change may go on; if not, it answered 412 (RFC 9110 §13.1.1).
func ifMatch(w http.ResponseWriter, r *http.Request, tag string) bool {
	fields := r.Header.Values("If-Match")
	if len(fields) == 0 || listed(fields, tag) {
		return true
	}
	w.Header().Set("ETag", tag)
	fail(w, http.StatusPreconditionFailed, "it was changed meanwhile: GET it again")
	return false
}

func listed(fields []string, tag string) bool {
	for _, f := range fields {
		for t := range strings.SplitSeq(f, ",") {
			if t = strings.TrimSpace(t); t == "*" || strings.TrimPrefix(t, "W/") == tag {
				return true
			}
		}
	}
	return false
}

// decode reads a JSON body into v, or answers 4xx and returns false.
func decode(w http.ResponseWriter, r *http.Request, v any) bool {
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, MaxBody))
	d.DisallowUnknownFields()
	err := d.Decode(v)
	if err == nil {
		if _, more := d.Token(); more != io.EOF {
			err = errors.New("something follows the JSON value")
		}
	}
	if large, ok := errors.AsType[*http.MaxBytesError](err); ok {
		fail(w, http.StatusRequestEntityTooLarge, "body: at most %d bytes", large.Limit)
		return false
	}
	if err != nil {
		fail(w, http.StatusBadRequest, "body: %v", err)
		return false
	}
	return true
}

func answer(w http.ResponseWriter, status int, v any) {
	var b bytes.Buffer
	if err := json.NewEncoder(&b).Encode(v); err != nil {
		panic("sample: " + err.Error()) // only our own plain values come here
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(b.Len()))
	w.WriteHeader(status)
	w.Write(b.Bytes())
}

func fail(w http.ResponseWriter, status int, format string, args ...any) {
	answer(w, status, map[string]any{"error": status, "message": fmt.Sprintf(format, args...)})
}
