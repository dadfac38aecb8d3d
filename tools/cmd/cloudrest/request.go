package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"mime"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/cloudrest/cloudrest/tether/settings"
)

// maxPretty is the size of the largest body that is indented or put into JSON, in bytes;
// larger ones pass through as they are.
const maxPretty = 4 << 20

type requestOptions struct {
	reach
	data    string
	fields  []string
	include bool
	json    bool
	output  string
	timeout time.Duration
}

func requestCommand(env environment, method, summary string, samples ...settings.Sample) *settings.Command {
	var o requestOptions
	takesBody := method != http.MethodGet
	return &settings.Command{
		Name: strings.ToLower(method), Summary: summary, Args: "URL | DEVICE PATH", MinArgs: 1, MaxArgs: 2, Samples: samples,
		Long: "DEVICE is a name, an ID, or the first digits of an ID. It is found on the LAN and known again by its " +
			"certificate, or reached through a relay. Exit code: 0 for an answer 2xx or 3xx, 1 for 4xx or 5xx, 2 for none.",
		Declare: func(s *settings.Set) {
			o = requestOptions{timeout: 30 * time.Second}
			s.Group("The request")
			if takesBody {
				s.String(&o.data, "data", "the body: text, @FILE, or - for standard input", settings.Short('d'))
			}
			settings.List(s, &o.fields, "header", "header field", "Name: value", "a header field to send, \"Name: value\"; may be repeated",
				parseField, func(t string) string { return t }, settings.Short('H'))
			s.Duration(&o.timeout, "timeout", time.Second, time.Hour, "how long to wait for the answer to begin")
			s.Group("The answer")
			s.Switch(&o.include, "include", "show status and header too", settings.Short('i'))
			s.Switch(&o.json, "json", "one JSON object with status, header and body")
			s.Path(&o.output, "output", "write the body to this file", settings.Short('o'))
			o.declare(s)
		},
		Run: func(ctx context.Context, in *settings.Parsed, out io.Writer) error {
			o.notes, o.discover = env.stderr, env.discover
			return o.run(ctx, method, in.Args, env.stdin, screenOf(out))
		},
	}
}

func parseField(t string) (string, error) {
	name, value, ok := strings.Cut(t, ":")
	if !ok || name == "" || strings.ContainsAny(name, " \t") || strings.ContainsAny(value, "\r\n") {
		return "", fmt.Errorf("%q is none", t)
	}
	return t, nil
}

func (o *requestOptions) run(ctx context.Context, method string, args []string, stdin io.Reader, out *screen) error {
	if len(args) == 1 && !strings.Contains(args[0], "://") {
		return cannot("which path of %q? For example:  cloudrest %s %q /device", args[0], strings.ToLower(method), args[0])
	}
	path := ""
	if len(args) == 2 {
		path = args[1]
	}
	body, kind, length, err := o.body(stdin)
	if err != nil {
		return err
	}
	if c, ok := body.(io.Closer); ok {
		defer c.Close()
	}
	m, err := o.find(ctx, args[0])
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	req, err := m.request(ctx, method, path, body)
	if err != nil {
		return err
	}
	if body != nil {
		req.ContentLength = length
		req.Header.Set("Content-Type", kind)
	}
	for _, f := range o.fields {
		name, value, _ := strings.Cut(f, ":")
		value = strings.TrimSpace(value)
		if strings.EqualFold(name, "Host") {
			req.Host = value
		} else if _, given := req.Header[http.CanonicalHeaderKey(name)]; given && strings.EqualFold(name, "Content-Type") {
			req.Header.Set(name, value)
		} else {
			req.Header.Add(name, value)
		}
	}
	// The timeout ends with the head: a body or a stream may take as long as it likes.
	t := time.AfterFunc(o.timeout, func() { cancel(context.DeadlineExceeded) })
	res, err := m.client.Do(req)
	if t.Stop(); err != nil {
		if cause := context.Cause(ctx); errors.Is(cause, context.DeadlineExceeded) {
			err = fmt.Errorf("no answer in %v: %w", o.timeout, cause)
		}
		return connectError(m, err)
	}
	defer res.Body.Close()
	if err := o.show(res, out); err != nil {
		return cannot("%w", err)
	}
	if res.StatusCode >= 400 {
		said := error(nil)
		if !o.include && !o.json { // else it was shown
			said = fmt.Errorf("%s %s: %s", method, cmp.Or(path, req.URL.Path), res.Status)
		}
		return &settings.ExitError{Code: exitStatus, Err: said}
	}
	return nil
}

