// Package front is the relay's door for clients: it asks for the operator token, finds
// out which device a request is meant for, hands it to whoever holds that device's
// tether, and answers for the device when it cannot. It keeps no body and no session;
// every answer comes in bounded time.
//
// A device is reached at /d/<id>/<path> and at <label>.<domain>/<path>, where label is
// DeviceID.Label. Path and query go to the device byte for byte as the client sent them.
package front

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cloudrest/cloudrest/cloud/internal/throttle"
	"github.com/cloudrest/cloudrest/tether"
	"github.com/cloudrest/cloudrest/tether/httpcache/shared"
	"github.com/cloudrest/cloudrest/tether/sse"
)

// ErrOffline is what Nodes.Forward and Probe return when no tether of the device is open.
var ErrOffline = errors.New("device offline")

// Exchange is what Nodes.Forward needs besides the request itself.
type Exchange struct {
	Path        string        // path and query that the device sees, as the client sent them
	Client      string        // the client's address, ip:port; port 0: not known
	User        string        // who asks, as Guard says
	ID          string        // UUID for tracing, the same in all logs
	HeadTimeout time.Duration // for the head of the answer
}

// Error is an exchange that failed before anything was written.
type Error struct {
	Status     int           // to answer the client: 502, 503, 504, 413
	RetryAfter time.Duration // 0: do not say
	Err        error
}

func (e *Error) Error() string { return fmt.Sprintf("exchange with the device: %v", e.Err) }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Nodes is who holds the tethers.
type Nodes interface {
	// Forward answers r through the device. An error means that nothing was written:
	// ErrOffline, or an *Error with the status to answer.
	Forward(w http.ResponseWriter, r *http.Request, id tether.DeviceID, x Exchange) error
	// Seen is when something was last heard from the device's own end, and whether that
	// is recent enough to call it online.
	Seen(id tether.DeviceID) (last time.Time, online bool)
	// LAN is the device's URL on its own network, as it says itself; empty: not known,
	// or it is offline.
	LAN(id tether.DeviceID) string
	// Probe asks the device's end and the REST service behind it, in bounded time.
	Probe(ctx context.Context, id tether.DeviceID) (Probe, error)
}

// Store is what is kept of devices.
type Store interface {
	// Device returns one device; ok is false when it never enrolled.
	Device(id tether.DeviceID) (d Device, ok bool, err error)
	// Devices returns up to limit devices after the given ID, in the order of IDs.
	Devices(after tether.DeviceID, limit int) ([]Device, error)
	// Log is the device's notifications.
	Log(id tether.DeviceID) sse.Log
}

// Device is what the list of devices is made of.
type Device struct {
	ID    tether.DeviceID
	Name  string
	Since time.Time // last change between online and offline
	// Generation of its owner, which rises with each factory reset; 0: not told.
	Generation uint32
}

// Probe is the answer of a deeper look at a device.
type Probe struct {
	Device  tether.DeviceID `json:"device"`
	Online  bool            `json:"online"`
	TetherM float64         `json:"tetherMs"` // round trip to the device's end, milliseconds
	Origin  OriginProbe     `json:"origin"`
}

// OriginProbe says how the maker's REST service answered.
type OriginProbe struct {
	State  string  `json:"state"` // "ok", "error" (it answered 5xx), "unreachable", "timeout"
	Status int     `json:"status,omitempty"`
	Ms     float64 `json:"ms"` // from the relay to the service and back
}

// Cache is what is stored of devices' answers.
type Cache interface {
	// Entries lists at most limit of a device's, the most recently used first.
	Entries(id tether.DeviceID, limit int) []shared.Entry
	// PurgeDevice drops all of them and returns their number.
	PurgeDevice(id tether.DeviceID) int
}

// Guard tells good tokens from bad ones.
type Guard interface {
	// Check returns who asks with a token: another one for each that ever was.
	Check(token string) (user string, ok bool)
}

// Defaults of Config.
const (
	DefaultMaxInFlight  = 4096
	DefaultMaxListeners = 4096
	DefaultHeadTimeout  = 30 * time.Second // SPEC.md §5.8
	DefaultRetryAfter   = 10 * time.Second // offline devices come back with jitter; asking more often tells nothing new
)

