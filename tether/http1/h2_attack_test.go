//go:build !no_http2

package http1

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// counting wraps a handler and knows how many of it run.
type counting struct {
	http.Handler
	now, most, all atomic.Int64
}

func (c *counting) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.all.Add(1)
	c.most.Store(max(c.most.Load(), c.now.Add(1)))
	defer c.now.Add(-1)
	c.Handler.ServeHTTP(w, r)
}

// flood writes what next returns until the server hangs up, and says how often it could.
func (p *peer) flood(t *testing.T, most int, next func(i int) []byte) (n int) {
	t.Helper()
	for n < most+100 && p.write(next(n)) {
		n++
		synctest.Wait() // the server reads all of it: a pipe is written to the end
	}
	if got := p.wait(); n >= most || !slices.ContainsFunc(got, func(s string) bool { return strings.HasPrefix(s, "GOAWAY") && strings.HasSuffix(s, " 11") }) {
		t.Errorf("%d frames went through, want less than %d; the server said %.300q", n, most, got)
	}
	return n
}

// A client that cancels what it begins has no more handlers at work than one that does
// not, and is sent away (CVE-2023-44487).
func TestRapidReset(t *testing.T) {
	const streams = 8
	release := make(chan struct{})
	for name, h := range map[string]http.Handler{
		"handlers that end with their client": untilGone,
		"handlers that go on":                 http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }),
	} {
		c := &counting{Handler: h}
		withPeer(t, &Server{Handler: c, HTTP2: http.HTTP2Config{MaxConcurrentStreams: streams}}, false, func(t *testing.T, p *peer) {
			release = make(chan struct{})
			p.flood(t, 1000, func(i int) []byte {
				id := uint32(2*i + 1)
				return slices.Concat(p.request(id, true, "GET", "/"), frame(frameReset, 0, id, u32(codeCancel)))
			})
			if c.most.Load() > streams*streamsPlaces || c.all.Load() > purse/costReset+1 {
				t.Errorf("%s: %d ran, %d at once, want at most %d and %d", name, c.all.Load(), c.most.Load(), purse/costReset+1, streams*streamsPlaces)
			}
			close(release)
		})
	}
}

// Resets that a client makes the server send do not free the places of handlers that run
// (CVE-2025-8671).
func TestMadeYouReset(t *testing.T) {
	const streams = 8
	release := make(chan struct{})
	for name, provoke := range map[string]func(p *peer, id uint32) []byte{
		"window too large": func(p *peer, id uint32) []byte { return frame(frameWindow, 0, id, u32(maxWindow)) },
		"body too long":    func(p *peer, id uint32) []byte { return frame(frameData, 0, id, []byte("abcd")) },
		"body too short":   func(p *peer, id uint32) []byte { return frame(frameData, flagEnd, id, []byte("a")) },
		"trailers that do not end": func(p *peer, id uint32) []byte {
			return frame(frameHeaders, flagEndHeaders, id, p.block("x", "y"))
		},
		"window of 0":              func(p *peer, id uint32) []byte { return frame(frameWindow, 0, id, u32(0)) },
		"depends on itself":        func(p *peer, id uint32) []byte { return frame(framePriority, 0, id, append(u32(id), 1)) },
		"PRIORITY of a wrong size": func(p *peer, id uint32) []byte { return frame(framePriority, 0, id, []byte{1}) },
	} {
		c := &counting{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release })}
		withPeer(t, &Server{Handler: c, HTTP2: http.HTTP2Config{MaxConcurrentStreams: streams}}, false, func(t *testing.T, p *peer) {
			release = make(chan struct{})
			gone := false
			for i := 0; i < 1000 && !gone; i++ {
				id := uint32(2*i + 1)
				gone = !p.write(p.request(id, false, "POST", "/", "content-length", "3"), provoke(p, id))
				synctest.Wait()
			}
			if got := c.most.Load(); !gone || got > streams*streamsPlaces {
				t.Errorf("%s: sent away %v, %d handlers at once, want at most %d", name, gone, got, streams*streamsPlaces)
			}
			close(release)
		})
	}
}

// A page that is left cancels many requests at once, and goes on with the connection.
func TestHonestCancels(t *testing.T) {
	c := &counting{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			<-r.Context().Done()
		}
	})}
	withPeer(t, &Server{Handler: c}, false, func(t *testing.T, p *peer) {
		id := uint32(1)
		for range 60 { // minutes
			first := id
			for range 60 {
				if !p.write(p.request(id, true, "GET", "/slow")) {
					t.Fatal("sent away")
				}
				id += 2
			}
			for ; first < id; first += 2 {
				p.write(frame(frameReset, 0, first, u32(codeCancel)))
			}
			p.write(p.request(id, true, "GET", "/"))
			if got := p.wait(); !slices.Contains(got, fmt.Sprintf("HEADERS %d END :status=200 content-length=0", id)) {
				t.Fatalf("after the cancels: %q", got)
			}
			id += 2
			time.Sleep(time.Minute)
		}
	})
}

