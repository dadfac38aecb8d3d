package gateway

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/cloudrest/cloudrest/board"
	"github.com/cloudrest/cloudrest/firmware/internal/features"
	"github.com/cloudrest/cloudrest/firmware/internal/pairing"
	"github.com/cloudrest/cloudrest/tether"
	"github.com/cloudrest/cloudrest/tether/qrcode"
)

// securityTopic is the topic of notifications about who controls the device.
const securityTopic = "cloudrest/security"

// eventReset is the security event of a factory reset.
const eventReset = "factory_reset"

// openPairing reads who is paired.
func (g *Gateway) openPairing(fresh bool) (err error) {
	var qr func(string) []byte
	if features.Page {
		qr = func(text string) []byte {
			svg, err := qrcode.SVG(text)
			if err != nil {
				g.log.Error("draw a QR code", "err", err)
			}
			return svg
		}
	}
	g.pairing, err = pairing.New(pairing.Config{
		Store: g.store.Bucket("pairing"), Sync: g.store.Sync,
		Generation: g.generation, Fresh: fresh,
		ID:       func() tether.DeviceID { return g.id.ID },
		Pin:      g.cert.Pin,
		URL:      func() string { return strings.TrimSuffix(g.URL(), "/") },
		Label:    g.label,
		OnEvent:  g.securityEvent,
		OnWindow: g.pairingWindow,
		QR:       qr,
		Logger:   g.log,
	})
	if err != nil {
		return fmt.Errorf("open the pairings: %w", err)
	}
	g.guarded = guarded{
		people: g.pairing.Handler(),
		events: g.pairing.Guard(http.HandlerFunc(g.events)),
		reset:  g.pairing.Guard(http.HandlerFunc(g.serveReset)),
		cache:  g.pairing.Guard(http.HandlerFunc(g.serveCache)),
	}
	return nil
}

// guarded are the gateway's own resources that not everybody may use.
type guarded struct{ people, events, reset, cache http.Handler }

// guard is what stands before the maker's service on the LAN.
func (g *Gateway) guard(service http.Handler) http.Handler {
	if g.cfg.Access == AccessPaired {
		return g.pairing.Guard(service)
	}
	return service
}

// securityEvent logs what changes who controls the device, and tells its people.
func (g *Gateway) securityEvent(e pairing.SecurityEvent) {
	g.log.Info("security", "security", e.Event, "client", e.Client, "from", e.From, "detail", e.Detail)
	if e.Event == pairing.EventRevoked && g.cache != nil {
		g.cache.PurgePrincipal(e.Client) // nobody could get at them any more
	}
	switch e.Event {
	case pairing.EventPaired, pairing.EventRevoked, pairing.EventChanged:
	default:
		return // strangers cause them: they must not fill the journal
	}
	if g.pairing == nil {
		return // it is being opened, and nobody listens yet
	}
	// All who are paired read the events, and so may the relay; codes and addresses are for
	// owners, in the security log.
	e.From, e.Detail = "", ""
	for _, c := range g.pairing.Clients() {
		if c.ID == e.Client {
			e.Detail = c.Name
		}
	}
	text, err := json.Marshal(e)
	if err != nil {
		panic("gateway: " + err.Error()) // a type of our own
	}
	ctx, cancel := context.WithTimeout(context.Background(), g.cfg.StopWait)
	defer cancel()
	if _, err := g.notes.Post(ctx, securityTopic, text); err != nil {
		g.log.Debug("notify about a security event", "err", err)
	}
}

// pairingWindow shows on the LED what happens to the pairing window.
func (g *Gateway) pairingWindow(open bool, code string) {
	switch {
	case code != "":
		if open {
			g.log.Info("the phone must show the same code", "code", code)
		}
		g.show(board.Digits(code)) // to be compared, or of who has paired
	case open:
		g.show(board.PairingOpen)
	default:
		g.show(board.Pattern{})
	}
}

// show makes the LED show p in place of what it shows.
func (g *Gateway) show(p board.Pattern) {
	select {
	case <-g.led: // the latest counts
	default:
	}
	select {
	case g.led <- p:
	default:
	}
}

// lights runs the LED until ctx is done.
func (g *Gateway) lights(ctx context.Context) {
	for ctx.Err() == nil {
		var p board.Pattern
		select {
		case <-ctx.Done():
			return
		case p = <-g.led:
		}
		for more := true; more; {
			blink, stop := context.WithCancel(ctx)
			done := make(chan struct{})
			go func(p board.Pattern) { defer close(done); board.Blink(blink, g.cfg.LED, p) }(p)
			select {
			case p = <-g.led:
			case <-done:
				more = false
			}
			stop()
			<-done
		}
	}
}

// pressed is what the button does: a short press opens pairing, a long one is a factory
// reset. Whoever can touch the device may own it.
func (g *Gateway) pressed(p board.Press) {
	switch p {
	case board.Short:
		if g.cfg.Access != AccessPaired {
			return
		}
		until, err := g.pairing.Open(pairing.WayButton, pairing.OpenOptions{})
		if err != nil {
			g.log.Error("open the pairing window", "err", err)
			g.show(board.Failure)
			return
		}
		g.log.Info("the pairing window is open", "by", "button", "until", until)
	case board.Long:
		if err := g.FactoryReset("button"); err != nil {
			g.log.Error("factory reset", "err", err)
			g.show(board.Failure)
			return
		}
		g.show(board.Success)
	}
}

// controls starts what people have on the device itself: control socket, button and LED.
func (g *Gateway) controls(ctx context.Context, group *errgroup.Group) {
	group.Go(func() error {
		optional(ctx, g.log, &g.parts, "control", g.control)
		return nil
	})
	if g.cfg.Button != nil {
		group.Go(func() error {
			optional(ctx, g.log, &g.parts, "button", func(ctx context.Context) error { return g.cfg.Button.Watch(ctx, g.pressed) })
			return nil
		})
	}
	if g.cfg.LED != nil {
		group.Go(func() error { g.lights(ctx); return nil })
	}
}