// A wrong token costs a place in this allowance of its address; a good one is always heard.
const (
	badTokens     = 10
	badTokensEach = 6 * time.Second
)

// Config of a Front. Nodes, Store and Guard are required.
type Config struct {
	Nodes   Nodes
	Store   Store
	Guard   Guard
	Cache   Cache        // nil: there is none
	Tether  http.Handler // answers tether.TetherPath; nil: not found
	Domains []string     // names of the relay, lower case; the first is shown to people
	TLS     bool         // whether this process ends TLS: the scheme in links
	Trusted []netip.Prefix
	Ready   func() error // nil error: /readyz says yes

	MaxInFlight  int           // requests to devices at once, tunnels included; default 4096, then 503
	MaxListeners int           // listeners to notifications at once; default 4096, then 503
	HeadTimeout  time.Duration // for the head of a device's answer; default 30 s, then 504

	// Observe is told of each answer: its status and the time to its head.
	Observe func(status int, took time.Duration)
	Logger  *slog.Logger
}

// Front is an http.Handler. Drain ends what would otherwise never end.
type Front struct {
	cfg      Config
	log      *slog.Logger
	throttle *throttle.Table
	listen   *sse.Limiter
	inFlight atomic.Int64
	badAuth  atomic.Uint64
	full     atomic.Uint64

	drained chan struct{} // closed by Drain
	once    sync.Once

	mu      sync.Mutex
	lasting map[*answer]struct{} // answers that last until somebody leaves; guarded by mu
}

// New returns a Front.
func New(cfg Config) *Front {
	if cfg.MaxInFlight <= 0 {
		cfg.MaxInFlight = DefaultMaxInFlight
	}
	if cfg.MaxListeners <= 0 {
		cfg.MaxListeners = DefaultMaxListeners
	}
	if cfg.HeadTimeout <= 0 {
		cfg.HeadTimeout = DefaultHeadTimeout
	}
	if cfg.Ready == nil {
		cfg.Ready = func() error { return nil }
	}
	if cfg.Observe == nil {
		cfg.Observe = func(int, time.Duration) {}
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Front{
		cfg: cfg, log: cfg.Logger,
		throttle: throttle.New(badTokens, badTokensEach),
		listen:   sse.NewLimiter(cfg.MaxListeners),
		drained:  make(chan struct{}),
		lasting:  map[*answer]struct{}{},
	}
}

// Stats is for metrics.
type Stats struct {
	InFlight        int    // requests to devices now
	Listeners       int    // to notifications now
	AuthFailures    uint64 // tokens refused
	OverLimit       uint64 // requests refused because too many were in flight
	ListenersDenied uint64
}

// Stats returns the present numbers.
func (f *Front) Stats() Stats {
	return Stats{
		InFlight: int(f.inFlight.Load()), Listeners: f.listen.Listeners(), AuthFailures: f.badAuth.Load(),
		OverLimit: f.full.Load(), ListenersDenied: uint64(f.listen.Refused()),
	}
}

// Drain ends event streams and tunnels, so that their clients come back elsewhere, and
// lets ordinary requests finish. It returns at once; the server's Shutdown waits.
func (f *Front) Drain() {
	f.once.Do(func() { close(f.drained) })
	f.mu.Lock()
	defer f.mu.Unlock()
	for a := range f.lasting {
		a.end()
	}
}

// methods that reach a device. CONNECT and TRACE do not (RFC 9110 §9.3.6, §9.3.8).
func known(method string) bool {
	switch method {
	case "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS":
		return true
	}
	return false
}

// ServeHTTP implements http.Handler.
func (f *Front) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	began := time.Now()
	id := newID()
	w.Header().Set(tether.HeaderID, id)
	a := &answer{ResponseWriter: w, front: f, r: r, began: began}
	defer a.done()
	target, message, status := checkTarget(r)
	if status != 0 {
		refuse(a, status, message)
		return
	}
	if label, ok := f.label(r.Host); ok {
		f.device(a, r, label, target, id, "")
		return
	}
	path, _, _ := strings.Cut(target, "?")
	switch {
	case path == "/healthz":
		writeJSON(a, http.StatusOK, map[string]any{"status": "alive"})
	case path == "/readyz":
		if err := f.cfg.Ready(); err != nil {
			refuse(a, http.StatusServiceUnavailable, err.Error())
			return
		}
		writeJSON(a, http.StatusOK, map[string]any{"status": "ready"})
	case path == tether.TetherPath && f.cfg.Tether != nil:
		a.quiet = true // not an answer to a client
		r.RemoteAddr = f.client(r)
		f.cfg.Tether.ServeHTTP(w, r) // not a: it takes the connection over, and nothing of ours may hang on to it
	case strings.HasPrefix(target, "/d/"):
		text := target[len("/d/"):]
		end := strings.IndexAny(text, "/?")
		if end < 0 {
			end = len(text)
		}
		f.device(a, r, text[:end], text[end:], id, target[:len("/d/")+end])
	default:
		if f.admit(a, r) {
			f.api(a, r, path)
		}
	}
}

