package relay

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestValidate(t *testing.T) {
	good := Config{TLSOff: true, Domains: []string{"Relay.Example.", "127.0.0.1", "::1", "localhost"}}
	if err := good.Validate(); err != nil {
		t.Errorf("a good configuration: %v", err)
	}
	if good.Domains[0] != "Relay.Example." {
		t.Error("Validate changed its caller's configuration")
	}
	bad := Config{
		Role: "front", Listen: "443", Metrics: "x", TLSCert: "/nonexistent", Domains: []string{"https://relay.example", "a_b", strings.Repeat("a", 64)},
		Enroll: "anybody", TrustedProxies: []netip.Prefix{{}}, Keepalive: time.Second, MaxDevices: -1, Grace: -1,
	}
	err := bad.Validate()
	var fields []string
	for _, e := range err.(interface{ Unwrap() []error }).Unwrap() {
		fe, ok := errors.AsType[*FieldError](e)
		if !ok {
			t.Fatalf("%v is no FieldError", e)
		}
		fields = append(fields, fe.Field)
	}
	slices.Sort(fields)
	want := []string{"domain", "domain", "domain", "enroll", "grace", "keepalive", "listen", "max-devices", "metrics", "role", "tls-cert", "trusted-proxies"}
	if !slices.Equal(fields, want) {
		t.Errorf("mistakes in %v, want all at once: %v", fields, want)
	}
	for name, c := range map[string]Config{
		"no domain":             {TLSOff: true},
		"off and a certificate": {TLSOff: true, TLSCert: "x", Domains: []string{"a"}},
		"no certificate":        {Domains: []string{"a"}},
		"unreadable":            {TLSCert: "/nonexistent", TLSKey: "/nonexistent", Domains: []string{"a"}},
	} {
		if err := c.Validate(); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
