package gateway

import (
	"context"
	"fmt"
	"net/http"
	"sync"

	"github.com/cloudrest/cloudrest/firmware/internal/notify"
	"github.com/cloudrest/cloudrest/tether"
	"github.com/cloudrest/cloudrest/tether/sse"
)

// openNotifier opens the journal.
func (g *Gateway) openNotifier() (err error) {
	g.notes, err = notify.New(notify.Config{Store: g.store, FIFO: g.cfg.FIFO, Socket: g.cfg.NotifySocket, Logger: g.log})
	if err != nil {
		return fmt.Errorf("open the notifications: %w", err)
	}
	return nil
}

// keep runs what must outlive the servers.
func (g *Gateway) keep(ctx context.Context, wg *sync.WaitGroup) {
	wg.Go(func() { optional(ctx, g.log, &g.parts, "notify", g.notes.Run) })
	wg.Go(func() { optional(ctx, g.log, &g.parts, "store", g.store.Run) })
	wg.Go(func() { optional(ctx, g.log, &g.parts, "pairing", g.pairing.Run) })
	if g.cfg.CacheFlash {
		wg.Go(func() { optional(ctx, g.log, &g.parts, "cache", g.cache.Run) })
	}
}

// Notify puts a notification into the journal and returns its id once it is as durable as
// the status says. Topic may be empty and is at most 255 bytes long, data at most 32 KiB. It
// fails before Run, and with the context.
func (g *Gateway) Notify(ctx context.Context, topic string, data []byte) (tether.EventID, error) {
	return g.notes.Post(ctx, topic, data)
}

// events answers with the stream of notifications.
func (g *Gateway) events(w http.ResponseWriter, r *http.Request) {
	if err := sse.Serve(w, r, g.notes.Log(), sse.Options{Done: g.stopping, Limiter: g.listeners}); err != nil {
		g.log.Debug("event listener", "peer", r.RemoteAddr, "err", err)
	}
}
