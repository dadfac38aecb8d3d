package openwrt

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

const (
	luciApp  = "luci-app-cloudrest"
	luciView = luciApp + "/htdocs/luci-static/resources/view/cloudrest.js"
)

// notInForm are the options that the page does not offer, with the reason.
var notInForm = map[string]string{
	"state_dir":       "identity and pairings would have to move with it",
	"stop_wait":       "the init script gives procd a time that fits it",
	"udp_port":        "phone apps know only the default",
	"udp_answer_port": "phone apps know only the default",
	"log_format":      "the system log takes text",
}

// uciOption is an option of /etc/config/cloudrest as its comments tell it.
type uciOption struct {
	help   string // what it does, without the placeholder in brackets at the end
	values []string
	set    bool // not commented out
	list   bool
}

// uciOptions reads the installed configuration, which a test of cloudrestd holds in step
// with its settings.
func uciOptions(t *testing.T) map[string]*uciOption {
	t.Helper()
	text, err := os.ReadFile("files/etc/config/cloudrest")
	if err != nil {
		t.Fatal(err)
	}
	options := map[string]*uciOption{}
	var help []string
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		verb, rest, _ := strings.Cut(strings.TrimPrefix(line, "#"), " ")
		switch {
		case verb == "option" || verb == "list":
			name, value, _ := strings.Cut(rest, " ")
			o := options[name]
			if o == nil {
				all := strings.Join(help, " ")
				if i := strings.LastIndex(all, " ("); i > 0 {
					all = all[:i]
				}
				o = &uciOption{help: all, set: !strings.HasPrefix(line, "#"), list: verb == "list"}
				options[name] = o
			}
			o.values = append(o.values, strings.Trim(value, "'"))
		case strings.HasPrefix(line, "# "):
			help = append(help, line[2:])
		default:
			help = nil
		}
	}
	if len(options) < 20 {
		t.Fatalf("only %d options in the configuration: %v", len(options), options)
	}
	return options
}

// page is what testdata/luci.js tells of the view.
type page struct {
	Map     struct{ Config string }
	Section struct{ Name, Type string }
	Options []struct {
		Tab, Type, Option, Title, Description string
		Placeholder, Default, Datatype        string
		Enabled, Disabled, Shown              string
		Rmempty                               bool
		Values, Writes                        []string
	}
	Execs, Shown, Notes []string
	Tries               map[string][]any
	Poll                int
	Ticked, Disabled    bool
}

func runPage(t *testing.T, task map[string]any) (p page) {
	t.Helper()
	node, err := exec.LookPath("node")
	if err != nil {
		t.Skip("node is not installed (make deps)")
	}
	if task["tries"] == nil {
		task["tries"] = map[string]any{}
	}
	in, err := json.Marshal(task)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), node, "testdata/luci.js", luciView)
	cmd.Stdin = bytes.NewReader(in)
	var errOut bytes.Buffer
	cmd.Stderr = &errOut
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("run the page: %v\n%s", err, errOut.String())
	}
	if err := json.Unmarshal(out, &p); err != nil {
		t.Fatalf("read %s: %v", out, err)
	}
	return p
}

