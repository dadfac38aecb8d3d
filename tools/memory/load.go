package memory

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cloudrest/cloudrest/tether/sse"
	"github.com/cloudrest/cloudrest/tether/trust"
	"github.com/cloudrest/cloudrest/tools/sample"
)

// Paths of the gateway.
const (
	eventsPath = "/.cloudrest/v1/events"
	pairPath   = "/.cloudrest/v1/pair"
)

const (
	maxAnswer = 1 << 20          // bytes of an answer that are read
	pairWait  = 60 * time.Second // an emulated board makes a TLS handshake in half a second
)

// Load is what is asked of a gateway at once. All of it is HTTP/1.1, as routers speak it:
// every listener and every client has its own connection over TLS.
type Load struct {
	Base  string      // https://host:port, without a slash behind
	Token string      // of a paired client (Pair); empty where access is open
	TLS   *tls.Config // trust.Client(pin), or one that checks nothing; a copy is used

	Listeners int      // that follow the gateway's events; at most 64 are let in
	Clients   int      // keep-alive connections that share the requests
	Requests  int      // in all
	Rate      int      // requests in a second, at most: a slow board just takes longer
	Paths     []string // that are asked for with GET, in turn; the answer must be 200

	// Upload is how many bytes are sent to UploadPath with POST while the requests go on,
	// as fast as the gateway takes them; 0: none. The answer must be 200, and that of the
	// sample service must name the number of bytes and their hash.
	Upload     int64
	UploadPath string

	// Notify, if there is one, makes the gateway send a notification; it is called about
	// once in a second of requests. Each listener must get each.
	Notify func(ctx context.Context, line string) error
}

// Standard is the load that the budgets are for, with the paths of the sample service: 50
// listeners, 100 requests in a second, an upload. The caller says where the gateway is.
func Standard() Load {
	return Load{
		Listeners: 50, Clients: 8, Requests: 500, Rate: 100,
		Paths:  []string{"/zones", "/zones/1", "/program", "/zones/2", "/weather", "/zones/3", "/watering/log", "/device"},
		Upload: 64 << 20, UploadPath: "/upload",
	}
}

// Result is what was done.
type Result struct {
	Requests int           // answered with 200
	Events   int           // notifications that arrived, at all listeners together
	Uploaded int64         // bytes
	Took     time.Duration // all but the listeners' coming; for people, no limit is on it
}

// Once makes one request, over a connection of its own.
func (l Load) Once(ctx context.Context) error {
	client := l.client(1)
	defer client.CloseIdleConnections()
	resp, err := l.do(ctx, client, http.MethodGet, l.Paths[0], nil)
	if err == nil {
		_, err = read(resp)
	}
	return err
}

// Run puts the load on the gateway. When all requests are answered, the upload has arrived
// and every listener has got every notification, held is called, with all connections
// still there. Everything has ended when Run returns. The error is the first thing that
// went wrong; ctx bounds all.
func (l Load) Run(ctx context.Context, held func() error) (Result, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	var group sync.WaitGroup
	defer group.Wait()
	defer cancel(nil)
	start := func(what string, f func() error) {
		group.Go(func() {
			if err := f(); err != nil && ctx.Err() == nil {
				cancel(fmt.Errorf("%s: %w", what, err))
			}
		})
	}
	// What fails once cancel was called fails because of that.
	first := func(err error) error {
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		return err
	}

	var r Result
	events := make(chan struct{}, l.Listeners)
	for i := range l.Listeners {
		client := l.client(1)
		defer client.CloseIdleConnections()
		resp, err := l.do(ctx, client, http.MethodGet, eventsPath, nil)
		if err != nil {
			return r, first(fmt.Errorf("listener %d: %w", i+1, err))
		}
		start(fmt.Sprintf("listener %d", i+1), func() error {
			defer resp.Body.Close()
			for stream := sse.NewReader(resp.Body); ; {
				e, err := stream.Next()
				if err != nil {
					return err
				}
				if e.Name == sse.ResetName {
					return errors.New("told that it has missed events")
				}
				select {
				case events <- struct{}{}:
				case <-ctx.Done():
					return nil
				}
			}
		})
	}

	begin := time.Now()
	var work sync.WaitGroup
	working := func(what string, f func() error) {
		work.Add(1)
		start(what, func() error { defer work.Done(); return f() })
	}
	asking := l.client(l.Clients + 1) // one more: the upload
	defer asking.CloseIdleConnections()
	var asked, answered, uploaded atomic.Int64
	sent := 0
	for range l.Clients {
		working("request", func() error {
			for {
				n := int(asked.Add(1)) - 1
				if n >= l.Requests {
					return nil
				}
				if err := until(ctx, begin.Add(time.Duration(n)*time.Second/time.Duration(l.Rate))); err != nil {
					return err
				}
				resp, err := l.do(ctx, asking, http.MethodGet, l.Paths[n%len(l.Paths)], nil)
				if err != nil {
					return err
				}
				if _, err := read(resp); err != nil {
					return err
				}
				answered.Add(1)
			}
		})
	}
	if l.Upload > 0 {
		working("upload", func() error { return l.upload(ctx, asking, &uploaded) })
	}
	if l.Notify != nil {
		sent = l.Requests / l.Rate
		working("notify", func() error {
			for n := range sent {
				if err := until(ctx, begin.Add(time.Duration(n)*time.Second)); err != nil {
					return err
				}
				if err := l.Notify(ctx, fmt.Sprintf("notification %d under load", n)); err != nil {
					return err
				}
			}
			return nil
		})
	}
	done := make(chan struct{})
	group.Go(func() { work.Wait(); close(done) })
	for finished := false; !finished || r.Events < sent*l.Listeners; {
		select {
		case <-events:
			r.Events++
		case <-done:
			finished, done = true, nil
		case <-ctx.Done():
			return r, context.Cause(ctx)
		}
	}
	r.Requests, r.Uploaded, r.Took = int(answered.Load()), uploaded.Load(), time.Since(begin)
	if held != nil {
		if err := held(); err != nil {
			return r, err
		}
	}
	return r, context.Cause(ctx) // a listener may have gone meanwhile
}

