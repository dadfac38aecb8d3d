// Package openwrt holds what OpenWrt needs beside the daemon; these tests run it under the
// shell that OpenWrt has.
package openwrt

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const initScript = "files/etc/init.d/cloudrest"

// procd runs a function of the init script under busybox ash and returns the calls that
// procd would get.
func procd(t *testing.T, config, what string, env ...string) []string {
	t.Helper()
	if _, err := exec.LookPath("busybox"); err != nil {
		t.Skip("busybox is not installed (make deps)")
	}
	dir := t.TempDir()
	name := filepath.Join(dir, "config")
	if err := os.WriteFile(name, []byte(strings.ReplaceAll(config, "DIR", dir)), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "cloudrest"), 0o700); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "busybox", "ash", "-eu", "testdata/procd.sh", initScript, name, filepath.Join(dir, "run"), what)
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("run the init script: %v\n%s", err, out)
	}
	return strings.Split(strings.TrimSpace(strings.ReplaceAll(string(out), dir, "DIR")), "\n")
}

func TestInitScript(t *testing.T) {
	got := procd(t, "config cloudrest 'main'\n\toption enabled '1'\n\toption https ':8443'\n\toption state_dir 'DIR/state'\n\toption fifo 'DIR/run/notify'\n", "start_service")
	want := []string{
		"chgrp cloudrest DIR/config",
		"chown cloudrest:cloudrest DIR/state",
		"chown cloudrest:cloudrest DIR/run",
		"open_instance",
		"set_param command /usr/bin/cloudrestd run --config DIR/config",
		"set_param file DIR/config",
		"set_param respawn 3600 5 0",
		"set_param term_timeout 10",
		"set_param stdout 1",
		"set_param stderr 1",
		"set_param user cloudrest",
		"set_param group cloudrest",
		"set_param no_new_privs 1",
		"set_param capabilities /etc/capabilities/cloudrest.json",
		"set_param limits nofile=4096 4096",
		"add_jail cloudrest log procfs sysfs",
		"add_jail_mount /usr/bin/cloudrestd DIR/config /etc/ssl/certs /etc/hosts /etc/resolv.conf /tmp/resolv.conf /tmp/resolv.conf.d",
		"add_jail_mount_rw DIR/state DIR/run",
		"close_instance",
	}
	if !slices.Equal(got, want) {
		t.Errorf("calls:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestInitScriptOptions(t *testing.T) {
	dir := t.TempDir()
	umdns := filepath.Join(dir, "umdns")
	if err := os.WriteFile(umdns, []byte("#!/bin/sh\n[ \"$1\" = enabled ]\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	identity := func(name, text string) string {
		name = filepath.Join(dir, name)
		text = "#!/bin/sh\n[ \"$1 $2 $3\" = 'identity --json --config' ] && [ -f \"$4\" ] && " + text + "\n"
		if err := os.WriteFile(name, []byte(text), 0o700); err != nil {
			t.Fatal(err)
		}
		return "TEST_PROG=" + name
	}
	known := identity("known", `echo '{"device":"00ff","pin":"abcd"}'`)
	fresh := identity("fresh", "exit 1")
	soon := identity("soon", "{ [ -f "+dir+"/asked ] || { touch "+dir+"/asked; exit 1; }; } && echo '{\"device\":\"00ff\",\"pin\":\"abcd\"}'")
	reload := filepath.Join(dir, "reload")
	if err := os.WriteFile(reload, []byte("#!/bin/sh\necho \"$1\" >>"+reload+".done\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	hw := []string{"TEST_LEDS=" + dir + "/hw", "TEST_DEV=" + dir + "/hw"}
	for _, name := range []string{"green:status/trigger", "green:status/brightness", "gpiochip0", "gpiochip1", "spidev0.1"} {
		name = filepath.Join(dir, "hw", name)
		if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	half := identity("half", `echo '{"device":"00ff"}'`)
	const head = "config cloudrest 'main'\n\toption state_dir 'DIR/state'\n"
	for _, tc := range []struct {
		name, config string
		env          []string
		want, not    string
		reload       string // what the init script is called with later
	}{
		{name: "disabled", config: head + "\toption enabled '0'\n", want: "", not: "open_instance"},
		{name: "memory", config: head + "\toption gogc '30'\n\toption gomemlimit '20MiB'\n", want: "append_param env GOGC=30\nappend_param env GOMEMLIMIT=20MiB"},
		{name: "socket of the service", config: head + "\toption origin 'unix://DIR/app/rest.sock'\n", want: "add_jail_mount_rw DIR/app"},
		{name: "no pipe", config: head + "\toption fifo 'off'\n", want: "add_jail_mount_rw DIR/state DIR/run\nclose_instance"},
		{name: "authority of the relay", config: head + "\toption relay_ca '/etc/relay.pem'\n", want: "add_jail_mount /etc/relay.pem"},
		{name: "state in a foreign directory", config: "config cloudrest 'main'\n\toption state_dir 'DIR'\n", env: []string{"TEST_UID=15800"},
			want: "logger -t cloudrest -p daemon.err DIR belongs to somebody else", not: "open_instance"},
		{name: "state in one of that name", config: "config cloudrest 'main'\n\toption state_dir 'DIR/cloudrest'\n", env: []string{"TEST_UID=15800"}, want: "chown cloudrest:cloudrest DIR/cloudrest\n"},
		{name: "LED", config: head + "\toption led 'green:status'\n", env: hw,
			want: "chgrp cloudrest DIR/green:status/trigger\nchgrp cloudrest DIR/green:status/brightness\nadd_jail_mount_rw DIR/green:status\nclose", not: "gpiochip"},
		{name: "LED that is not there", config: head + "\toption led 'red:status'\n", env: hw, not: "red"},
		{name: "LED on a line", config: head + "\toption led 'gpio=GPIO27'\n", env: hw,
			want: "chgrp cloudrest DIR/gpiochip0\nadd_jail_mount_rw DIR/gpiochip0\nchgrp cloudrest DIR/gpiochip1\nadd_jail_mount_rw DIR/gpiochip1\nclose"},
		{name: "button", config: head + "\toption button 'GPIO17'\n", env: hw, want: "add_jail_mount_rw DIR/gpiochip0\n", not: "spidev"},
		{name: "SPI port", config: head + "\toption uid_source 'file=/x,spi=0.1,random'\n", env: hw, want: "chgrp cloudrest DIR/spidev0.1\nadd_jail_mount_rw DIR/spidev0.1\nclose", not: "gpiochip"},
		{name: "no hardware", config: head, env: hw, not: "DIR/gpio"},
		{name: "low port, no cage", config: head + "\toption https ':443'\n\toption http ':80'\n", env: []string{"TEST_UJAIL=/nonexistent"},
			want: "logger -t cloudrest -p daemon.warn port 443 needs the package procd-ujail: install it, or take a port from 1024 on\nlogger -t cloudrest -p daemon.warn port 80 needs"},
		{name: "low port", config: head + "\toption https ':443'\n\toption http ':80'\n", not: "logger"},
		{name: "high port, no cage", config: head + "\toption https ':8443'\n\toption http 'off'\n", env: []string{"TEST_UJAIL=/nonexistent"}, not: "logger"},
		{name: "umdns runs", config: head + "\toption https ':8443'\n\toption name 'My garden'\n", env: []string{"TEST_UMDNS=" + umdns, known},
			want: "open_data\njson_add_object mdns\n" +
				"add_mdns_service cloudrest tcp 8443 id=00ff name=My garden fp=abcd path=/\nadd_mdns_service https tcp 8443 id=00ff name=My garden fp=abcd path=/\n" +
				"json_close_object\nclose_data\nappend_param env CLOUDREST_MDNS=off"},
		{name: "umdns runs, no name, one address", config: head + "\toption https '[fd00::1]:443'\n", env: []string{"TEST_UMDNS=" + umdns, known},
			want: "add_mdns_service cloudrest tcp 443 id=00ff fp=abcd path=/\n"},
		{name: "umdns runs, first start", config: head, env: []string{"TEST_UMDNS=" + umdns, soon}, not: "mdns", reload: "reload\n"},
		{name: "umdns runs, there will be no id", config: head, env: []string{"TEST_UMDNS=" + umdns, fresh}, not: "mdns"},
		{name: "umdns runs, the pin is not known", config: head, env: []string{"TEST_UMDNS=" + umdns, half}, not: "mdns"},
		{name: "umdns runs, announcing is off", config: head + "\toption mdns 'off'\n", env: []string{"TEST_UMDNS=" + umdns, known}, not: "mdns"},
		{name: "umdns does not run", config: head, env: []string{"TEST_UMDNS=/nonexistent", known}, not: "CLOUDREST_MDNS"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := strings.Join(procd(t, tc.config, "start_service", append(tc.env, "TEST_RELOAD="+reload)...), "\n")
			got = strings.ReplaceAll(got, dir+"/hw", "DIR")
			if !strings.Contains(got, tc.want) {
				t.Errorf("calls:\n%s\nwant among them:\n%s", got, tc.want)
			}
			if tc.not != "" && strings.Contains(got, tc.not) {
				t.Errorf("calls:\n%s\nwant no %s", got, tc.not)
			}
			done, _ := os.ReadFile(reload + ".done")
			if string(done) != tc.reload {
				t.Errorf("later the init script is called with %q, want %q", done, tc.reload)
			}
			os.Remove(reload + ".done")
		})
	}
}

func TestInitTriggers(t *testing.T) {
	got := procd(t, "", "service_triggers")
	if want := []string{"add_reload_trigger cloudrest", "add_reload_interface_trigger lan"}; !slices.Equal(got, want) {
		t.Errorf("triggers = %q, want %q", got, want)
	}
}

// TestFirstBoot runs the uci-defaults script against a uci command that keeps its values
// in files, and checks what it changed.
func TestFirstBoot(t *testing.T) {
	if _, err := exec.LookPath("busybox"); err != nil {
		t.Skip("busybox is not installed (make deps)")
	}
	for _, tc := range []struct {
		name   string
		uci    map[string]string
		want   string // a line of what was set
		absent string
	}{
		{name: "no web server, no cage", uci: map[string]string{"cloudrest.main.https": ":8443"}, absent: "cloudrest.main"},
		{name: "no web server", uci: map[string]string{"cloudrest.main.https": ":8443", "ujail": ""}, want: "set cloudrest.main.https=':443'"},
		{name: "another server is there", uci: map[string]string{"cloudrest.main.https": ":8443", "nginx": "", "ujail": ""}, absent: "cloudrest.main"},
		{name: "somebody chose a port", uci: map[string]string{"cloudrest.main.https": ":9443", "ujail": ""}, absent: "cloudrest.main"},
		{name: "lan is no bridge", uci: map[string]string{"network.lan.device": "eth0", "cloudrest.main.interfaces": "br-lan"},
			want: "delete cloudrest.main.interfaces\nadd_list cloudrest.main.interfaces='eth0'\ncommit cloudrest\n"},
		{name: "lan is the bridge", uci: map[string]string{"network.lan.device": "br-lan", "cloudrest.main.interfaces": "br-lan"}, absent: "cloudrest"},
		{name: "somebody chose interfaces", uci: map[string]string{"network.lan.device": "eth0", "cloudrest.main.interfaces": "br-lan wlan0"}, absent: "cloudrest"},
		{name: "lan is open", uci: map[string]string{"firewall.@zone[0].name": "wan", "firewall.@zone[0].input": "REJECT",
			"firewall.@zone[1].name": "lan", "firewall.@zone[1].input": "ACCEPT"}, absent: "firewall"},
		{name: "lan is closed", uci: map[string]string{"firewall.@zone[0].name": "lan", "firewall.@zone[0].input": "REJECT"},
			want: "set firewall.cloudrest_udp.dest_port='5353 5684 15800'", absent: "wan"},
		{name: "rule is there", uci: map[string]string{"firewall.@zone[0].name": "lan", "firewall.@zone[0].input": "REJECT",
			"firewall.cloudrest_tcp": "rule", "firewall.cloudrest_udp": "rule"}, absent: "firewall"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			for key, value := range tc.uci {
				if err := os.WriteFile(filepath.Join(dir, key), []byte(value+"\n"), 0o700); err != nil {
					t.Fatal(err)
				}
			}
			tool := "#!/bin/sh\nshift\ncase $1 in get) cat \"" + dir + "/$2\" 2>/dev/null ;; batch) cat >>\"" + dir + "/done\" ;; esac\n"
			if err := os.WriteFile(filepath.Join(dir, "uci"), []byte(tool), 0o700); err != nil {
				t.Fatal(err)
			}
			cmd := exec.CommandContext(t.Context(), "busybox", "ash", "files/etc/uci-defaults/60-cloudrest")
			cmd.Env = append(os.Environ(), "PATH="+dir+":/bin") // no web server there
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("run it: %v\n%s", err, out)
			}
			done, _ := os.ReadFile(filepath.Join(dir, "done"))
			if !strings.Contains(string(done), tc.want) {
				t.Errorf("did:\n%s\nwant %q", done, tc.want)
			}
			if tc.absent != "" && strings.Contains(string(done), tc.absent) {
				t.Errorf("did:\n%s\nwant nothing on %q", done, tc.absent)
			}
		})
	}
}

// TestCapabilities checks that the daemon gets one capability and no other.
func TestCapabilities(t *testing.T) {
	text, err := os.ReadFile("files/etc/capabilities/cloudrest.json")
	if err != nil {
		t.Fatal(err)
	}
	var sets map[string][]string
	if err := json.Unmarshal(text, &sets); err != nil {
		t.Fatal(err)
	}
	if len(sets) != 5 {
		t.Errorf("%d sets, want 5", len(sets))
	}
	for name, caps := range sets {
		if !slices.Equal(caps, []string{"CAP_NET_BIND_SERVICE"}) {
			t.Errorf("%s = %q, want only CAP_NET_BIND_SERVICE", name, caps)
		}
	}
}
