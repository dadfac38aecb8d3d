// Package browser drives a headless Chromium from Go tests, as a person at a phone would: it
// opens pages, clicks where a finger would, types, reads what is shown and takes screenshots. It
// speaks the DevTools protocol (https://chromedevtools.github.io/devtools-protocol/) over a
// pair of pipes, so no port is opened, and knows only the dozen methods that this needs. What
// a page should show is its callers' matter; package tools/browser/pagewalk has the walk through
// the device's own page.
//
// Every call takes a context and none waits longer than Patience. A page on which a wait took that
// long is given up: every further call on it fails at once, so that a long walk fails soon.
package browser

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	// Patience bounds every wait: a page of ours answers in a fraction of it even on a busy machine.
	Patience = 20 * time.Second

	maxMessage = 64 << 20 // a screenshot of a long page is a few MB
	grace      = 5 * time.Second
)

// ErrAbsent means that this machine has no Chromium: tests skip and say so.
var ErrAbsent = errors.New("no chromium, chromium-browser or google-chrome is installed (Debian: chromium)")

// Config of a browser.
type Config struct {
	// Pins are SHA-256 hashes of SubjectPublicKeyInfo; a server that shows a certificate with one
	// of them is trusted whatever else is wrong with it. Nothing else is loosened.
	Pins [][]byte
	// Hosts are names that lead to 127.0.0.1; all other names lead nowhere.
	Hosts []string
}

// Browser is a running Chromium. It is safe for concurrent use, and so are its pages.
type Browser struct {
	cmd     *exec.Cmd
	profile string
	in      *os.File // to Chromium
	read    chan struct{}
	exited  chan struct{}
	waitErr error // valid when exited is closed

	writing sync.Mutex // one message at a time; not mu, so that what comes in is always read
	mu      sync.Mutex // guards what follows
	last    int
	calls   map[int]chan reply
	pages   map[string]*Page // by session
	readErr error            // why nothing is read any more
	closed  bool
}

// message is what Chromium sends: an answer has an ID, an event a method.
type message struct {
	ID      int             `json:"id"`
	Session string          `json:"sessionId"`
	Method  string          `json:"method"`
	Params  json.RawMessage `json:"params"`
	Result  json.RawMessage `json:"result"`
	Error   *struct {
		Message string `json:"message"`
	} `json:"error"`
}

type reply struct {
	result json.RawMessage
	err    error
}

// Start starts Chromium with a profile of its own, which Close removes. It returns ErrAbsent when
// there is none. ctx bounds the start, not the life.
func Start(ctx context.Context, c Config) (*Browser, error) {
	var program string
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			program = path
			break
		}
	}
	if program == "" {
		return nil, ErrAbsent
	}
	profile, err := os.MkdirTemp("", "browser-")
	if err != nil {
		return nil, fmt.Errorf("make a browser profile: %w", err)
	}
	// Chromium reads commands from descriptor 3 and writes to 4.
	theirIn, in, err := os.Pipe()
	if err != nil {
		os.RemoveAll(profile)
		return nil, fmt.Errorf("make a pipe to chromium: %w", err)
	}
	out, theirOut, err := os.Pipe()
	if err != nil {
		theirIn.Close()
		in.Close()
		os.RemoveAll(profile)
		return nil, fmt.Errorf("make a pipe from chromium: %w", err)
	}

	cmd := exec.Command(program, c.flags(profile)...)
	cmd.ExtraFiles = []*os.File{theirIn, theirOut}
	cmd.Env = append(os.Environ(), "HOME="+profile, "XDG_CONFIG_HOME="+profile, "XDG_CACHE_HOME="+profile)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // its helpers are killed with it
	b := &Browser{cmd: cmd, profile: profile, in: in, read: make(chan struct{}), exited: make(chan struct{}),
		calls: map[int]chan reply{}, pages: map[string]*Page{}}
	err = cmd.Start()
	theirIn.Close()
	theirOut.Close()
	if err != nil {
		in.Close()
		out.Close()
		os.RemoveAll(profile)
		return nil, fmt.Errorf("start %s: %w", program, err)
	}
	go func() {
		defer close(b.exited)
		b.waitErr = cmd.Wait()
	}()
	go func() {
		defer close(b.read)
		defer out.Close()
		b.receive(out)
	}()
	if err := b.call(ctx, "", "Browser.getVersion", nil, nil); err != nil {
		b.Close()
		return nil, fmt.Errorf("start %s: %w", program, err)
	}
	return b, nil
}

