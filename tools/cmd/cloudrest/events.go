package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"time"

	"github.com/cloudrest/cloudrest/tether/settings"
	"github.com/cloudrest/cloudrest/tether/sse"
)

type eventsOptions struct {
	reach
	since   string
	count   int
	json    bool
	retries int
}

const (
	// silence is how long a stream may say nothing: servers send a comment each 15 s.
	silence = 3 * sse.DefaultHeartbeat
	// minWait and maxWait bound the random wait before a stream is opened again.
	minWait, maxWait = time.Second, 30 * time.Second
)

func eventsCommand(env environment) *settings.Command {
	var o eventsOptions
	return &settings.Command{
		Name: "events", Summary: "watch the notifications of a device", Args: "URL | DEVICE [PATH]", MinArgs: 1, MaxArgs: 2,
		Long: "Without PATH: what the device notifies, with the same ids on the LAN and through the relay. With PATH: an event " +
			"stream of its own service. A broken connection is taken up again after the last event seen.",
		Samples: []settings.Sample{
			{Says: "over the LAN", Line: "cloudrest events \"Garden irrigation\""},
			{Says: "through the relay, for a program", Line: "cloudrest events 3f2a91bc --relay https://relay.example --token-file token --json"},
		},
		Declare: func(s *settings.Set) {
			o = eventsOptions{}
			s.String(&o.since, "since", "begin after the event with this id; default: only new ones")
			s.Int(&o.count, "count", 0, 1<<30, "end after so many events; 0: never")
			s.Int(&o.retries, "retries", 0, 1<<30, "give up after so many failed attempts in a row; 0: never")
			s.Switch(&o.json, "json", "one JSON object per line")
			o.declare(s)
		},
		Run: func(ctx context.Context, in *settings.Parsed, out io.Writer) error {
			o.notes, o.discover = env.stderr, env.discover
			path := ""
			if len(in.Args) == 2 {
				path = in.Args[1]
			}
			return o.run(ctx, in.Args[0], path, screenOf(out))
		},
	}
}

func (o *eventsOptions) run(ctx context.Context, word, path string, out *screen) error {
	last, seen, failed := o.since, 0, 0
	var m *remote
	for {
		wait := minWait
		err := error(nil)
		if m == nil { // again after failures: the device may have moved
			m, err = o.find(ctx, word)
		}
		if err == nil {
			var n int
			n, wait, err = o.follow(ctx, m, path, &last, o.count-seen, out)
			if seen += n; n > 0 {
				failed = 0
			}
		}
		if o.count > 0 && seen >= o.count {
			return nil
		}
		if ctx.Err() != nil {
			return nil // Ctrl-C is how one stops watching
		}
		if ee, ok := errors.AsType[*settings.ExitError](err); ok && (ee.Code == exitStatus || failed == 0 && seen == 0 && m == nil) {
			return err // refused, or a mistake in the words
		}
		failed++
		if o.retries > 0 && failed >= o.retries {
			return cannot("watch events: gave up after %d attempts: %w", failed, err)
		}
		wait = max(wait, min(maxWait, minWait<<min(failed-1, 10)))
		wait = wait/2 + rand.N(wait/2+1)
		if failed == 1 || failed%10 == 0 {
			fmt.Fprintf(o.notes, "the stream broke (%v), again in %v\n", err, wait.Round(100*time.Millisecond))
		}
		if failed > 2 && !strings.Contains(word, "://") {
			m = nil
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil
		}
	}
}

var errSilent = errors.New("nothing was heard for too long")

// follow reads one connection's events, at most limit of them when limit > 0.
func (o *eventsOptions) follow(ctx context.Context, m *remote, path string, last *string, limit int, out *screen) (n int, wait time.Duration, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	alarm := time.AfterFunc(silence, func() { cancel(errSilent) })
	defer alarm.Stop()

	var req *http.Request
	if path == "" && m.events != "" {
		at := *m
		base := *m.base
		base.Path = ""
		at.base = &base
		req, err = at.request(ctx, http.MethodGet, m.events, nil)
	} else {
		req, err = m.request(ctx, http.MethodGet, path, nil)
	}
	if err != nil {
		return 0, minWait, err
	}
	req.Header.Set("Accept", "text/event-stream")
	if *last != "" {
		req.Header.Set("Last-Event-ID", *last)
	}
	res, err := m.client.Do(req)
	if err != nil {
		return 0, minWait, err
	}
	defer res.Body.Close()
	switch kind := res.Header.Get("Content-Type"); {
	case res.StatusCode == http.StatusServiceUnavailable, res.StatusCode == http.StatusTooManyRequests,
		res.StatusCode == http.StatusBadGateway, res.StatusCode == http.StatusGatewayTimeout:
		return 0, retryAfter(res), fmt.Errorf("%s", res.Status) // it will pass
	case res.StatusCode != http.StatusOK:
		return 0, minWait, &settings.ExitError{Code: exitStatus, Err: fmt.Errorf("watch events: %s%s", res.Status, hint(res.StatusCode))}
	case !strings.HasPrefix(kind, "text/event-stream"):
		return 0, minWait, &settings.ExitError{Code: exitStatus, Err: fmt.Errorf("watch events: %s answers %q, which is no event stream", req.URL.Path, kind)}
	}
	r := sse.NewReader(alive{res.Body, alarm})
	for {
		e, err := r.Next()
		if id := r.LastID(); id != "" {
			*last = id
		}
		if wait = r.Retry(); wait == 0 {
			wait = sse.DefaultRetry
		}
		if err != nil {
			if cause := context.Cause(ctx); cause != nil {
				err = cause
			}
			return n, wait, err
		}
		if err := o.show(e, out); err != nil {
			return n, wait, err
		}
		if n++; limit > 0 && n >= limit {
			return n, wait, nil
		}
	}
}

// alive puts off the alarm with each byte that comes.
type alive struct {
	io.Reader
	alarm *time.Timer
}

func (a alive) Read(p []byte) (int, error) {
	n, err := a.Reader.Read(p)
	a.alarm.Reset(silence)
	return n, err
}

func retryAfter(res *http.Response) time.Duration {
	if s, err := time.ParseDuration(res.Header.Get("Retry-After") + "s"); err == nil && s > 0 {
		return min(s, 5*time.Minute)
	}
	return minWait
}

func (o *eventsOptions) show(e sse.Event, out *screen) error {
	if o.json {
		v := struct {
			ID    string          `json:"id,omitempty"`
			Event string          `json:"event,omitempty"`
			Data  json.RawMessage `json:"data,omitempty"`
			Text  string          `json:"text,omitempty"`
		}{ID: e.ID, Event: e.Name}
		if json.Valid(e.Data) {
			v.Data = e.Data
		} else {
			v.Text = strings.ToValidUTF8(string(e.Data), "\uFFFD")
		}
		return json.NewEncoder(out).Encode(v)
	}
	name := e.Name
	if name != "" {
		name = printable(name) + " "
	}
	_, err := fmt.Fprintf(out, "%s  %s%s\n", out.paint(dim, time.Now().Format(time.TimeOnly)+"  "+printable(e.ID)), out.paint(bold, name), printable(string(e.Data)))
	return err
}
