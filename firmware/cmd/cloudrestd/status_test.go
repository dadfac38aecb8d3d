package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestPanel does what OpenWrt's page does with this program: looks at the gateway, opens the
// window, sees who asks with the code to compare, and lets the phone in.
func TestPanel(t *testing.T) {
	dir := t.TempDir()
	conf := filepath.Join(dir, "cloudrest")
	text := fmt.Sprintf("config cloudrest 'main'\n\toption uid_source random\n\toption origin http://127.0.0.1:9\n\toption https '127.0.0.1:0'\n\toption http off\n\toption state_dir '%s/state'\n\toption fifo off\n\toption mdns on\n\toption udp_discovery off\n", dir)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	command := func(args ...string) (string, error) {
		out, err := exec.CommandContext(t.Context(), binary(t), append(args, "--config", conf)...).CombinedOutput()
		return string(out), err
	}
	if out, err := command("status", "--json"); err == nil || !strings.Contains(out, "no cloudrestd runs") {
		t.Errorf("before the start: %q, %v; want a failure that says so", out, err)
	}
	d := runDaemon(t, "", "--config", conf, "--mdns", "off")
	status := func() (r report) {
		t.Helper()
		out, err := command("status", "--json")
		if err == nil {
			err = json.Unmarshal([]byte(out), &r)
		}
		if err != nil {
			t.Fatalf("status: %v: %s", err, out)
		}
		return r
	}
	if r := status(); r.Status.Certificate != d.print || r.Clients != 0 || r.Status.Discovery.MDNS != "off" {
		t.Errorf("status = %+v, want the pin %s, no clients and no mDNS", r, d.print)
	}
	out, err := command("pair", "--open", "--json")
	var window struct{ Open bool }
	if err != nil || json.Unmarshal([]byte(out), &window) != nil || !window.Open {
		t.Fatalf("pair --open --json = %q, %v; want an open window", out, err)
	}
	resp, err := d.client(t).Post(d.url+".cloudrest/v1/pair", "application/json", strings.NewReader(`{"name":"phone"}`))
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		t.Fatalf("ask to be paired: %s %s", resp.Status, body)
	}
	r := status()
	if len(r.Requests) != 1 || r.Requests[0].Name != "phone" || len(r.Requests[0].Code) != 6 || len(r.Requests[0].Request) != 16 {
		t.Fatalf("requests = %+v; want the phone with its code of 6 digits and an id of 16", r.Requests)
	}
	if out, err := command("pair", "--approve", r.Requests[0].Request); err != nil {
		t.Errorf("approve: %v: %s", err, out)
	}
	if r := status(); r.Clients != 1 || len(r.Requests) != 0 {
		t.Errorf("%d clients, requests %+v; want 1 and none", r.Clients, r.Requests)
	}
	if out, err := command("status"); err != nil || !strings.Contains(out, d.print) || !strings.Contains(out, "paired; 1 paired") {
		t.Errorf("status = %q, %v", out, err)
	}
}

// OpenWrt's init script turns mDNS off by the environment when umdns answers instead.
func TestEnvironmentOverUCI(t *testing.T) {
	conf := filepath.Join(t.TempDir(), "cloudrest")
	if err := os.WriteFile(conf, []byte("config cloudrest 'main'\n\toption mdns 'on'\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		env  []string
		want string
	}{{nil, "on"}, {[]string{"CLOUDREST_MDNS=off"}, "off"}} {
		p, err := program(io.Discard).Parse([]string{"run", "--config", conf}, tc.env)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range p.Set.Values() {
			if e.Key == "mdns" && e.Value != tc.want {
				t.Errorf("environment %q: mdns = %s, want %s", tc.env, e.Value, tc.want)
			}
		}
	}
}
