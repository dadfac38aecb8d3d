package main

import (
	"fmt"

	"github.com/cloudrest/cloudrest/firmware/gateway"
	"github.com/cloudrest/cloudrest/tether/httpcache"
	"github.com/cloudrest/cloudrest/tether/settings"
)

// Words for --cache besides sizes: 0 and -1 of gateway.Config.
const (
	cacheAuto = "auto"
	cacheOff  = "off"
)

func declareCache(s *settings.Set, c *gateway.Config) {
	s.Group("The cache")
	settings.Value(s, &c.Cache, "cache", "SIZE", fmt.Sprintf("auto, off, or a size from %s to %s", settings.FormatSize(gateway.MinCache), settings.FormatSize(gateway.MaxCache)),
		"memory for answers that may be given out again (RFC 9111); auto: by the memory of the board, 512KiB to 16MiB", parseCache, showCache, settings.Example("4MiB"))
	settings.List(s, &c.CacheRules, "cache-rules", "RULE", "a path and what holds for it: ttl=5s, stale=1m, private, public or never",
		"what may be kept, for a service that does not say so itself; repeated or separated by commas; the first rule that fits a path holds", parseRule, func(t string) string { return t },
		settings.Example("/zones/* ttl=5s"))
	s.OnOff(&c.CacheFlash, "cache-flash", "keep what is for everybody and stays fresh for 10 minutes or more over a restart; at most one write to flash in 5 minutes")
}

func parseCache(t string) (int64, error) {
	switch t {
	case cacheAuto, "":
		return 0, nil
	case cacheOff:
		return -1, nil
	}
	n, err := settings.ParseSize(t)
	if err == nil && (n < gateway.MinCache || n > gateway.MaxCache) {
		err = fmt.Errorf("that is %d bytes", n)
	}
	return n, err
}

func showCache(n int64) string {
	switch {
	case n == 0:
		return cacheAuto
	case n < 0:
		return cacheOff
	}
	return settings.FormatSize(n)
}

func parseRule(t string) (string, error) {
	_, err := httpcache.ParseRule(t)
	return t, err
}