// flags are the arguments of Chromium.
func (c Config) flags(profile string) []string {
	rules := "MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost"
	for _, host := range c.Hosts {
		rules = "MAP " + host + " 127.0.0.1, " + rules
	}
	f := []string{"--headless=new", "--remote-debugging-pipe", "--user-data-dir=" + profile,
		"--no-first-run", "--no-default-browser-check", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars", "--mute-audio",
		"--disable-background-networking", "--disable-component-update", "--disable-default-apps", "--disable-extensions", "--disable-sync",
		"--disable-breakpad", "--disable-crash-reporter", "--metrics-recording-only", "--no-proxy-server", "--password-store=basic",
		"--disable-background-timer-throttling", "--disable-backgrounding-occluded-windows", "--disable-renderer-backgrounding",
		"--force-color-profile=srgb", "--lang=en-US", "--host-resolver-rules=" + rules}
	if os.Getuid() == 0 {
		f = append(f, "--no-sandbox") // its sandbox refuses root
	}
	if len(c.Pins) > 0 {
		var pins []string
		for _, pin := range c.Pins {
			pins = append(pins, base64.StdEncoding.EncodeToString(pin))
		}
		f = append(f, "--ignore-certificate-errors-spki-list="+strings.Join(pins, ","))
	}
	return append(f, "about:blank")
}

// Close ends Chromium and all its helpers, and removes its profile.
func (b *Browser) Close() error {
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return nil
	}
	b.closed = true
	b.in.Close() // Chromium ends when its pipe does
	b.mu.Unlock()
	select {
	case <-b.exited:
	case <-time.After(grace):
	}
	syscall.Kill(-b.cmd.Process.Pid, syscall.SIGKILL) // the group: nothing is left of it when all went well
	<-b.exited
	<-b.read
	// A helper that was killed just now may still be writing.
	var err error
	for range 20 {
		if err = os.RemoveAll(b.profile); err == nil {
			return nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	return fmt.Errorf("remove the browser profile: %w", err)
}

// receive hands out what Chromium sends until it ends. Messages end with a NUL.
func (b *Browser) receive(out io.Reader) {
	s := bufio.NewScanner(out)
	s.Buffer(make([]byte, 64<<10), maxMessage)
	s.Split(func(data []byte, eof bool) (int, []byte, error) {
		if i := bytes.IndexByte(data, 0); i >= 0 {
			return i + 1, data[:i], nil
		}
		return 0, nil, nil
	})
	for s.Scan() {
		var m message
		if err := json.Unmarshal(s.Bytes(), &m); err != nil {
			continue // not for us: everything we ask for is JSON
		}
		b.mu.Lock()
		if answer, ok := b.calls[m.ID]; ok && m.ID != 0 {
			delete(b.calls, m.ID)
			r := reply{result: m.Result}
			if m.Error != nil {
				r.err = errors.New(m.Error.Message)
			}
			answer <- r // has room
		}
		page := b.pages[m.Session]
		b.mu.Unlock()
		if m.Method != "" && page != nil {
			page.event(m.Method, m.Params)
		}
	}
	b.mu.Lock()
	b.readErr = errors.New("chromium ended")
	if err := s.Err(); err != nil {
		b.readErr = fmt.Errorf("read from chromium: %w", err)
	}
	for id, answer := range b.calls {
		delete(b.calls, id)
		answer <- reply{err: b.readErr}
	}
	b.mu.Unlock()
}

// call calls a DevTools method, of a page when session is not empty, and reads its result into result unless nil.
func (b *Browser) call(ctx context.Context, session, method string, params, result any) error {
	ctx, cancel := context.WithTimeout(ctx, Patience)
	defer cancel()
	answer := make(chan reply, 1)
	b.mu.Lock()
	err := b.readErr
	if b.closed {
		err = os.ErrClosed
	}
	b.last++
	id := b.last
	if err == nil {
		b.calls[id] = answer
	}
	b.mu.Unlock()
	defer func() {
		b.mu.Lock()
		delete(b.calls, id)
		b.mu.Unlock()
	}()
	if err == nil {
		err = b.send(id, session, method, params)
	}
	if err != nil {
		return fmt.Errorf("call %s: %w", method, err)
	}
	select {
	case r := <-answer:
		if r.err != nil {
			return fmt.Errorf("call %s: %w", method, r.err)
		}
		if result != nil {
			if err := json.Unmarshal(r.result, result); err != nil {
				return fmt.Errorf("read the answer of %s: %w", method, err)
			}
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("call %s: %w", method, context.Cause(ctx))
	}
}

// send writes one message to Chromium.
func (b *Browser) send(id int, session, method string, params any) error {
	text, err := json.Marshal(struct {
		ID      int    `json:"id"`
		Session string `json:"sessionId,omitempty"`
		Method  string `json:"method"`
		Params  any    `json:"params,omitempty"`
	}{id, session, method, params})
	if err != nil {
		return err
	}
	b.writing.Lock()
	defer b.writing.Unlock()
	b.in.SetWriteDeadline(time.Now().Add(Patience)) // pipes have deadlines
	_, err = b.in.Write(append(text, 0))
	return err
}