// checkTarget returns the request target in origin form (RFC 9112 §3.2.1), byte for byte
// as it was sent, or why it is refused.
func checkTarget(r *http.Request) (target, message string, status int) {
	switch {
	case r.Method == http.MethodConnect || r.Method == http.MethodTrace:
		return "", "method not allowed", http.StatusMethodNotAllowed
	case !known(r.Method):
		return "", "method not implemented", http.StatusNotImplemented
	case !strings.HasPrefix(r.RequestURI, "/"):
		// The absolute form may name another host than the Host field, which net/http does
		// not show any more; no client of an origin server sends it.
		return "", "the request target must be a path", http.StatusBadRequest
	case strings.ContainsFunc(r.RequestURI, func(c rune) bool { return c <= ' ' || c == 0x7f || c == '#' }):
		return "", "the request target holds a character that must be escaped", http.StatusBadRequest
	case len(r.RequestURI) > maxTarget:
		return "", "the request target is too long", http.StatusRequestURITooLong
	}
	return r.RequestURI, "", 0
}

// maxTarget bounds path and query in bytes; RFC 9112 §3 asks for at least 8000.
const maxTarget = 16 << 10

// label finds <label>.<domain>.
func (f *Front) label(host string) (label string, ok bool) {
	host = hostname(host)
	for _, d := range f.cfg.Domains {
		if n := len(host) - len(d); n > 1 && host[n-1] == '.' && host[n:] == d {
			return host[:n-1], true
		}
	}
	return "", false
}

// hostname is the host without port and final dot, in lower case.
func hostname(host string) string {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	return strings.ToLower(strings.TrimSuffix(host, "."))
}

// device forwards one request. text names the device, path is what it shall see.
func (f *Front) device(a *answer, r *http.Request, text, path, reqID, prefix string) {
	if !f.admit(a, r) {
		return
	}
	id, err := tether.ParseDeviceID(text)
	if err != nil {
		refuse(a, http.StatusNotFound, "no such device")
		return
	}
	switch {
	case path == "" && prefix != "":
		// Relative links of the device's pages need the slash.
		a.Header().Set("Location", prefix+"/")
		refuse(a, http.StatusPermanentRedirect, "the path of a device ends with a slash")
		return
	case strings.HasPrefix(path, "?"):
		path = "/" + path
	}
	if n := f.inFlight.Add(1); n > int64(f.cfg.MaxInFlight) {
		f.inFlight.Add(-1)
		f.full.Add(1)
		retryAfter(a, time.Second)
		refuse(a, http.StatusServiceUnavailable, "too many requests at the relay")
		return
	}
	defer f.inFlight.Add(-1)
	a.prefix = prefix
	client := f.client(r)
	for _, name := range untrusted {
		delete(r.Header, name)
	}
	err = f.cfg.Nodes.Forward(a, r, id, Exchange{Path: path, Client: client, User: a.user, ID: reqID, HeadTimeout: f.cfg.HeadTimeout})
	if err != nil {
		f.fail(a, r, id, err)
	}
}