// TestPageOptions holds the form together with the options that the daemon has: each is in
// the form, with the daemon's own help text and default, or among those left out.
func TestPageOptions(t *testing.T) {
	want := uciOptions(t)
	p := runPage(t, map[string]any{"reports": []any{map[string]string{"error": "x"}}})
	if p.Map.Config != "cloudrest" || p.Section.Name != "main" || p.Section.Type != "cloudrest" {
		t.Errorf("the form is for %+v, %+v; want section main of cloudrest", p.Map, p.Section)
	}
	seen := map[string]bool{}
	for _, o := range p.Options {
		u := want[o.Option]
		if u == nil || seen[o.Option] || notInForm[o.Option] != "" {
			t.Errorf("%s is in the form: want options of the daemon, once each, and none of those left out", o.Option)
			continue
		}
		seen[o.Option] = true
		if help := strings.ToUpper(u.help[:1]) + u.help[1:] + "."; o.Description != help {
			t.Errorf("%s: help\n%q, want\n%q", o.Option, o.Description, help)
		}
		if o.Title == "" || o.Tab == "" {
			t.Errorf("%s has title %q in tab %q", o.Option, o.Title, o.Tab)
		}
		if u.list != (o.Type == "DynamicList") {
			t.Errorf("%s is a list: %v, but the field is a %s", o.Option, u.list, o.Type)
		}
		shown := o.Placeholder
		if o.Type == "Flag" || o.Type == "ListValue" {
			shown = o.Default
		}
		if shown != u.values[0] {
			t.Errorf("%s: the empty field means or shows %q, want %q", o.Option, shown, u.values[0])
		}
		// What the installed file sets differs from the daemon's default: emptying the field
		// would bring that back.
		if must := u.set && !u.list; must == o.Rmempty {
			t.Errorf("%s may be empty: %v, want %v", o.Option, o.Rmempty, !must)
		}
	}
	for name := range want {
		if !seen[name] && notInForm[name] == "" {
			t.Errorf("%s is neither in the form nor among the options left out", name)
		}
	}
	for name := range notInForm {
		if want[name] == nil {
			t.Errorf("%s is left out, but the daemon has no such option", name)
		}
	}
}

// TestPageValues tries what people type. What the form lets through the daemon still checks.
func TestPageValues(t *testing.T) {
	tries := map[string]any{}
	want := map[string][]any{}
	for name, values := range map[string]map[string]bool{
		"origin":   {"http://127.0.0.1:3000": true, "unix:///run/rest.sock": true, "127.0.0.1:3000": false, "https://x": false},
		"https":    {":443": true, "192.168.1.1:8443": true, "[fd00::1]:8443": true, "8443": false, ":https": false},
		"http":     {"off": true, ":80": true, "80": false},
		"relay":    {"wss://r.example": true, "r.example": false, "https://r.example": false},
		"fifo":     {"off": true, "/var/run/cloudrest/notify": true, "notify": false},
		"cache":    {"auto": true, "off": true, "4MiB": true, "512KiB": true, "4 MB": false, "a lot": false},
		"relay_ca": {"": true, "/etc/ca.pem": true},
	} {
		var list []string
		for v := range values {
			list = append(list, v)
		}
		slices.Sort(list)
		tries[name] = list
		for _, v := range list {
			want[name] = append(want[name], values[v])
		}
	}
	for name, o := range uciOptions(t) { // what stands in the file must pass
		if tries[name] == nil && notInForm[name] == "" {
			tries[name] = o.values
			for range o.values {
				want[name] = append(want[name], true)
			}
		}
	}
	p := runPage(t, map[string]any{"reports": []any{map[string]string{"error": "x"}}, "tries": tries})
	for name, got := range p.Tries {
		for i := range got {
			if _, text := got[i].(string); text { // why not
				got[i] = false
			}
		}
		if !reflect.DeepEqual(got, want[name]) {
			t.Errorf("%s: of %q the form takes %v, want %v", name, tries[name], got, want[name])
		}
	}
	for _, o := range p.Options {
		if o.Option == "mdns" && o.Shown != "on" {
			t.Errorf("mdns '1' is shown as %q, want on", o.Shown)
		}
		if o.Type == "ListValue" && !slices.Equal(o.Writes, []string{"removed", "written"}) {
			t.Errorf("%s: the default is %s and another value %s; want removed and written", o.Option, o.Writes[0], o.Writes[1])
		}
	}
}

func report(pairing map[string]any, requests ...any) map[string]any {
	return map[string]any{"clients": 3, "requests": requests, "status": map[string]any{
		"id": "00ff", "name": "Garden", "version": "v1.2.3", "now": "2026-09-21T14:00:00Z", "uptime": 61, "access": "paired",
		"url": "https://192.168.1.1:8443/", "certificate_sha256": "abcd", "device": map[string]any{}, "origin": map[string]any{"state": "up"},
		"cache":  map[string]any{"state": "on", "entries": 7, "bytes": 1024, "limit": 4096, "hits": 9},
		"tether": map[string]any{"state": "up", "relay": "r.example"}, "pairing": pairing,
	}}
}

