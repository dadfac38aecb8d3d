package main

import (
	"io"
	"strings"
	"testing"
)

func TestCacheSettings(t *testing.T) {
	for text, want := range map[string]int64{"auto": 0, "off": -1, "4MiB": 4 * mib, "65536": 64 << 10, "1GiB": 1 << 30} {
		got, err := parseCache(text)
		if err != nil || got != want {
			t.Errorf("--cache %s = %d, %v, want %d", text, got, err, want)
		}
		if again, err := parseCache(showCache(got)); err != nil || again != got {
			t.Errorf("--cache %s is shown as %s, which reads as %d, %v", text, showCache(got), again, err)
		}
	}
	_, err := program(io.Discard).Parse([]string{"--cache", "1KiB", "--cache-rules", "zones ttl=5s", "--cache-rules", "/a tll=5s,/b never", "--cache-flash=often"}, nil)
	for _, want := range []string{`--cache: "1KiB"`, `"zones`, `"tll=5s"`, `--cache-flash: "often"`} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want it to tell of %s", err, want)
		}
	}
}
