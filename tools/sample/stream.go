package sample

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/gorilla/websocket"
)

const (
	// DefaultFirmware is the size of GET /firmware without ?size=, in bytes.
	DefaultFirmware = 1 << 20
	// MaxFirmware is the largest ?size=.
	MaxFirmware = 8 << 30

	// heartbeat keeps middleboxes from closing a silent stream of events.
	heartbeat = 15 * time.Second
	// writeWait is how long one write to a listener may take.
	writeWait = 20 * time.Second
	// maxMessage bounds a WebSocket message, in bytes.
	maxMessage = 1 << 20
)

// follow calls send with each zone that differs from what this follower saw, first with
// all. A slow follower misses states in between, never the last one, and needs no queue.
func (c *Controller) follow(done <-chan struct{}, idle func() error, send func([]versioned) error) {
	var seen [Zones]int
	t := time.NewTicker(heartbeat)
	defer t.Stop()
	for {
		c.mu.Lock()
		c.settle()
		changed := c.changed
		var news []versioned
		for i := range c.zones {
			if z := &c.zones[i]; z.version != seen[i] {
				seen[i] = z.version
				news = append(news, versioned{c.view(z), z.version})
			}
		}
		c.mu.Unlock()
		if len(news) > 0 && send(news) != nil {
			return
		}
		select {
		case <-changed:
		case <-t.C:
			if idle() != nil {
				return
			}
		case <-done:
			return
		}
	}
}

type versioned struct {
	Zone
	version int
}

func (c *Controller) events(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	rc := http.NewResponseController(w)
	write := func(text string) error {
		rc.SetWriteDeadline(time.Now().Add(writeWait)) // not everywhere; then the server's own counts
		if _, err := io.WriteString(w, text); err != nil {
			return err
		}
		return rc.Flush()
	}
	c.follow(r.Context().Done(), func() error { return write(":\n\n") }, func(news []versioned) error {
		text := ""
		for _, z := range news {
			b, _ := json.Marshal(z.Zone) // plain fields
			text += fmt.Sprintf("event: zone\nid: %d.%d\ndata: %s\n\n", z.ID, z.version, b)
		}
		return write(text)
	})
}

func (c *Controller) webSocket(w http.ResponseWriter, r *http.Request) {
	// Behind a gateway the Host is the gateway's: who may come is its decision.
	up := websocket.Upgrader{CheckOrigin: func(*http.Request) bool { return true }}
	conn, err := up.Upgrade(w, r, nil)
	if err != nil {
		return // Upgrade answered
	}
	defer conn.Close()
	conn.SetReadLimit(maxMessage)
	var writing sync.Mutex
	write := func(kind int, b []byte) error {
		writing.Lock()
		defer writing.Unlock()
		conn.SetWriteDeadline(time.Now().Add(writeWait))
		return conn.WriteMessage(kind, b)
	}
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		if r.URL.Query().Get("state") == "" {
			return
		}
		idle := func() error { return write(websocket.PingMessage, nil) }
		c.follow(done, idle, func(news []versioned) error {
			for _, z := range news {
				b, _ := json.Marshal(z.Zone)
				if err := write(websocket.TextMessage, b); err != nil {
					return err
				}
			}
			return nil
		})
	}()
	for {
		kind, b, err := conn.ReadMessage()
		if err != nil || write(kind, b) != nil {
			break
		}
	}
	close(done)
	<-ended
}

func (c *Controller) firmware(w http.ResponseWriter, r *http.Request) {
	size := int64(DefaultFirmware)
	if s := r.URL.Query().Get("size"); s != "" {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil || n < 0 || n > MaxFirmware {
			fail(w, http.StatusBadRequest, "size: want 0 to %d bytes", int64(MaxFirmware))
			return
		}
		size = n
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("ETag", fmt.Sprintf(`"firmware-%d"`, size))
	http.ServeContent(w, r, "", time.Time{}, Firmware(size))
}

// Firmware returns what GET /firmware?size= sends: bytes that look random, do not
// compress, differ everywhere and are always the same.
func Firmware(size int64) io.ReadSeeker { return io.NewSectionReader(firmwareAt{}, 0, size) }

const firmwareBlock = 64 << 10

var firmwareBytes = sync.OnceValue(func() []byte {
	b := make([]byte, firmwareBlock)
	rand.NewChaCha8([32]byte{'f', 'w'}).Read(b) // never fails
	return b
})

// firmwareAt is one block repeated for ever, each copy beginning with its number.
type firmwareAt struct{}

func (firmwareAt) ReadAt(p []byte, off int64) (int, error) {
	n := 0
	for n < len(p) {
		block, at := (off+int64(n))/firmwareBlock, (off+int64(n))%firmwareBlock
		var number [8]byte
		binary.BigEndian.PutUint64(number[:], uint64(block))
		if at < int64(len(number)) {
			n += copy(p[n:], number[at:])
			continue
		}
		n += copy(p[n:], firmwareBytes()[at:])
	}
	return n, nil
}
