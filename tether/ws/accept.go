package ws

import (
	"errors"
	"net/http"

	"github.com/gorilla/websocket"

	"github.com/cloudrest/cloudrest/tether"
)

var upgrader = websocket.Upgrader{
	ReadBufferSize: readBuffer, WriteBufferSize: writeBuffer, WriteBufferPool: &writeBuffers,
	Subprotocols: []string{tether.Subprotocol},
	// A browser page must not open tethers with its user's network position; a device
	// sends no Origin (RFC 6455 §10.2).
	CheckOrigin: func(r *http.Request) bool { return r.Header.Get("Origin") == "" },
}

// ErrUpgrade means that the request was answered without an upgrade.
var ErrUpgrade = errors.New("not a tether upgrade")

// Upgrade turns a request into a Conn. When it fails the request has been answered: 426
// when there is no subprotocol in common (RFC 9110 §15.5.22), else 4xx.
//
// The caller's handler must return soon and read from another, fresh goroutine: that frees
// net/http's goroutine with its large stack, and the hijacked buffers. This is the largest
// part of an idle device's memory on the relay.
func Upgrade(w http.ResponseWriter, r *http.Request) (*Conn, error) {
	if websocket.IsWebSocketUpgrade(r) {
		speaks := false
		for _, p := range websocket.Subprotocols(r) {
			speaks = speaks || p == tether.Subprotocol
		}
		if !speaks {
			w.Header().Set("Sec-Websocket-Protocol", tether.Subprotocol)
			http.Error(w, "this relay speaks "+tether.Subprotocol, http.StatusUpgradeRequired)
			return nil, ErrUpgrade
		}
	}
	c, err := upgrader.Upgrade(w, r, nil)
	if err != nil {
		return nil, errors.Join(ErrUpgrade, err)
	}
	return newConn(c), nil
}