// More requests at once than were offered are refused, and may be sent again (RFC 9113
// §5.1.2).
func TestTooManyStreams(t *testing.T) {
	withPeer(t, &Server{Handler: untilGone, HTTP2: http.HTTP2Config{MaxConcurrentStreams: 2}}, false, func(t *testing.T, p *peer) {
		p.write(p.request(1, true, "GET", "/"), p.request(3, false, "POST", "/"), p.request(5, false, "POST", "/"))
		p.want("one too many", "RST_STREAM 5 7")
		p.write(frame(frameData, 0, 5, []byte("on its way")), frame(frameReset, 0, 3, u32(codeCancel)), p.request(7, true, "GET", "/"))
		p.want("a place is free")
	})
}

// Frames that move nothing end the connection when there are too many of them:
// CVE-2019-9512 (PING), 9513 (PRIORITY), 9514 (RST_STREAM), 9515 (SETTINGS), 9518 (empty
// DATA), and their kin.
func TestFloods(t *testing.T) {
	c := &counting{Handler: untilGone}
	for name, next := range map[string]func(p *peer, i int) []byte{
		"PING":              func(p *peer, i int) []byte { return frame(framePing, 0, 0, make([]byte, 8)) },
		"PING ACK":          func(p *peer, i int) []byte { return frame(framePing, flagAck, 0, make([]byte, 8)) },
		"PRIORITY":          func(p *peer, i int) []byte { return frame(framePriority, 0, uint32(i+5), make([]byte, 5)) },
		"SETTINGS":          func(p *peer, i int) []byte { return frame(frameSettings, 0, 0, nil) },
		"SETTINGS ACK":      func(p *peer, i int) []byte { return frame(frameSettings, flagAck, 0, nil) },
		"one long SETTINGS": func(p *peer, i int) []byte { return frame(frameSettings, 0, 0, make([]byte, 6*2000)) },
		"empty DATA":        func(p *peer, i int) []byte { return frame(frameData, 0, 1, nil) },
		"only padding":      func(p *peer, i int) []byte { return frame(frameData, flagPadded, 1, []byte{2, 0, 0}) },
		"WINDOW_UPDATE":     func(p *peer, i int) []byte { return frame(frameWindow, 0, 0, u32(1)) },
		"of a stream":       func(p *peer, i int) []byte { return frame(frameWindow, 0, 1, u32(1)) },
		"unknown type":      func(p *peer, i int) []byte { return frame(0x77, 0, 0, []byte("x")) },
		"GOAWAY":            func(p *peer, i int) []byte { return frame(frameGoAway, 0, 0, make([]byte, 8)) },
		"RST_STREAM": func(p *peer, i int) []byte {
			return frame(frameReset, 0, 1, u32(codeCancel))
		},
		"malformed requests": func(p *peer, i int) []byte { return p.request(uint32(2*i+3), true, "G T", "/") },
		"refused requests":   func(p *peer, i int) []byte { return p.request(uint32(2*i+3), true, "CONNECT", "/") },
		"DATA for what was refused": func(p *peer, i int) []byte {
			if i == 0 {
				return p.request(3, false, "G T", "/")
			}
			return frame(frameData, 0, 3, []byte("x"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			withPeer(t, &Server{Handler: c}, false, func(t *testing.T, p *peer) {
				p.write(p.request(1, false, "POST", "/"))
				p.flood(t, 2*purse+2, func(i int) []byte { return next(p, i) })
			})
		})
	}
	withPeer(t, &Server{Handler: c}, false, func(t *testing.T, p *peer) { // at a modest pace they are let pass
		p.write(p.request(1, true, "GET", "/"))
		for range 1000 {
			if !p.write(frame(framePing, 0, 0, make([]byte, 8)), frame(framePriority, 0, 5, make([]byte, 5))) {
				t.Fatal("sent away")
			}
			time.Sleep(time.Second)
			if got := p.wait(); len(got) != 1 {
				t.Fatalf("got %q, want one PING ACK", got)
			}
		}
	})
}

// Answers to frames wait in a bounded buffer while somebody else's write blocks
// (CVE-2019-9512, 9517).
func TestUnreadReactions(t *testing.T) {
	withPeer(t, &Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Write(make([]byte, 60_000))
	})}, false, func(t *testing.T, p *peer) {
		resume := p.pause()
		p.write(p.request(1, true, "GET", "/"))
		synctest.Wait()
		var h *h2conn
		p.srv.mu.Lock()
		for c := range p.srv.conns {
			h = c.h2
		}
		p.srv.mu.Unlock()
		most := 0
		for i := 0; i < 4*purse && p.write(frame(framePing, 0, 0, make([]byte, 8))); i++ {
			if i > purse/2 { // as often as the purse allows
				time.Sleep(time.Second / 20)
			}
			h.mu.Lock()
			most = max(most, len(h.control))
			h.mu.Unlock()
		}
		resume()
		if most > maxControl+100 || most < maxControl {
			t.Errorf("%d bytes waited, want them bounded by %d", most, maxControl)
		}
	})
}

