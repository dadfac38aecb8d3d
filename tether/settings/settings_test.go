package settings

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

// config is what the test program sets.
type config struct {
	Name, HTTPS, HTTP, Level, CA, State, Token string
	Origin                                     *url.URL
	Relays                                     []*url.URL
	Count                                      int
	Wait                                       time.Duration
	Max                                        int64
	MDNS, JSON                                 bool
}

func defaults() config {
	return config{HTTPS: ":443", HTTP: ":80", Level: "info", State: "/var/lib/x", Count: 4, Wait: 90 * time.Second,
		Max: 16 << 20, MDNS: true, Origin: &url.URL{Scheme: "http", Host: "127.0.0.1:8080"}}
}

// program declares every kind of setting.
func program(c *config) *App {
	return &App{Name: "prog", Summary: "does things", Commands: []*Command{
		{Name: "run", Summary: "work", Samples: []Sample{{"a usual start", "prog --origin http://127.0.0.1:9000"}},
			Declare: func(s *Set) {
				*c = defaults()
				s.Group("The service")
				s.URL(&c.Origin, "origin", "http,unix", "where the service listens", Example("unix:///run/x.sock"))
				s.Int(&c.Count, "origin-concurrency", 1, 100, "how many at once")
				s.Group("Listening")
				s.Address(&c.HTTPS, "https", "HTTPS listener")
				s.Address(&c.HTTP, "http", "redirects", OrOff())
				s.OnOff(&c.MDNS, "mdns", "announce")
				s.String(&c.Name, "name", "what people call it", Example("Garden"))
				s.URLs(&c.Relays, "relay", "wss,ws", "relays", Example("wss://a.example"))
				s.File(&c.CA, "relay-ca", "CA file")
				s.Path(&c.State, "state-dir", "state")
				s.Enum(&c.Level, "log-level", []string{"debug", "info", "warn", "error"}, "log")
				s.Duration(&c.Wait, "wait", time.Second, time.Hour, "wait")
				s.Size(&c.Max, "cache-max", 0, 1<<30, "cache")
				s.String(&c.Token, "token", "a secret", Secret())
			},
			Run: func(ctx context.Context, in *Parsed, out io.Writer) error {
				fmt.Fprintln(out, "ran")
				return nil
			}},
		{Name: "get", Summary: "get", Args: "DEVICE PATH", MinArgs: 2, MaxArgs: 2, Declare: func(s *Set) {
			s.Switch(&c.JSON, "json", "for programs", Short('j'))
			s.String(&c.Token, "token", "a secret", Secret())
		}, Run: func(ctx context.Context, in *Parsed, out io.Writer) error { return &ExitError{Code: 7} }},
		{Name: "version", Summary: "tells the version", Run: func(ctx context.Context, in *Parsed, out io.Writer) error {
			return errors.New("no version")
		}},
	}}
}

func file(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "x.conf")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestPrecedence(t *testing.T) {
	name := file(t, "name = file # comment\nstate-dir = \"/from file\"\nwait=2m\norigin-concurrency = 9\nrelay = wss://f1.example, wss://f2.example\nrelay = wss://f3.example\njson = on\n")
	var c config
	p, err := program(&c).Parse([]string{"--config", name, "--wait", "3s", "--http=off", "--mdns", "off", "--relay", "wss://a.example", "--relay=wss://b.example"},
		[]string{"CLOUDREST_WAIT=4s", "CLOUDREST_NAME=env", "CLOUDREST_LOG_LEVEL=", "CLOUDREST_CACHE_MAX=1MiB", "HOME=/x"})
	if err != nil {
		t.Fatal(err)
	}
	want := defaults()
	want.Name, want.State, want.Wait, want.Count, want.HTTP, want.MDNS, want.Max = "env", "/from file", 3*time.Second, 9, "", false, 1<<20
	var hosts []string
	for _, u := range c.Relays {
		hosts = append(hosts, u.Host)
	}
	if got := strings.Join(hosts, " "); got != "a.example b.example" {
		t.Errorf("relays = %s, want only those of the flags", got)
	}
	c.Relays = nil
	if !reflect.DeepEqual(c, want) {
		t.Errorf("settings = %+v\nwant %+v", c, want)
	}
	for key, want := range map[string]string{"wait": "--wait", "name": "CLOUDREST_NAME", "origin-concurrency": name + ":4", "https": "default"} {
		if got := p.Set.Source(key); got != want {
			t.Errorf("Source(%s) = %q, want %q", key, got, want)
		}
	}
	// The list of the file, over several lines.
	if _, err := program(&c).Parse(nil, []string{"CLOUDREST_CONFIG=" + name}); err != nil || len(c.Relays) != 3 {
		t.Errorf("relays of the file = %v, %v, want three", c.Relays, err)
	}
}

