package gateway

import (
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/cloudrest/cloudrest/firmware/internal/cache"
)

func TestValidateReportsEverything(t *testing.T) {
	bad := Config{
		Origin: &url.URL{Scheme: "ftp", Host: "x"}, HTTPS: "443", HTTP: "x", Access: "everybody",
		Relays: []*url.URL{{Scheme: "https", Host: "a"}, nil, {Scheme: "wss", Host: "a", Path: "/x"}}, RelayCA: "/does/not/exist",
		Name: "a || b\n", UDPPort: -1, UDPAnswerPort: 70000, FIFO: "fifo", NotifySocket: "fifo",
		OriginConcurrency: -1, OriginQueue: 1 << 20, Cache: MinCache - 1, CacheRules: append(slices.Repeat([]string{"/a ttl=5s"}, cache.MaxRules), "zones ttl=1s", "/zones tll=5s"), StopWait: -1,
	}
	err := bad.Validate()
	if err == nil {
		t.Fatal("no error")
	}
	count := map[string]int{}
	for _, e := range err.(interface{ Unwrap() []error }).Unwrap() {
		ce, ok := errors.AsType[*ConfigError](e)
		if !ok {
			t.Fatalf("%v is no ConfigError", e)
		}
		count[ce.Key]++
	}
	for key, want := range map[string]int{"origin": 1, "https": 1, "http": 1, "access": 1, "state-dir": 1, "relay": 3, "relay-ca": 1, "name": 2,
		"udp-port": 1, "udp-answer-port": 1, "fifo": 1, "notify-socket": 2, "origin-concurrency": 1, "origin-queue": 1, "stop-wait": 1,
		"cache": 1, "cache-rules": 3} {
		if count[key] != want {
			t.Errorf("%d mistakes with %s, want %d", count[key], key, want)
		}
	}
	if t.Failed() {
		t.Log(err)
	}
}

func TestValidateTakes(t *testing.T) {
	if err := Default().Validate(); err != nil {
		t.Error(err)
	}
	small := Config{OriginHandler: http.NotFoundHandler(), StateDir: "x"}
	if err := small.Validate(); err != nil {
		t.Error(err)
	}
	if small.HTTPS != "" {
		t.Error("Validate changed its receiver")
	}
	for _, u := range []string{"unix:///run/x.sock", "http://[::1]:1/", "http://host"} {
		origin, err := url.Parse(u)
		if err != nil {
			t.Fatal(err)
		}
		if err := (Config{Origin: origin, StateDir: "x"}).Validate(); err != nil {
			t.Errorf("%s: %v", u, err)
		}
	}
	for _, u := range []string{"unix:run/x.sock", "http://host/base", "http://host?x=1", "http://user:geheim@host"} {
		origin, err := url.Parse(u)
		if err != nil {
			t.Fatal(err)
		}
		if err := (Config{Origin: origin, StateDir: "x"}).Validate(); err == nil || strings.Contains(err.Error(), "geheim") {
			t.Errorf("%s: %v, want an error without the password", u, err)
		}
	}
}
