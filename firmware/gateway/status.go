package gateway

import (
	"fmt"
	"time"

	"github.com/cloudrest/cloudrest/firmware/internal/features"
	"github.com/cloudrest/cloudrest/tether"
	"github.com/cloudrest/cloudrest/tether/buildinfo"
)

// Status is the answer of /.cloudrest/v1/status. Times are RFC 3339; a time that is not
// known is left out. Fields may be added, none change their meaning.
type Status struct {
	ID          tether.DeviceID `json:"id"`
	Name        string          `json:"name"`
	Version     string          `json:"version"` // of the gateway
	Now         time.Time       `json:"now"`
	Uptime      int64           `json:"uptime"` // seconds
	Access      string          `json:"access"` // "paired", "origin" or "open"
	URL         string          `json:"url"`
	Certificate string          `json:"certificate_sha256"`

	Device        DeviceStatus       `json:"device"`
	Origin        OriginStatus       `json:"origin"`
	Cache         CacheStatus        `json:"cache"`
	LAN           LANStatus          `json:"lan"`
	Discovery     DiscoveryStatus    `json:"discovery"`
	Tether        TetherStatus       `json:"tether"`
	Notifications NotificationStatus `json:"notifications"`
	Pairing       PairingStatus      `json:"pairing"`
	Identity      IdentityStatus     `json:"identity"`
}

// PairingStatus tells what anybody on the LAN may know of who controls the device.
type PairingStatus struct {
	Paired     bool       `json:"paired"`          // somebody is
	Open       bool       `json:"open"`            // the pairing window
	Until      *time.Time `json:"until,omitempty"` // its end
	Generation uint32     `json:"generation"`      // of owners: factory resets so far
}

// IdentityStatus tells how firmly the device ID is tied to the board.
type IdentityStatus struct {
	Source   string     `json:"source"`   // of the UID
	Strength string     `json:"strength"` // "hardware", "board" or "software"
	Verified bool       `json:"verified"` // the board gave the same UID at this start
	Factory  *time.Time `json:"factory_certificate_until,omitempty"`
}

// DeviceStatus is what the maker's service says of itself (GET /device).
type DeviceStatus struct {
	State    string   `json:"state"` // "waiting" until the first good answer, then "known"
	Name     string   `json:"name,omitempty"`
	Maker    string   `json:"manufacturer,omitempty"`
	Version  string   `json:"version,omitempty"`
	API      string   `json:"api,omitempty"`
	Warnings []string `json:"warnings,omitempty"`
	Error    string   `json:"error,omitempty"` // why the last question failed
}

// OriginStatus counts requests to the maker's service.
type OriginStatus struct {
	State          string `json:"state"` // "up", "down", or "unknown" before the first question
	InOrigin       int    `json:"in_origin"`
	Queued         int    `json:"queued"`
	Streams        int    `json:"streams"`
	Admitted       uint64 `json:"admitted"`
	RefusedFull    uint64 `json:"refused_full"`
	RefusedWait    uint64 `json:"refused_wait"`
	RefusedStreams uint64 `json:"refused_streams"`
}

// LANStatus counts the connections of the HTTPS listener.
type LANStatus struct {
	HTTPS       string `json:"https"`
	HTTP        string `json:"http"` // its address, "off", or "failing: " and why
	Connections int    `json:"connections"`
	Accepted    uint64 `json:"connections_accepted"`
	Refused     uint64 `json:"connections_refused"`
}

// DiscoveryStatus tells of each kind "on", "off", "starting", or "failing: " and why.
type DiscoveryStatus struct {
	UDP  string `json:"udp"`
	MDNS string `json:"mdns"`
	Host string `json:"host,omitempty"` // the name that mDNS gives the device
}

// TetherStatus is the state of the connection to the relays.
type TetherStatus struct {
	State    string     `json:"state"` // "off", "up" or "down"
	Relay    string     `json:"relay,omitempty"`
	Session  string     `json:"session,omitempty"`
	Since    *time.Time `json:"since,omitempty"` // of the present state
	Attempts int        `json:"attempts,omitempty"`
	Error    string     `json:"error,omitempty"`
	RetryAt  *time.Time `json:"retry_at,omitempty"`
	InFlight int        `json:"notifications_in_flight"`
}