func TestEverythingWrongAtOnce(t *testing.T) {
	name := file(t, "orign = http://x\nwait = soon\nname = a\nname = b\nno equals\ncache-max = 16 miles\ntoken = \"se\ncret\n")
	var c config
	p, err := program(&c).Parse([]string{"--config", name, "--htps", ":1", "--https", "443", "--log-level", "inf", "extra", "--relay", "wss://ok.example,http://no.example", "--relay-ca", "/does/not/exist", "--mdns", "maybe", "--origin"},
		[]string{"CLOUDREST_ORIGIN_CONCURRENCY=0", "CLOUDREST_MDN=off", "CLOUDREST_TOKEN=geheim\nx"})
	if err == nil {
		t.Fatal("no error")
	}
	text := err.Error()
	for _, want := range []string{
		`unknown flag --htps, did you mean "--https"?`,
		`--https: "443" is not right: want host:port`,
		`--log-level: "inf" is not right: want one of debug, info, warn, error (did you mean info?)`,
		`--relay: "wss://ok.example,http://no.example" is not right: want a URL that begins with wss:// or ws://`,
		`--relay-ca: "/does/not/exist" is not right`, "no such file",
		`--origin has no value: want a URL that begins with http:// or unix://, such as unix:///run/x.sock`,
		`"extra" is too much`,
		`--mdns: "maybe" is not right: want on or off`,
		`x.conf:1: unknown setting "orign", did you mean "origin"?`,
		`x.conf:2: wait: "soon" is not right: want a time from 1s to 1h`,
		`x.conf:4: name was already given in line 3`,
		`x.conf:5: is not "key = value"`,
		`x.conf:6: cache-max: "16 miles" is not right: want a size from 0 to 1GiB`,
		`x.conf:7: no closing quote`,
		`CLOUDREST_ORIGIN_CONCURRENCY: origin-concurrency: "0" is not right: want a whole number from 1 to 100`,
		`CLOUDREST_TOKEN: token: "(hidden)" is not right`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the error does not say %s", want)
		}
	}
	if strings.Contains(text, "geheim") || strings.Contains(text, "\"cret") {
		t.Error("the error tells a secret")
	}
	if t.Failed() {
		t.Log(text)
	}
	if len(p.Warnings) != 1 || !strings.Contains(p.Warnings[0], `"CLOUDREST_MDN", did you mean "CLOUDREST_MDNS"?`) {
		t.Errorf("warnings = %q, want one about CLOUDREST_MDN", p.Warnings)
	}
	var ve *ValueError
	if !errors.As(err, &ve) {
		t.Error("no *ValueError in the error")
	}
}

