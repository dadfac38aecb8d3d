package factory

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/cloudrest/cloudrest/tether"
	"github.com/cloudrest/cloudrest/tether/provisioning"
)

// controlFile is the UNIX socket for orders in the state directory. Who may use it may do
// everything: it is the directory's owner.
const controlFile = "control.sock"

const minPrefix = 8 // digits of an ID that Find takes for the whole

const orderTimeout = 30 * time.Second // for the first byte of an answer

// newBatch is the body of POST /batches.
type newBatch struct {
	Name    string `json:"name"`
	Count   int    `json:"count"`
	Seconds int64  `json:"seconds"`
}

// madeBatch is its answer.
type madeBatch struct {
	Batch
	Token string `json:"token"`
}

type release struct {
	ID     tether.DeviceID `json:"id"`
	Reason string          `json:"reason"`
}

// orders serves the control socket; l is nil when no station runs.
func orders(s *Store, l *line) http.Handler {
	mux := http.NewServeMux()
	listing := func(path string, list func() (any, error)) {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) {
			v, err := list()
			if err != nil {
				orderFailed(w, err)
				return
			}
			answer(w, http.StatusOK, v)
		})
	}
	listing("/batches", func() (any, error) { return s.Batches() })
	listing("/conflicts", func() (any, error) { return s.Conflicts() })
	listing("/troubles", func() (any, error) { return s.Troubles() })
	listing("/revoked", func() (any, error) { return s.Revocations() })
	listing("/state", func() (any, error) {
		if l == nil {
			return nil, errNoLine
		}
		return l.state()
	})
	mux.HandleFunc("GET /units", func(w http.ResponseWriter, _ *http.Request) {
		enc := json.NewEncoder(w)
		if err := s.Each(func(u Unit) error { return enc.Encode(u) }); err != nil {
			panic(http.ErrAbortHandler) // the client must not take a part for the whole
		}
	})
	mux.HandleFunc("POST /batches", func(w http.ResponseWriter, r *http.Request) {
		var in newBatch
		if !order(w, r, &in) {
			return
		}
		b, token, err := s.NewBatch(in.Name, in.Count, time.Duration(in.Seconds)*time.Second)
		if err != nil {
			orderFailed(w, err)
			return
		}
		if l != nil {
			l.changed()
		}
		answer(w, http.StatusCreated, madeBatch{b, token})
	})
	mux.HandleFunc("DELETE /batches/{name}", func(w http.ResponseWriter, r *http.Request) {
		if err := s.RevokeBatch(r.PathValue("name")); err != nil {
			orderFailed(w, err)
			return
		}
		if l != nil {
			l.changed()
		}
		w.WriteHeader(http.StatusNoContent)
	})
	mux.HandleFunc("POST /release", func(w http.ResponseWriter, r *http.Request) {
		var in release
		if !order(w, r, &in) {
			return
		}
		if _, err := s.Release(in.ID, provisioning.Clean(in.Reason, provisioning.MaxField)); err != nil {
			orderFailed(w, err)
			return
		}
		if l != nil {
			l.released(in.ID)
		}
		w.WriteHeader(http.StatusNoContent)
	})
	return mux
}

func order(w http.ResponseWriter, r *http.Request, v any) bool {
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, provisioning.MaxBody)).Decode(v); err != nil {
		answer(w, http.StatusBadRequest, provisioning.Error{Status: http.StatusBadRequest, Message: err.Error()})
		return false
	}
	return true
}

func orderFailed(w http.ResponseWriter, err error) {
	status := http.StatusBadRequest
	if errors.Is(err, ErrUnknown) {
		status = http.StatusNotFound
	}
	answer(w, status, provisioning.Error{Status: status, Message: err.Error()})
}

// Client gives orders: to the station that runs in a state directory, or, when none does,
// to the store itself. It is safe for concurrent use.
type Client struct {
	http  *http.Client
	store *Store // nil: a station is running
}

// Connect finds the station of a state directory. The client must be closed.
func Connect(ctx context.Context, dir string) (*Client, error) {
	name := filepath.Join(dir, controlFile)
	dial := func(ctx context.Context) (net.Conn, error) { return new(net.Dialer).DialContext(ctx, "unix", name) }
	conn, err := dial(ctx)
	if err == nil {
		conn.Close()
		return &Client{http: &http.Client{Transport: &http.Transport{
			DialContext:           func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
			ResponseHeaderTimeout: orderTimeout, DisableKeepAlives: true,
		}}}, nil
	}
	if errors.Is(err, os.ErrPermission) {
		return nil, fmt.Errorf("a station runs as another user: %w", err)
	}
	if _, err := os.Stat(filepath.Join(dir, storeFile)); err != nil {
		return nil, fmt.Errorf("no factory station has ever run in this state directory: %w", err)
	}
	store, err := OpenStore(dir, DefaultLife)
	if err != nil {
		return nil, err
	}
	return &Client{http: &http.Client{Transport: inProcess{orders(store, nil)}}, store: store}, nil
}

// inProcess asks a handler of this process.
type inProcess struct{ h http.Handler }

func (t inProcess) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body == nil {
		r.Body = http.NoBody
	}
	body, in := io.Pipe()
	w := &piped{header: http.Header{}, in: in, head: make(chan int, 1)}
	go func() {
		defer func() {
			var err error
			if recover() != nil { // the handler has given up its answer
				err = io.ErrUnexpectedEOF
			}
			w.WriteHeader(http.StatusOK)
			in.CloseWithError(err)
		}()
		t.h.ServeHTTP(w, r)
	}()
	return &http.Response{StatusCode: <-w.head, Header: w.header, Body: body, Request: r}, nil
}