// CVE-2024-27316: a header block has an end.
func TestContinuationFlood(t *testing.T) {
	c := &counting{Handler: hello}
	for name, piece := range map[string][]byte{
		"empty":    nil,
		"small":    {0x82},
		"never":    {0, 1, 'x', 1, 'y'},
		"large":    make([]byte, maxFrame),
		"no field": {0x20},
	} {
		most := min(maxContinued, DefaultMaxHead/max(len(piece), 1)) + 2
		withPeer(t, &Server{Handler: c}, false, func(t *testing.T, p *peer) {
			p.write(frame(frameHeaders, flagEnd, 1, nil))
			p.flood(t, most, func(int) []byte { return frame(frameContinuation, 0, 1, piece) })
			if c.all.Load() != 0 {
				t.Errorf("%s: a request was served", name)
			}
		})
	}
}

// A few bytes that stand for many fields are counted as what they stand for, while they
// are decoded (RFC 9113 §10.5.1; CVE-2016-6581).
func TestHeaderListBomb(t *testing.T) {
	var got http.Header
	withPeer(t, &Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { got = r.Header })}, false, func(t *testing.T, p *peer) {
		big := strings.Repeat("v", 3000)
		p.write(p.request(1, true, "GET", "/", "x-big", big))
		p.want("once", "HEADERS 1 END :status=200 content-length=0")
		bomb := append(p.block(":method", "GET", ":scheme", "https", ":authority", "h", ":path", "/"), bytes.Repeat(p.block("x-big", big), 10_000)...)
		p.write(frame(frameHeaders, flagEnd|flagEndHeaders, 3, bomb))
		if got := p.wait(); len(got) != 2 || !strings.HasPrefix(got[0], "HEADERS 3 :status=431") {
			t.Errorf("bomb: %.200q, want 431", got)
		}
		got = nil
		p.write(p.request(5, true, "GET", "/", "x-big", big)) // the table is still right
		if p.want("after the bomb", "HEADERS 5 END :status=200 content-length=0"); got.Get("X-Big") != big {
			t.Errorf("fields after the bomb: %.100q", got)
		}
	})
}

// Every wait for a client has an end.
func TestHTTP2SlowClients(t *testing.T) {
	s := &Server{HTTP2: http.HTTP2Config{SendPingTimeout: time.Minute}, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/read":
			if _, err := io.ReadAll(r.Body); err == nil {
				t.Error("half a body was taken for the whole")
			}
		case "/wait":
			<-r.Context().Done()
		}
	})}
	begin := slices.Concat([]byte(preface), frame(frameSettings, 0, 0, nil))
	acked := append(begin, frame(frameSettings, flagAck, 0, nil)...)
	for name, c := range map[string]struct {
		bytes  func(p *peer) []byte
		within time.Duration
	}{
		"no preface":             {func(p *peer) []byte { return []byte(preface[:5]) }, DefaultHeadTimeout},
		"nothing at all":         {func(p *peer) []byte { return nil }, DefaultHeadTimeout},
		"no SETTINGS":            {func(p *peer) []byte { return []byte(preface) }, DefaultHeadTimeout},
		"no SETTINGS ACK":        {func(p *peer) []byte { return begin }, DefaultHeadTimeout},
		"half a frame head":      {func(p *peer) []byte { return append(acked, 0, 0) }, DefaultHeadTimeout},
		"frame head alone":       {func(p *peer) []byte { return append(acked, frame(framePing, 0, 0, make([]byte, 8))[:9]...) }, DefaultHeadTimeout},
		"half a PING":            {func(p *peer) []byte { return append(acked, frame(framePing, 0, 0, make([]byte, 8))[:12]...) }, DefaultHeadTimeout},
		"half HEADERS":           {func(p *peer) []byte { return append(acked, p.request(1, true, "GET", "/")[:12]...) }, DefaultHeadTimeout},
		"HEADERS without an end": {func(p *peer) []byte { return append(acked, frame(frameHeaders, flagEnd, 1, []byte{0x82})...) }, DefaultHeadTimeout},
		"half DATA": {func(p *peer) []byte {
			return slices.Concat(acked, p.request(1, false, "POST", "/wait"), frame(frameData, 0, 1, make([]byte, 100))[:50])
		}, DefaultIOTimeout},
		"idle":                     {func(p *peer) []byte { return acked }, DefaultIdleTimeout},
		"idle after a request":     {func(p *peer) []byte { return append(acked, p.request(1, true, "GET", "/")...) }, DefaultIdleTimeout},
		"no answer to PING":        {func(p *peer) []byte { return append(acked, p.request(1, true, "GET", "/wait")...) }, time.Minute + defaultPingTimeout},
		"HEADERS in small morsels": {nil, DefaultHeadTimeout},
	} {
		t.Run(name, func(t *testing.T) {
			withPeer(t, s, true, func(t *testing.T, p *peer) {
				began := time.Now()
				if name == "nothing at all" {
				} else if c.bytes != nil {
					p.write(c.bytes(p))
				} else {
					p.write(acked)
					for i := 0; i < 9 && p.write(frame(frameHeaders, flagEnd, 1, []byte{0x82})[i:i+1]); i++ {
						time.Sleep(3 * time.Second)
					}
				}
				<-p.stop
				if took := time.Since(began); took < c.within || took > c.within+lingerPeriod+4*tick {
					t.Errorf("hung up after %v, want %v", took, c.within)
				}
			})
		})
	}
}