func TestKinds(t *testing.T) {
	for _, tc := range []struct {
		flag string
		good []string
		bad  []string
	}{
		{"origin", []string{"http://127.0.0.1:1", "unix:///run/x.sock", "http://[::1]:80/base"},
			[]string{"", "x", "http://", "http:///p", "unix://host/p", "unix:", "http://u:p@h", "http://h:0", "http://h:99999", "http://h#f", "ftp://h", "off"}},
		{"https", []string{":443", "0.0.0.0:0", "[::1]:8443", "host:1"}, []string{"", "443", "h:", "h:x", "h:70000", "h:+1", "h:01", "a b:1", "off"}},
		{"http", []string{":80", "off"}, []string{"on", "80"}},
		{"mdns", []string{"on", "off", "true", "FALSE", "yes", "0"}, []string{"", "maybe"}},
		{"wait", []string{"1s", "1h", "1m30s"}, []string{"", "1", "500ms", "2h", "-1s"}},
		{"cache-max", []string{"0", "16MiB", "16 MiB", "5kB", "7", "1gib"}, []string{"", "-1", "2GiB", "1.5MiB", "MiB", "9999999999999GiB"}},
		{"origin-concurrency", []string{"1", "100"}, []string{"", "0", "101", "1.5", "x", "99999999999999999999"}},
		{"name", []string{"", "Gärten 1"}, []string{"a\nb", "a\x00"}},
		{"relay", []string{"", "wss://a,ws://b"}, []string{"wss://a,", "x"}},
		{"log-level", []string{"warn"}, []string{"", "WARN"}},
	} {
		for _, v := range tc.good {
			var c config
			if _, err := program(&c).Parse([]string{"--" + tc.flag + "=" + v}, nil); err != nil {
				t.Errorf("--%s=%q: %v", tc.flag, v, err)
			}
		}
		for _, v := range tc.bad {
			var c config
			if _, err := program(&c).Parse([]string{"--" + tc.flag + "=" + v}, nil); err == nil {
				t.Errorf("--%s=%q: no error", tc.flag, v)
			}
		}
	}
}