// TestPage walks over the page: looks, opens the window, compares a code, lets in.
func TestPage(t *testing.T) {
	closed := report(map[string]any{"open": false})
	open := report(map[string]any{"open": true, "until": "2026-09-21T14:00:42Z"},
		map[string]string{"request": "0123456789abcdef", "name": "Anna's phone", "code": "123456", "from": "192.168.1.7"})
	const status = "/usr/bin/cloudrestd status --json --config /etc/config/cloudrest"
	for _, tc := range []struct {
		name  string
		task  map[string]any
		execs []string
		shown [][]string // what each picture holds
		last  func(page) error
	}{
		{
			name: "let in", task: map[string]any{"reports": []any{closed, open, closed}, "clicks": []string{"Open pairing window", "Same code: let it in"}},
			execs: []string{status, "/usr/bin/cloudrestd pair --open --json --config /etc/config/cloudrest", status,
				"/usr/bin/cloudrestd pair --approve 0123456789abcdef --config /etc/config/cloudrest", status},
			shown: [][]string{
				{"Garden, version v1.2.3, for 61", "00ff", "https://192.168.1.1:8443/", "abcd", "Answers", "Connected to r.example", "Paired clients; 3 paired", "7 answers, 1024B of 4096B; 9 requests"},
				{"Pairing is open for 42", "Anna's phone asks, from 192.168.1.7", "123 456"},
				{"Open pairing window"},
			},
			last: func(p page) error {
				if p.Ticked || p.Poll != 2 {
					return fmt.Errorf("looked again at once: %v, called every %d s; want no, 2", p.Ticked, p.Poll)
				}
				return nil
			},
		},
		{
			name: "refuse", task: map[string]any{"reports": []any{open}, "clicks": []string{"Refuse"}},
			execs: []string{status, "/usr/bin/cloudrestd pair --refuse 0123456789abcdef --config /etc/config/cloudrest", status, status},
			last: func(p page) error {
				if !p.Ticked {
					return fmt.Errorf("no look while the window is open")
				}
				return nil
			},
		},
		{
			name: "the window cannot be opened", task: map[string]any{"reports": []any{closed}, "clicks": []string{"Open pairing window"}, "refuse": "somebody else opened it"},
			last: func(p page) error {
				if !slices.Equal(p.Notes, []string{"error: somebody else opened it"}) {
					return fmt.Errorf("notes = %q", p.Notes)
				}
				return nil
			},
		},
		{
			name: "not running", task: map[string]any{"reports": []any{map[string]string{"error": "no cloudrestd runs"}}},
			shown: [][]string{{"No answer from the gateway: no cloudrestd runs"}},
		},
		{
			name: "may only look", task: map[string]any{"reports": []any{closed}, "readonly": true, "clicks": []string{"Open pairing window"}},
			execs: []string{status},
			last: func(p page) error {
				if !p.Disabled {
					return fmt.Errorf("the button works without the right to change things")
				}
				return nil
			},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := runPage(t, tc.task)
			if tc.execs != nil && !slices.Equal(p.Execs, tc.execs) {
				t.Errorf("ran\n%s\nwant\n%s", strings.Join(p.Execs, "\n"), strings.Join(tc.execs, "\n"))
			}
			for i, texts := range tc.shown {
				for _, w := range texts {
					if !strings.Contains(p.Shown[i], w) {
						t.Errorf("picture %d shows\n%s\nwant %q in it", i, p.Shown[i], w)
					}
				}
			}
			for _, line := range p.Execs {
				if !mayExec(t, line) {
					t.Errorf("rpcd lets nobody run %q", line)
				}
			}
			if tc.last != nil {
				if err := tc.last(p); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// rights are what a group of rpcd's acl.d grants.
type rights struct {
	UCI  []string            `json:"uci"`
	Ubus map[string][]string `json:"ubus"`
	File map[string][]string `json:"file"`
}

func acl(t *testing.T) (read, write rights) {
	t.Helper()
	var groups map[string]struct {
		Description string
		Read, Write rights
	}
	strict(t, luciApp+"/root/usr/share/rpcd/acl.d/"+luciApp+".json", &groups)
	if len(groups) != 1 || groups[luciApp].Description == "" {
		t.Errorf("groups = %+v, want one with a description", groups)
	}
	return groups[luciApp].Read, groups[luciApp].Write
}

// strict reads a JSON file with the members of v and no others.
func strict(t *testing.T, name string, v any) {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil || d.More() {
		t.Fatalf("%s: %v, more after it: %v", name, err, d.More())
	}
}

// mayExec is rpcd's rule: the whole command line against the patterns, by fnmatch(3).
func mayExec(t *testing.T, line string) bool {
	read, write := acl(t)
	for _, r := range []rights{read, write} {
		for pattern := range r.File {
			// path.Match does not let [..] and * cross a slash; our patterns have neither there.
			if ok, err := path.Match(pattern, line); err != nil {
				t.Fatalf("%s: %v", pattern, err)
			} else if ok {
				return true
			}
		}
	}
	return false
}

// TestPageRights checks that the page's group may do what the page needs and nothing else.
func TestPageRights(t *testing.T) {
	read, write := acl(t)
	if want := (rights{UCI: []string{"cloudrest"}, Ubus: map[string][]string{"file": {"exec"}}, File: read.File}); !reflect.DeepEqual(read, want) {
		t.Errorf("read = %+v, want %+v", read, want)
	}
	if want := (rights{UCI: []string{"cloudrest"}, File: write.File}); !reflect.DeepEqual(write, want) {
		t.Errorf("write = %+v, want %+v", write, want)
	}
	for pattern, what := range read.File {
		if !slices.Equal(what, []string{"exec"}) || strings.Contains(pattern, "pair") {
			t.Errorf("who may only look has %q on %s", what, pattern)
		}
	}
	for pattern := range write.File {
		if strings.Contains(pattern, "*") {
			t.Errorf("%s leaves arguments open", pattern)
		}
	}
	const id = "0123456789abcdef"
	for line, want := range map[string]bool{
		"/usr/bin/cloudrestd pair --approve " + id + " --config /etc/config/cloudrest":              true,
		"/usr/bin/cloudrestd pair --approve " + id + " --role owner --config /etc/config/cloudrest": false,
		"/usr/bin/cloudrestd pair --approve " + id[1:] + " --config /etc/config/cloudrest":          false,
		"/usr/bin/cloudrestd pair --open --yes --config /etc/config/cloudrest":                      false,
		"/usr/bin/cloudrestd pair --invite --config /etc/config/cloudrest":                          false,
		"/usr/bin/cloudrestd reset --yes --config /etc/config/cloudrest":                            false,
		"/usr/bin/cloudrestd status --json --config /tmp/x":                                         false,
		"/usr/bin/cloudrestd status --json --config /etc/config/cloudrest --state-dir /tmp":         false,
		"/usr/bin/cloudrestd":                          false,
		"/usr/bin/cloudrestd run --config /etc/passwd": false,
	} {
		if got := mayExec(t, line); got != want {
			t.Errorf("%s: allowed %v, want %v", line, got, want)
		}
	}
	var menu map[string]struct {
		Title   string
		Order   int
		Action  struct{ Type, Path string }
		Depends struct {
			ACL []string        `json:"acl"`
			UCI map[string]bool `json:"uci"`
		}
	}
	strict(t, luciApp+"/root/usr/share/luci/menu.d/"+luciApp+".json", &menu)
	entry := menu["admin/services/cloudrest"]
	view := filepath.Join(luciApp, "htdocs/luci-static/resources/view", entry.Action.Path+".js")
	if _, err := os.Stat(view); err != nil || entry.Action.Type != "view" || !slices.Equal(entry.Depends.ACL, []string{luciApp}) {
		t.Errorf("menu = %+v, %v; want the view and its rights", menu, err)
	}
}