// A body that does not come, or an answer for which no window comes, costs only the one
// request: it is reset, and its handler wakes up.
func TestHTTP2Stalls(t *testing.T) {
	var errRead, errWrite error
	s := &Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/read":
			_, errRead = io.ReadAll(r.Body)
		case "/write":
			_, errWrite = w.Write(make([]byte, 200_000))
		default:
			<-r.Context().Done()
		}
	})}
	for _, morsel := range []uint32{0, 1} { // also bytes that come just often enough
		withPeer(t, s, false, func(t *testing.T, p *peer) {
			errRead, errWrite = nil, nil
			p.write(p.request(1, true, "GET", "/other"), p.request(3, false, "POST", "/read"), p.request(5, true, "GET", "/write"))
			p.wait()
			for range 2 * int(DefaultIOTimeout/time.Second) {
				time.Sleep(time.Second)
				if morsel > 0 {
					p.write(frame(frameWindow, 0, 5, u32(morsel)), frame(frameWindow, 0, 0, u32(morsel)))
				}
			}
			got := p.wait()
			if !slices.Contains(got, "RST_STREAM 3 8") || !slices.Contains(got, "RST_STREAM 5 8") || slices.Contains(got, "RST_STREAM 1 8") || errRead == nil || errWrite == nil {
				t.Errorf("%d: got %.300q; read %v, write %v", morsel, got, errRead, errWrite)
			}
			p.write(frame(framePing, 0, 0, make([]byte, 8)))
			p.want("the connection lives", `PING ACK "\x00\x00\x00\x00\x00\x00\x00\x00"`)
		})
	}
}

// A body that comes slowly is not cut while it moves: how slow is too slow is the handler's
// to say.
func TestHTTP2SlowBody(t *testing.T) {
	withPeer(t, &Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, n, err)
	})}, false, func(t *testing.T, p *peer) {
		p.write(p.request(1, false, "POST", "/"))
		data := frame(frameData, flagEnd, 1, make([]byte, 10))
		p.write(data[:frameHead])
		for i := range data[frameHead:] {
			time.Sleep(DefaultIOTimeout * 2 / 3)
			p.write(data[frameHead+i:][:1])
		}
		p.want("answer", "HEADERS 1 :status=200 content-length=8", "DATA 1 END 10 <nil>")
	})
}

// A client that reads nothing from its connection is cut off, whatever its windows say
// (CVE-2019-9517), and takes the handlers' writes with it.
func TestHTTP2ReadsNothing(t *testing.T) {
	var wrote error
	began := time.Now()
	withPeer(t, &Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		began = time.Now()
		for wrote == nil {
			_, wrote = w.Write(make([]byte, 100_000))
		}
	})}, false, func(t *testing.T, p *peer) {
		resume := p.pause()
		p.write(frame(frameWindow, 0, 0, u32(maxWindow-startWindow)), frame(frameSettings, 0, 0, append([]byte{0, settingWindow}, u32(maxWindow)...)))
		p.write(p.request(1, true, "GET", "/"))
		time.Sleep(DefaultIOTimeout + 3*tick)
		resume()
		synctest.Wait()
		if p.write([]byte{0}) || wrote == nil || errors.Is(wrote, os.ErrDeadlineExceeded) {
			t.Errorf("after %v: still connected, write %v", time.Since(began), wrote)
		}
	})
}