// body is what --data means; nil is no body. A length of -1 is unknown.
func (o *requestOptions) body(stdin io.Reader) (body io.Reader, kind string, length int64, err error) {
	switch {
	case o.data == "":
		return nil, "", 0, nil
	case o.data == "-", o.data == "@-":
		return stdin, "application/octet-stream", -1, nil
	case o.data[0] == '@':
		f, err := os.Open(o.data[1:])
		if err != nil {
			return nil, "", 0, cannot("read body: %w", err)
		}
		length = -1
		if i, err := f.Stat(); err == nil && i.Mode().IsRegular() {
			length = i.Size()
		}
		if length == 0 { // net/http would take 0 with a body as unknown
			f.Close()
			return http.NoBody, "application/octet-stream", 0, nil
		}
		return f, cmp.Or(mime.TypeByExtension(filepath.Ext(f.Name())), "application/octet-stream"), length, nil
	}
	kind = "text/plain; charset=utf-8"
	if json.Valid([]byte(o.data)) {
		kind = "application/json"
	}
	return strings.NewReader(o.data), kind, int64(len(o.data)), nil
}

func (o *requestOptions) show(res *http.Response, out *screen) error {
	if o.output != "" {
		f, err := os.Create(o.output)
		if err != nil {
			return fmt.Errorf("write body: %w", err)
		}
		_, err = io.Copy(f, res.Body)
		if err := errors.Join(err, f.Close()); err != nil {
			return fmt.Errorf("write body: %w", err)
		}
	}
	if o.json {
		return showJSON(res, out)
	}
	if o.include {
		code := green
		if res.StatusCode >= 400 {
			code = red
		}
		fmt.Fprintln(out, out.paint(code, res.Proto+" "+printable(res.Status)))
		for _, name := range slices.Sorted(maps.Keys(res.Header)) {
			for _, v := range res.Header[name] {
				fmt.Fprintln(out, out.paint(dim, printable(name)+": ")+printable(v))
			}
		}
		fmt.Fprintln(out)
	}
	if o.output != "" {
		return nil
	}
	// For people, JSON is indented, and no other text may take over their terminal;
	// programs get the bytes.
	if out.width == 0 {
		if _, err := io.Copy(out, res.Body); err != nil {
			return fmt.Errorf("read answer: %w", err)
		}
		return nil
	}
	b, err := io.ReadAll(io.LimitReader(res.Body, maxPretty+1))
	if err != nil {
		return fmt.Errorf("read answer: %w", err)
	}
	var pretty bytes.Buffer
	switch {
	case len(b) > maxPretty, !isText(res.Header.Get("Content-Type")) && !json.Valid(b) && len(b) > 0:
		return fmt.Errorf("the body is large or not text (%s): write it to a file with -o FILE", printable(cmp.Or(res.Header.Get("Content-Type"), "no type")))
	case json.Indent(&pretty, b, "", "  ") == nil:
		b = pretty.Bytes()
	}
	for line := range bytes.Lines(b) {
		fmt.Fprintln(out, printable(strings.ReplaceAll(strings.TrimRight(string(line), "\r\n"), "\t", "    ")))
	}
	return nil
}

func isText(kind string) bool {
	t, _, _ := mime.ParseMediaType(kind)
	return strings.HasPrefix(t, "text/") || t == "application/json" || strings.HasSuffix(t, "+json") || strings.HasSuffix(t, "xml") || t == "application/javascript"
}

// showJSON puts the answer into one object. The body is JSON if it is, text if it is
// UTF-8, else base64 under another name.
func showJSON(res *http.Response, out io.Writer) error {
	b, err := io.ReadAll(io.LimitReader(res.Body, maxPretty+1))
	if err != nil {
		return fmt.Errorf("read answer: %w", err)
	}
	if len(b) > maxPretty {
		return fmt.Errorf("the body is larger than %d bytes: leave --json out, or write it to a file with -o FILE", maxPretty)
	}
	v := struct {
		Status int             `json:"status"`
		Header http.Header     `json:"header"`
		Body   json.RawMessage `json:"body,omitempty"`
		Text   string          `json:"text,omitempty"`
		Bytes  []byte          `json:"bytes,omitempty"`
	}{Status: res.StatusCode, Header: res.Header}
	switch {
	case json.Valid(b):
		v.Body = b
	case isText(res.Header.Get("Content-Type")):
		v.Text = strings.ToValidUTF8(string(b), "\uFFFD")
	default:
		v.Bytes = b
	}
	return json.NewEncoder(out).Encode(v)
}