// untrusted fields say where a request came from; the device is told by the tether, and
// a client's own word on it goes no further.
var untrusted = []string{"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Forwarded-Port", "X-Forwarded-Server", "X-Real-Ip"}

// fail answers in place of the device.
func (f *Front) fail(a *answer, r *http.Request, id tether.DeviceID, err error) {
	if errors.Is(err, ErrOffline) {
		f.offline(a, id)
		return
	}
	if r.Context().Err() != nil {
		panic(http.ErrAbortHandler) // the client is gone, nobody reads an answer
	}
	xe, ok := errors.AsType[*Error](err)
	if !ok {
		f.log.Error("forward request", "device", id, "err", err)
		refuse(a, http.StatusBadGateway, "the relay could not reach the device")
		return
	}
	f.log.Debug("request failed", "device", id, "status", xe.Status, "err", err)
	if xe.RetryAfter > 0 {
		retryAfter(a, xe.RetryAfter)
	}
	refuseDevice(a, xe.Status, message(xe.Status), id)
}

// message is the short text for people beside a status.
func message(status int) string {
	switch status {
	case http.StatusBadGateway:
		return "the device did not answer properly"
	case http.StatusServiceUnavailable:
		return "the device is busy"
	case http.StatusGatewayTimeout:
		return "the device did not answer in time"
	case http.StatusRequestEntityTooLarge:
		return "the request is too large"
	}
	return strings.ToLower(http.StatusText(status))
}

// offline answers for a device that has no tether: since when, if it is known at all.
func (f *Front) offline(a *answer, id tether.DeviceID) {
	d, ok, err := f.cfg.Store.Device(id)
	switch {
	case err != nil:
		f.log.Error("read device", "device", id, "err", err)
	case !ok:
		refuseDevice(a, http.StatusNotFound, "no such device", id)
		return
	}
	retryAfter(a, DefaultRetryAfter)
	body := map[string]any{"error": http.StatusServiceUnavailable, "message": "device offline", "device": id}
	if ok {
		body["since"] = d.Since.UTC().Format(time.RFC3339)
	}
	writeJSON(a, http.StatusServiceUnavailable, body)
}

// client is the address of whoever asked: the peer, or behind a trusted balancer the
// last address in X-Forwarded-For that is not itself trusted.
func (f *Front) client(r *http.Request) string {
	if len(f.cfg.Trusted) == 0 {
		return r.RemoteAddr
	}
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil || !f.trusted(peer.Addr()) {
		return r.RemoteAddr
	}
	hops := strings.Split(strings.Join(r.Header["X-Forwarded-For"], ","), ",")
	for i := len(hops) - 1; i >= 0; i-- {
		text := strings.TrimSpace(hops[i])
		ip, err := netip.ParseAddr(text)
		if err != nil {
			ap, err := netip.ParseAddrPort(text) // some balancers add the port
			if err != nil {
				break // what lies further left came from whoever wrote this
			}
			if !f.trusted(ap.Addr()) {
				return ap.String()
			}
			continue
		}
		if !f.trusted(ip) {
			return netip.AddrPortFrom(ip.Unmap(), 0).String()
		}
	}
	return r.RemoteAddr
}

func (f *Front) trusted(ip netip.Addr) bool {
	ip = ip.Unmap().WithZone("")
	for _, p := range f.cfg.Trusted {
		if p.Contains(ip) {
			return true
		}
	}
	return false
}

// newID makes a random UUID (RFC 9562 §5.4).
func newID() string {
	var b [16]byte
	rand.Read(b[:])
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	var text [36]byte
	hex.Encode(text[:], b[:4])
	text[8] = '-'
	hex.Encode(text[9:], b[4:6])
	text[13] = '-'
	hex.Encode(text[14:], b[6:8])
	text[18] = '-'
	hex.Encode(text[19:], b[8:10])
	text[23] = '-'
	hex.Encode(text[24:], b[10:])
	return string(text[:])
}