func TestCommands(t *testing.T) {
	for _, tc := range []struct {
		line string
		cmd  string
		args string
		json bool
		err  string
	}{
		{line: "", cmd: "run"},
		{line: "run --name x", cmd: "run"},
		{line: "version", cmd: "version"},
		{line: "--version", cmd: "version"},
		{line: "get dev /path --json", cmd: "get", args: "dev /path", json: true},
		{line: "get --json dev /path", cmd: "get", args: "dev /path", json: true},
		{line: "get -j dev -", cmd: "get", args: "dev -", json: true},
		{line: "get --json=off -- dev --x", cmd: "get", args: "dev --x"},
		{line: "get dev", err: "get needs DEVICE PATH"},
		{line: "get a b c", err: `"c" is too much: get takes DEVICE PATH`},
		{line: "gte a b", err: `unknown command "gte", did you mean "get"?`},
		{line: "frobnicate", err: "there are run, get, version"},
		{line: "--name x version", err: "the command version must come first"},
		{line: "get a b --name x", err: `unknown flag --name`},
		{line: "--name x --name y", cmd: "run"},
	} {
		var c config
		p, err := program(&c).Parse(strings.Fields(tc.line), nil)
		if tc.err != "" {
			if err == nil || !strings.Contains(err.Error(), tc.err) {
				t.Errorf("%q: error = %v, want %q", tc.line, err, tc.err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%q: %v", tc.line, err)
			continue
		}
		if p.Command.Name != tc.cmd || strings.Join(p.Args, " ") != tc.args || c.JSON != tc.json {
			t.Errorf("%q: %s %q json=%v, want %s %q %v", tc.line, p.Command.Name, p.Args, c.JSON, tc.cmd, tc.args, tc.json)
		}
	}
}

func TestMain_exitCodes(t *testing.T) {
	for line, want := range map[string]int{"": 0, "get a b": 7, "version": 1, "--nonsense": 2, "--help": 0, "help": 0, "help get": 0, "get -h": 0} {
		var c config
		var out, errOut bytes.Buffer
		if got := program(&c).Main(t.Context(), strings.Fields(line), nil, &out, &errOut); got != want {
			t.Errorf("%q: exit %d, want %d; %s%s", line, got, want, out.String(), errOut.String())
		}
		if want == 0 && errOut.Len() > 0 {
			t.Errorf("%q wrote errors: %s", line, errOut.String())
		}
	}
}

func TestHelpNamesEverything(t *testing.T) {
	var c config
	p, err := program(&c).Parse([]string{"--help"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, st := range p.Set.all {
		if !strings.Contains(p.Help, "--"+st.name) || !strings.Contains(p.Help, "["+EnvName(st.name)+"]") {
			t.Errorf("help says nothing of %s", st.name)
		}
	}
	for _, want := range []string{"Usage: prog [run]", "The service:", "# a usual start", "default 1m30s", "default 16MiB", "--http HOST:PORT|off", "get DEVICE PATH", "--config FILE"} {
		if !strings.Contains(p.Help, want) {
			t.Errorf("help does not say %q", want)
		}
	}
	for line := range strings.Lines(p.Help) {
		if len([]rune(line)) > helpWidth+1 {
			t.Errorf("line too long: %q", line)
		}
	}
	if t.Failed() {
		t.Log(p.Help)
	}
}

func TestExampleParses(t *testing.T) {
	var c config
	a := program(&c)
	text, err := a.Example(a.Commands[0])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Parse([]string{"--config", file(t, string(text))}, nil); err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	if !reflect.DeepEqual(c, defaults()) {
		t.Errorf("the example changes the defaults: %+v", c)
	}
	for _, key := range []string{"# token = ", "# relay = wss://a.example", "\nhttp = :80\n", "\nwait = 1m30s\n"} {
		if !strings.Contains(string(text), key) {
			t.Errorf("the example lacks %q:\n%s", key, text)
		}
	}
}

func TestParseFile(t *testing.T) {
	text := "\ufeff# c\r\n\r\n a = b # c\r\nu = http://h/#frag\r\nq = \" # \\\"x\\\\ \\t\" # c\nempty = \"\"\nhash=#\n"
	got, err := ParseFile("f", []byte(text))
	want := []Entry{{"a", "b", 3}, {"u", "http://h/#frag", 4}, {"q", " # \"x\\ \t", 5}, {"empty", "", 6}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("entries = %+v, want %+v", got, want)
	}
	if err == nil || !strings.Contains(err.Error(), "f:7: no value") {
		t.Errorf("error = %v, want one about line 7", err)
	}
	for _, bad := range []string{"a", "A = b", "a b = c", "= c", "a =", `a = "x`, `a = "x" y`, `a = "\q"`, `a = "\`, `a = b"c`, "a = \x01", "a = \xff", "-a = b"} {
		if e, err := ParseFile("f", []byte(bad)); err == nil || len(e) != 0 {
			t.Errorf("%q: %+v, %v, want an error", bad, e, err)
		}
	}
	if _, err := ParseFile("f", make([]byte, MaxFile+1)); err == nil {
		t.Error("a file too large: no error")
	}
}

func FuzzParseFile(f *testing.F) {
	f.Add("a = b # c\nq = \"x\\n\"\n")
	f.Add("\ufeffa=\r\n=\nlist = a,b")
	f.Fuzz(func(t *testing.T, text string) {
		entries, _ := ParseFile("f", []byte(text))
		printed, err := Print(entries)
		if err != nil {
			t.Fatalf("Print(%+v): %v", entries, err)
		}
		again, err := ParseFile("f", printed)
		if err != nil || len(again) != len(entries) {
			t.Fatalf("parse of %q: %+v, %v, want %+v", printed, again, err, entries)
		}
		for i := range again {
			if again[i].Key != entries[i].Key || again[i].Value != entries[i].Value {
				t.Errorf("entry %d = %+v, want %+v", i, again[i], entries[i])
			}
		}
	})
}

func FuzzParseArgs(f *testing.F) {
	f.Add("--name\nx\n--http=off\n-j", "cache-max = 1MiB")
	f.Add("get\n--\n--x\n-", "relay = wss://a,wss://b")
	f.Fuzz(func(t *testing.T, args, conf string) {
		name := filepath.Join(t.TempDir(), "c")
		if err := os.WriteFile(name, []byte(conf), 0o600); err != nil {
			t.Fatal(err)
		}
		var c config
		p, err := program(&c).Parse(strings.Split(args, "\n"), []string{"CLOUDREST_CONFIG=" + name})
		if err == nil && p.Help == "" && p.Command.Name == "run" && (c.Count < 1 || c.Count > 100 || c.Origin == nil || c.Max < 0) {
			t.Errorf("out of bounds: %+v", c)
		}
	})
}