// piped is the http.ResponseWriter of inProcess.
type piped struct {
	header http.Header
	in     *io.PipeWriter
	head   chan int // the status; holds one
	sent   bool
}

func (p *piped) Header() http.Header { return p.header }

func (p *piped) WriteHeader(status int) {
	if !p.sent {
		p.sent = true
		p.head <- status
	}
}

func (p *piped) Write(b []byte) (int, error) {
	p.WriteHeader(http.StatusOK)
	return p.in.Write(b)
}

// Running tells whether a station is running.
func (c *Client) Running() bool { return c.store == nil }

// Close gives the store back.
func (c *Client) Close() error {
	if c.store == nil {
		return nil
	}
	return c.store.Close()
}

// do gives one order; the body of a 2xx is decoded into out, if there is one.
func (c *Client) do(ctx context.Context, method, path string, in, out any) error {
	resp, err := c.ask(ctx, method, path, in)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		return fmt.Errorf("read the station's answer: %w", err)
	}
	return nil
}

func (c *Client) ask(ctx context.Context, method, path string, in any) (*http.Response, error) {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(b)
	}
	r, err := http.NewRequestWithContext(ctx, method, "http://station"+path, body)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(r)
	if err != nil {
		return nil, fmt.Errorf("ask the station: %w", err)
	}
	if resp.StatusCode < 300 {
		return resp, nil
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(io.LimitReader(resp.Body, provisioning.MaxBody))
	e := provisioning.ParseError(resp.StatusCode, b)
	err = errors.New(strings.TrimPrefix(e.Message, "release: "))
	if e.Status == http.StatusNotFound {
		err = fmt.Errorf("%w (%w)", err, ErrUnknown)
	}
	return nil, err
}

// NewBatch makes a batch; the token is shown only now.
func (c *Client) NewBatch(ctx context.Context, name string, count int, life time.Duration) (Batch, string, error) {
	var made madeBatch
	err := c.do(ctx, "POST", "/batches", newBatch{name, count, int64(life / time.Second)}, &made)
	return made.Batch, made.Token, err
}

// Batches lists the batches.
func (c *Client) Batches(ctx context.Context) (list []Batch, err error) {
	err = c.do(ctx, "GET", "/batches", nil, &list)
	return list, err
}

// RevokeBatch ends a batch.
func (c *Client) RevokeBatch(ctx context.Context, name string) error {
	return c.do(ctx, "DELETE", "/batches/"+url.PathEscape(name), nil, nil)
}

// Conflicts lists the conflicts.
func (c *Client) Conflicts(ctx context.Context) (list []Conflict, err error) {
	err = c.do(ctx, "GET", "/conflicts", nil, &list)
	return list, err
}

// Troubles lists the units that failed.
func (c *Client) Troubles(ctx context.Context) (list []Trouble, err error) {
	err = c.do(ctx, "GET", "/troubles", nil, &list)
	return list, err
}

// Revocations lists the revoked certificates.
func (c *Client) Revocations(ctx context.Context) (list []Revoked, err error) {
	err = c.do(ctx, "GET", "/revoked", nil, &list)
	return list, err
}

// State is what the page shows now.
func (c *Client) State(ctx context.Context) (s State, err error) {
	err = c.do(ctx, "GET", "/state", nil, &s)
	return s, err
}

// Find returns the device whose ID is s or, if that is at least eight digits and fits one
// alone, begins with s: as the page shows it. ErrUnknown if there is none.
func (c *Client) Find(ctx context.Context, s string) (tether.DeviceID, error) {
	if id, err := tether.ParseDeviceID(s); err == nil {
		return id, nil
	}
	if len(s) < minPrefix {
		return "", fmt.Errorf("%q: want a device ID, or %d and more of its first digits", s, minPrefix)
	}
	found := map[tether.DeviceID]bool{}
	list, err := c.Conflicts(ctx)
	if err != nil {
		return "", err
	}
	for _, x := range list {
		found[x.ID] = strings.HasPrefix(string(x.ID), s)
	}
	err = c.Units(ctx, func(u Unit) error {
		found[u.ID] = strings.HasPrefix(string(u.ID), s)
		return nil
	})
	if err != nil {
		return "", err
	}
	maps.DeleteFunc(found, func(_ tether.DeviceID, fits bool) bool { return !fits })
	ids := slices.Collect(maps.Keys(found))
	switch len(ids) {
	case 1:
		return ids[0], nil
	case 0:
		return "", fmt.Errorf("unit %s: %w", s, ErrUnknown)
	}
	return "", fmt.Errorf("%s begins the IDs of %d units: give more digits", s, len(ids))
}

// Release lets a unit be claimed with another key.
func (c *Client) Release(ctx context.Context, id tether.DeviceID, reason string) error {
	return c.do(ctx, "POST", "/release", release{id, reason}, nil)
}

// Units calls f for every unit, by ID.
func (c *Client) Units(ctx context.Context, f func(Unit) error) error {
	resp, err := c.ask(ctx, "GET", "/units", nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	for dec := json.NewDecoder(resp.Body); ; {
		var u Unit
		err := dec.Decode(&u)
		if err == io.EOF {
			return nil
		}
		if err == nil {
			err = f(u)
		}
		if err != nil {
			return fmt.Errorf("list the units: %w", err)
		}
	}
}
