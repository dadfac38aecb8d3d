package front

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/cloudrest/cloudrest/tether"
	"github.com/cloudrest/cloudrest/tether/sse"
)

const (
	apiDevices   = "/v1/devices/"
	listPage     = 256 // devices read from the store at once
	listTimeout  = 30 * time.Second
	probeTimeout = 5 * time.Second
)

// api answers what the relay says itself. The token was checked.
func (f *Front) api(a *answer, r *http.Request, path string) {
	rest, ok := strings.CutPrefix(path, apiDevices)
	if !ok {
		refuse(a, http.StatusNotFound, "not found: devices are at /d/<id>/, their list at /v1/devices/list")
		return
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead && !(r.Method == http.MethodDelete && strings.HasSuffix(rest, "/cache")) {
		a.Header().Set("Allow", "GET, HEAD")
		refuse(a, http.StatusMethodNotAllowed, "method not allowed")
		return
	}
	if rest == "list" {
		f.list(a, r)
		return
	}
	text, what, _ := strings.Cut(rest, "/")
	id, err := tether.ParseDeviceID(text)
	if err != nil {
		refuse(a, http.StatusNotFound, "no such device")
		return
	}
	d, ok, err := f.cfg.Store.Device(id)
	switch {
	case err != nil:
		f.log.Error("read device", "device", id, "err", err)
		refuse(a, http.StatusInternalServerError, "the relay's store does not answer")
		return
	case !ok:
		refuseDevice(a, http.StatusNotFound, "no such device", id)
		return
	}
	switch what {
	case "":
		writeJSON(a, http.StatusOK, f.entry(d, f.base(r)))
	case "events":
		a.ends = true // by Done
		err := sse.Serve(a, r, f.cfg.Store.Log(id), sse.Options{Done: f.drained, Limiter: f.listen})
		if err != nil {
			f.log.Debug("listener ended", "device", id, "err", err)
		}
	case "probe":
		f.probe(a, r, id)
	case "cache":
		f.cache(a, r, id)
	default:
		refuse(a, http.StatusNotFound, "not found")
	}
}

// entry is one device in the list.
type entry struct {
	ID      tether.DeviceID `json:"id"`
	Name    string          `json:"name"`
	Online  bool            `json:"online"` // its end answered recently
	URL     string          `json:"url"`
	HostURL string          `json:"hostUrl,omitempty"` // absent where the relay has no domain name
	LANURL  string          `json:"lanUrl,omitempty"`  // on its own network, as the device says; absent while offline or not told
	Since   *time.Time      `json:"since,omitempty"`   // online or offline since
	Seen    *time.Time      `json:"seen,omitempty"`    // last heard of, while a tether is open
	// Generation of the owner: rises with each factory reset; absent: not told.
	Generation uint32 `json:"generation,omitempty"`
}

// base is how a client reaches the relay.
type base struct{ scheme, host, domain string }

// base builds links from the relay's own first name, with the scheme and port the client
// used: its Host field is not believed.
func (f *Front) base(r *http.Request) base {
	b := base{scheme: "http"}
	if f.cfg.TLS || r.TLS != nil {
		b.scheme = "https"
	} else if peer, err := netip.ParseAddrPort(r.RemoteAddr); err == nil && f.trusted(peer.Addr()) {
		if strings.EqualFold(r.Header.Get("X-Forwarded-Proto"), "https") {
			b.scheme = "https"
		}
	}
	name := hostname(r.Host)
	port := ""
	if i := strings.LastIndexByte(r.Host, ':'); i >= 0 && digits(r.Host[i+1:]) {
		port = r.Host[i:]
	}
	if len(f.cfg.Domains) > 0 {
		b.domain = f.cfg.Domains[0]
		for _, d := range f.cfg.Domains {
			if d == name {
				b.domain = d
			}
		}
	}
	b.host = b.domain
	if ip, err := netip.ParseAddr(b.domain); err == nil {
		b.domain = "" // an address has no names below it
		if ip.Is6() {
			b.host = "[" + b.host + "]"
		}
	}
	b.host += port
	if b.domain != "" {
		b.domain += port
	}
	return b
}

func digits(s string) bool {
	return s != "" && len(s) <= 5 && !strings.ContainsFunc(s, func(c rune) bool { return c < '0' || c > '9' })
}

func (f *Front) entry(d Device, b base) entry {
	e := entry{ID: d.ID, Name: d.Name, Generation: d.Generation, URL: b.scheme + "://" + b.host + "/d/" + string(d.ID) + "/"}
	if b.domain != "" {
		e.HostURL = b.scheme + "://" + d.ID.Label() + "." + b.domain + "/"
	}
	last, online := f.cfg.Nodes.Seen(d.ID)
	if e.Online = online; online {
		e.LANURL = f.cfg.Nodes.LAN(d.ID)
	}
	if !d.Since.IsZero() {
		since := d.Since.UTC().Truncate(time.Second)
		e.Since = &since
	}
	if !last.IsZero() {
		seen := last.UTC().Truncate(time.Second)
		e.Seen = &seen
	}
	return e
}

// list writes {"devices":[...]} page by page: ten thousand devices are some megabytes,
// of which only one page is in memory.
func (f *Front) list(a *answer, r *http.Request) {
	rc := http.NewResponseController(a)
	_ = rc.SetWriteDeadline(time.Now().Add(listTimeout))
	defer rc.SetWriteDeadline(time.Time{})
	page, err := f.cfg.Store.Devices("", listPage)
	if err != nil {
		f.log.Error("list devices", "err", err)
		refuse(a, http.StatusInternalServerError, "the relay's store does not answer")
		return
	}
	h := a.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	if r.Method == http.MethodHead {
		return
	}
	b := f.base(r)
	buf := []byte(`{"devices":[`)
	comma := false
	for {
		for _, d := range page {
			if comma {
				buf = append(buf, ',')
			}
			comma = true
			text, err := json.Marshal(f.entry(d, b))
			if err != nil {
				panic("front: " + err.Error())
			}
			buf = append(append(buf, '\n'), text...)
		}
		last := len(page) < listPage
		if last {
			buf = append(buf, "]}\n"...)
		}
		if _, err := a.Write(buf); err != nil || last {
			return
		}
		buf = buf[:0]
		if page, err = f.cfg.Store.Devices(page[len(page)-1].ID, listPage); err != nil {
			f.log.Error("list devices", "err", err)
			panic(http.ErrAbortHandler) // half a list must not look whole
		}
	}
}

// probe asks the device's end and the service behind it.
func (f *Front) probe(a *answer, r *http.Request, id tether.DeviceID) {
	ctx, cancel := context.WithTimeout(r.Context(), probeTimeout)
	defer cancel()
	p, err := f.cfg.Nodes.Probe(ctx, id)
	switch {
	case errors.Is(err, ErrOffline):
		f.offline(a, id)
	case err != nil:
		refuseDevice(a, http.StatusGatewayTimeout, "the device's end does not answer", id)
	default:
		writeJSON(a, http.StatusOK, p)
	}
}
