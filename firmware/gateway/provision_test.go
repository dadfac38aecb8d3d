package gateway

import (
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/cloudrest/cloudrest/tether/provisioning"
)

// What Provision does with a station is tested with the real one, in tools/factory.
func TestProvisionConfig(t *testing.T) {
	good := ProvisionConfig{OriginHandler: http.NotFoundHandler(), StateDir: "x", Station: &url.URL{Scheme: "https", Host: "station:15850"}, StationCA: "y", TokenFile: "z"}
	if err := good.Validate(); err != nil {
		t.Errorf("a good one: %v", err)
	}
	for key, change := range map[string]func(*ProvisionConfig){
		"origin":           func(c *ProvisionConfig) { c.OriginHandler = nil },
		"state-dir":        func(c *ProvisionConfig) { c.StateDir = "" },
		"factory":          func(c *ProvisionConfig) { c.Station = &url.URL{Scheme: "http", Host: "station"} },
		"factory-ca":       func(c *ProvisionConfig) { c.StationCA = "" },
		"batch-token-file": func(c *ProvisionConfig) { c.TokenFile = "" },
		"factory-wifi":     func(c *ProvisionConfig) { c.Network = provisioning.Network{SSID: strings.Repeat("x", 33)} },
		"wait":             func(c *ProvisionConfig) { c.Wait = -1 },
	} {
		c := good
		change(&c)
		if err := c.Validate(); err == nil || !strings.HasPrefix(err.Error(), key+": ") {
			t.Errorf("%s: %v, want a mistake about it", key, err)
		}
	}
	if err := (ProvisionConfig{}).Validate(); strings.Count(err.Error(), "\n") != 4 {
		t.Errorf("nothing: %v, want five mistakes", err)
	}
}
