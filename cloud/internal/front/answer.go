package front

import (
	"bufio"
	"encoding/json"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/cloudrest/cloudrest/tether"
)

// answer is the ResponseWriter of one request: it notes status and time of the head,
// keeps links of a device under its prefix, and can end an answer that lasts for ever.
type answer struct {
	http.ResponseWriter
	front  *Front
	r      *http.Request
	began  time.Time
	user   string   // the name of the token it came with
	prefix string   // "/d/<id>" when the device was named by the path
	status int      // of the final head; 0: none yet
	conn   net.Conn // of a tunnel
	lasts  bool     // is in front.lasting
	ends   bool     // Drain ends it another way, cleanly
	quiet  bool     // not counted
}

// Unwrap lets http.ResponseController reach the server's writer.
func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

func (a *answer) WriteHeader(status int) {
	if a.status == 0 && (status >= 200 || status == http.StatusSwitchingProtocols) {
		a.head(status)
	}
	a.ResponseWriter.WriteHeader(status)
}

func (a *answer) Write(b []byte) (int, error) {
	if a.status == 0 {
		a.head(http.StatusOK)
	}
	return a.ResponseWriter.Write(b)
}

// Flush implements http.Flusher.
func (a *answer) Flush() { _ = a.FlushError() }

// FlushError is Flush with its error, as http.ResponseController looks for it.
func (a *answer) FlushError() error {
	if a.status == 0 {
		a.head(http.StatusOK)
	}
	return http.NewResponseController(a.ResponseWriter).Flush()
}

// Hijack takes the connection over for a tunnel.
func (a *answer) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(a.ResponseWriter).Hijack()
	if err == nil {
		a.conn = conn
		if a.status == 0 {
			a.head(http.StatusSwitchingProtocols)
		} else {
			a.last()
		}
	}
	return conn, rw, err
}

// head notes the final head, just before it is written.
func (a *answer) head(status int) {
	a.status = status
	if !a.quiet {
		a.front.cfg.Observe(status, time.Since(a.began))
	}
	h := a.Header()
	if a.prefix != "" {
		for _, name := range [...]string{"Location", "Content-Location"} {
			// A path of the device is not a path of the relay. "//host" is another host.
			if v := h.Get(name); strings.HasPrefix(v, "/") && !strings.HasPrefix(v, "//") {
				h.Set(name, a.prefix+v)
			}
		}
	}
	if status == http.StatusSwitchingProtocols || !a.ends && strings.HasPrefix(h.Get("Content-Type"), "text/event-stream") {
		a.last()
	}
}

// last notes that the answer has no end of its own.
func (a *answer) last() {
	f := a.front
	f.mu.Lock()
	defer f.mu.Unlock()
	a.lasts = true
	f.lasting[a] = struct{}{}
	select {
	case <-f.drained:
		a.end()
	default:
	}
}

// end breaks a lasting answer off; its client connects again. mu of the Front is held.
func (a *answer) end() {
	if a.conn != nil {
		_ = a.conn.Close()
		return
	}
	if v := guestOf(a.r); v != nil && a.r.ProtoMajor == 1 {
		_ = v.conn.Close() // the server notices within a second
		return
	}
	// HTTP/2: other requests share the connection. The end of writing makes the server cancel
	// this request's context; with net/http's HTTP/1 the end of reading does.
	rc := http.NewResponseController(a.ResponseWriter)
	_ = rc.SetReadDeadline(time.Unix(1, 0))
	_ = rc.SetWriteDeadline(time.Unix(1, 0))
}

// done is called when the handler returns.
func (a *answer) done() {
	if !a.lasts {
		return
	}
	a.front.mu.Lock()
	delete(a.front.lasting, a)
	a.front.mu.Unlock()
}

func retryAfter(w http.ResponseWriter, d time.Duration) {
	w.Header().Set("Retry-After", strconv.FormatInt(max(1, int64((d+time.Second-1)/time.Second)), 10))
}

// refuse answers with the JSON of every error: {"error":<status>,"message":"..."}.
func refuse(w http.ResponseWriter, status int, message string) {
	writeJSON(w, status, map[string]any{"error": status, "message": message})
}

func refuseDevice(w http.ResponseWriter, status int, message string, id tether.DeviceID) {
	writeJSON(w, status, map[string]any{"error": status, "message": message, "device": id})
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		panic("front: " + err.Error())
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Length", strconv.Itoa(len(body)+1))
	w.WriteHeader(status)
	_, _ = w.Write(append(body, '\n'))
}