// NotificationStatus tells what became of notifications since the start.
type NotificationStatus struct {
	Durability     string `json:"durability"` // what survives a power cut, in words
	Epoch          string `json:"epoch"`      // of this start; event ids begin with it
	Appended       uint64 `json:"appended"`
	Kept           int    `json:"kept"` // in the journal
	Unacked        uint64 `json:"unacknowledged"`
	Dropped        uint64 `json:"dropped"`                // ever: the journal was full
	DroppedUnacked uint64 `json:"dropped_unacknowledged"` // ever: those that no relay had
	Shed           uint64 `json:"shed"`                   // the journal could not be written
	CutLines       uint64 `json:"cut_lines"`              // longer than 4 KiB
	Repaired       uint64 `json:"repaired_lines"`         // not UTF-8
	Listeners      int    `json:"listeners"`
	FIFO           string `json:"fifo,omitempty"`
	Socket         string `json:"socket,omitempty"`
	// FIFOError, SocketError and JournalError say what is wrong now.
	FIFOError    string `json:"fifo_error,omitempty"`
	SocketError  string `json:"socket_error,omitempty"`
	JournalError string `json:"journal_error,omitempty"`
}

// Status tells how the gateway is now.
func (g *Gateway) Status() Status {
	now := time.Now()
	st := Status{
		ID: g.id.ID, Name: g.Name(), Version: buildinfo.Version(), Now: now.UTC(), Uptime: int64(now.Sub(g.started).Seconds()),
		Access: g.cfg.Access, URL: g.URL(), Certificate: g.cert.Pin(),
	}
	if !g.Addresses().HTTPS.IsValid() {
		st.URL = ""
	}

	win := g.pairing.Window()
	st.Pairing = PairingStatus{Paired: g.pairing.Stats().Clients > 0, Open: win.Open, Until: known(win.Until), Generation: g.generation}
	st.Identity = IdentityStatus{Source: g.id.Source, Strength: g.id.Strength.String(), Verified: g.id.Verified}
	if features.Provision && g.certs != nil {
		st.Identity.Factory = known(g.certs.Leaf().NotAfter)
	}

	st.Discovery.UDP = g.udpState()
	st.Discovery.MDNS, st.Discovery.Host = g.mdnsState()
	st.Device.State = "waiting"
	if d, ok := g.watcher.Current(); ok {
		st.Device = DeviceStatus{State: "known", Name: d.Name, Maker: d.Manufacturer, Version: d.Version, API: d.API, Warnings: d.Warnings}
	}

	asked, up, err := g.watcher.Last()
	if err != nil {
		st.Device.Error = err.Error()
	}

	a := g.gate.Stats()
	st.Origin = OriginStatus{State: "unknown", InOrigin: a.InOrigin, Queued: a.Queued, Streams: a.Streams, Admitted: a.Admitted,
		RefusedFull: a.RefusedFull, RefusedWait: a.RefusedWait, RefusedStreams: a.RefusedStreams}

	if up {
		st.Origin.State = "up"
	} else if asked {
		st.Origin.State = "down"
	}

	st.Cache = g.cacheStatus()

	g.mu.Lock()
	lan, addr := g.lan, g.addr
	g.mu.Unlock()
	st.LAN.HTTP = g.parts.get("http")
	if addr.HTTPS.IsValid() {
		st.LAN.HTTPS = addr.HTTPS.String()
	}
	if addr.HTTP.IsValid() && st.LAN.HTTP == "on" {
		st.LAN.HTTP = addr.HTTP.String()
	}
	if lan != nil {
		c := lan.Stats()
		st.LAN.Connections, st.LAN.Accepted, st.LAN.Refused = c.Open, c.Accepted, c.RefusedAll+c.RefusedAddress
	}

	st.Tether.State = "off"
	if features.Tether && g.uplink != nil {
		u := g.uplink.State()
		st.Tether = TetherStatus{State: "down", Relay: u.Relay, Session: u.Session, Since: known(u.Since), Attempts: u.Attempts,
			Error: u.LastError, RetryAt: known(u.RetryAt), InFlight: u.InFlight}
		if u.Connected {
			st.Tether.State = "up"
		}
	}

	n := g.notes.Stats()
	st.Notifications = NotificationStatus{
		Durability: n.Durability.String(), Epoch: fmt.Sprintf("%016x", n.Epoch), Appended: n.Appended, Kept: n.Entries, Unacked: n.Unacked,
		Dropped: n.Dropped, DroppedUnacked: n.DroppedUnacked, Shed: n.Shed, CutLines: n.CutLines, Repaired: n.RepairedLines,
		Listeners: g.listeners.Listeners(), FIFO: g.cfg.FIFO, Socket: g.cfg.NotifySocket,
		FIFOError: n.FIFO, SocketError: n.Socket, JournalError: n.Journal,
	}
	return st
}

// known leaves out a time that is not known.
func known(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}
