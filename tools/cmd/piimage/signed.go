package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/cloudrest/cloudrest/tools/cmd/piimage/onboard/device"
	"github.com/cloudrest/cloudrest/tools/cmd/piimage/update"
)

// The devices here have our own server: those that take signed updates, and zero-w.

// ours asks whether the device has our own server; nil, nil if it is gokrazy's.
func (c *client) ours(ctx context.Context) (*device.State, error) {
	text, err := c.call(ctx, http.MethodGet, "v1/state", nil)
	if err != nil {
		if _, ok := errors.AsType[*statusError](err); ok {
			return nil, nil
		}
		return nil, err
	}
	var s device.State
	if json.Unmarshal(text, &s) != nil || s.API != 1 {
		return nil, nil
	}
	return &s, nil
}

func tell(out io.Writer, s *device.State) {
	fmt.Fprintf(out, "piimage: %s is a %s (%s) and runs %s, sequence %d; state: %s\n", s.Hostname, cmpOr(s.Model, "machine"), s.Board, s.Version, s.Sequence, s.Phase)
}

// state tells what the device says about itself.
func (c *client) showState(ctx context.Context, out io.Writer) error {
	if err := c.open(); err != nil {
		return err
	}
	s, err := c.ours(ctx)
	if err != nil {
		return err
	}
	if s == nil {
		_, _, err := c.target(ctx, out)
		return err
	}
	tell(out, s)
	if s.Updates {
		fmt.Fprintf(out, "piimage: it takes updates that are signed and not older than sequence %d\n", s.Newest)
	} else {
		fmt.Fprintln(out, "piimage: it takes no updates over the network: it was built without --update-key")
	}
	for _, p := range []string{s.Failed, s.Problem} {
		if p != "" {
			fmt.Fprintln(out, "piimage: the last update did not stay, or something is wrong:", p)
		}
	}
	return nil
}

// showLog prints the last that a program of the device printed.
func (c *client) showLog(ctx context.Context, out io.Writer, program string) error {
	if err := c.open(); err != nil {
		return err
	}
	text, err := c.call(ctx, http.MethodGet, "v1/log?program="+program, nil)
	if err != nil {
		return err
	}
	_, err = out.Write(text)
	return err
}

// updateSigned sends a bundle and waits for the verdict.
func (c *client) updateSigned(ctx context.Context, out io.Writer) error {
	if err := c.open(); err != nil {
		return err
	}
	before, err := c.ours(ctx)
	if err != nil {
		return err
	}
	if before == nil {
		return errors.New("this device was built without --update-key: use --image, with its secrets")
	}
	tell(out, before)
	f, err := os.Open(c.bundle)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	// First what the device refuses for, in a few KB.
	head, err := update.Head(f)
	if err != nil {
		return fmt.Errorf("%s: %w", c.bundle, err)
	}
	if err := c.offer(ctx, "v1/check", bytes.NewReader(head), int64(len(head)), io.Discard); err != nil {
		return err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	body := io.TeeReader(f, &progress{out: out, what: "update", total: max(st.Size(), 1)})
	if err := c.offer(ctx, "v1/update", body, st.Size(), out); err != nil {
		return err
	}
	return c.await(ctx, out, before)
}

// offer posts a bundle or its beginning and says what the device answers.
func (c *client) offer(ctx context.Context, path string, body io.Reader, size int64, out io.Writer) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.base+path, io.NopCloser(body))
	if err != nil {
		return err
	}
	req.ContentLength = size
	res, err := c.http.Do(req)
	if err != nil {
		return fmt.Errorf("send the update: %w", err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("the device refuses: %s", bytes.TrimSpace(text))
	}
	fmt.Fprintf(out, "piimage: %s\n", bytes.TrimSpace(text))
	return nil
}

// backSigned goes to the version before.
func (c *client) backSigned(ctx context.Context, out io.Writer, before *device.State) error {
	tell(out, before)
	text, err := c.call(ctx, http.MethodPost, "v1/back", nil)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "piimage: %s\n", bytes.TrimSpace(text))
	return c.await(ctx, out, before)
}

// await polls until a start after before has come to a verdict.
func (c *client) await(ctx context.Context, out io.Writer, before *device.State) error {
	ctx, cancel := context.WithTimeout(ctx, pollLimit)
	defer cancel()
	last := ""
	for {
		c.http.CloseIdleConnections()
		ask, stop := context.WithTimeout(ctx, pollAsk)
		now, err := c.ours(ask)
		stop()
		if errors.Is(err, errOther) {
			return err
		}
		if err == nil && now != nil && now.Boot != before.Boot {
			if say := now.Version + now.Phase; say != last {
				last = say
				tell(out, now)
			}
			if now.Phase == device.Normal {
				if now.Failed != "" {
					return fmt.Errorf("%w: %s", errBack, now.Failed)
				}
				fmt.Fprintf(out, "piimage: %s stays\n", now.Version)
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the device to restart (last: %v): %w", err, ctx.Err())
		case <-time.After(pollEvery):
		}
	}
}

// pollAsk bounds one question while the device restarts.
const pollAsk = 10 * time.Second

// statusError is an answer other than 200.
type statusError struct{ method, path, status, text string }

func (e *statusError) Error() string {
	return fmt.Sprintf("%s /%s: %s: %s", e.method, e.path, e.status, strings.TrimSpace(e.text))
}
