package gateway

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestOptionalPartIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log strings.Builder
		var st states
		var runs int
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			optional(ctx, slog.New(slog.NewTextHandler(&log, nil)), &st, "mdns", func(ctx context.Context) error {
				if runs++; runs <= 20 {
					return errors.New("no interface")
				}
				<-ctx.Done()
				return nil
			})
		}()
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := st.get("mdns"); got != "failing: no interface" {
			t.Errorf("state = %q", got)
		}
		time.Sleep(20 * retryMost)
		synctest.Wait()
		if got := st.get("mdns"); got != "on" || runs != 21 {
			t.Errorf("state = %q after %d runs, want on after 21", got, runs)
		}
		if got := strings.Count(log.String(), "\n"); got != 1 {
			t.Errorf("%d lines for one kind of failure, want 1:\n%s", got, log.String())
		}
		cancel()
		<-ended
		if got := st.get("udp"); got != "off" {
			t.Errorf("a part never started is %q, want off", got)
		}
	})
}