func until(ctx context.Context, at time.Time) error {
	t := time.NewTimer(time.Until(at))
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (l Load) client(conns int) *http.Client {
	var http1 http.Protocols
	http1.SetHTTP1(true)
	return &http.Client{Transport: &http.Transport{TLSClientConfig: l.TLS.Clone(), Protocols: &http1, MaxIdleConnsPerHost: conns, MaxConnsPerHost: conns}}
}

// do returns an answer with status 200, with its body yet to be read.
func (l Load) do(ctx context.Context, c *http.Client, method, path string, body io.Reader) (*http.Response, error) {
	r, err := http.NewRequestWithContext(ctx, method, l.Base+path, body)
	if err != nil {
		return nil, err
	}
	if l.Token != "" {
		r.Header.Set("Authorization", "Bearer "+l.Token)
	}
	resp, err := c.Do(r)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		text, _ := read(resp)
		return nil, fmt.Errorf("%s %s: %s: %.300s", method, path, resp.Status, text)
	}
	return resp, nil
}

func read(resp *http.Response) ([]byte, error) {
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err == nil && len(text) > maxAnswer {
		err = fmt.Errorf("an answer of more than %d bytes", maxAnswer)
	}
	return text, err
}

// upload sends what the sample service would send as firmware, so that all of it differs.
func (l Load) upload(ctx context.Context, c *http.Client, sent *atomic.Int64) error {
	resp, err := l.do(ctx, c, http.MethodPost, l.UploadPath, io.NopCloser(sample.Firmware(l.Upload)))
	if err != nil {
		return err
	}
	text, err := read(resp)
	if err != nil {
		return err
	}
	var got struct{ Bytes int64 }
	if err := json.Unmarshal(text, &got); err != nil || got.Bytes != l.Upload {
		return fmt.Errorf("answer %.200s, want the number of bytes, %d", text, l.Upload)
	}
	sent.Store(got.Bytes)
	return nil
}

// Pair pairs as the first client of a new device, whose window is open, and returns the
// token and the device's pin (SPEC.md §11.3). Nobody compares the codes: for measurements
// on networks where nobody is in the middle.
func Pair(ctx context.Context, base string) (token, pin string, err error) {
	ctx, cancel := context.WithTimeout(ctx, pairWait)
	defer cancel()
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	defer client.CloseIdleConnections()
	post := func(path string, body map[string]string, answer any) (*tls.ConnectionState, error) {
		text, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		r, err := http.NewRequestWithContext(ctx, http.MethodPost, base+path, bytes.NewReader(text))
		if err != nil {
			return nil, err
		}
		resp, err := client.Do(r)
		if err != nil {
			return nil, err
		}
		if text, err = read(resp); err != nil {
			return nil, err
		}
		if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusAccepted {
			return nil, fmt.Errorf("%s: %.300s", resp.Status, text)
		}
		return resp.TLS, json.Unmarshal(text, answer)
	}
	var own [trust.NonceSize]byte
	rand.Read(own[:]) // never fails
	var asked struct{ Request string }
	if _, err := post(pairPath, map[string]string{"name": "load", "commitment": base64.RawURLEncoding.EncodeToString(trust.Commit(own[:]))}, &asked); err != nil {
		return "", "", fmt.Errorf("ask to be paired: %w", err)
	}
	var paired struct{ Token string }
	state, err := post(pairPath+"/"+asked.Request, map[string]string{"nonce": base64.RawURLEncoding.EncodeToString(own[:])}, &paired)
	if err != nil {
		return "", "", fmt.Errorf("show the nonce: %w", err)
	}
	if paired.Token == "" {
		return "", "", errors.New("the device waits for a person: it is not new")
	}
	pin, err = trust.PinOf(state)
	return paired.Token, pin, err
}
