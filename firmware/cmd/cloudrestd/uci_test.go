package main

import (
	"bytes"
	"flag"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/cloudrest/cloudrest/firmware/internal/uci"
	"github.com/cloudrest/cloudrest/tether/settings"
)

// uciFile is what OpenWrt installs as /etc/config/cloudrest.
const uciFile = "../../../openwrt/files/etc/config/cloudrest"

var update = flag.Bool("update", false, "write "+uciFile+" from the settings of this program")

// uciHead is what the file has besides the settings, and uciValues those that are set:
// uhttpd owns the ports 80 and 443, and only /etc is kept on flash.
const uciHead = `# CloudREST gateway. Every option is here; those that begin with # show the default or an example.
# Lists may be repeated. After a change: service cloudrest reload

config cloudrest 'main'
	# start the daemon at all (0|1)
	option enabled '1'

	# how much garbage may pile up before it is collected, in percent of the memory in use;
	# without it the daemon chooses by the memory of the board (N)
	#option gogc '50'

	# the memory that the Go heap may grow to; without it the daemon chooses by the memory of the
	# board (SIZE)
	#option gomemlimit '24MiB'
`

var uciValues = map[string]string{
	"https":         ":8443",
	"http":          "off",
	"interfaces":    "br-lan",
	"fifo":          "/var/run/cloudrest/notify",
	"notify-socket": "/var/run/cloudrest/notify.sock",
	"state-dir":     "/etc/cloudrest",
	"stop-wait":     "4s", // procd kills after 5
}

// uciExample turns the example file of the program into UCI.
func uciExample(t *testing.T) string {
	app := program(io.Discard)
	text, err := app.Example(app.Commands[0])
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	b.WriteString(uciHead)
	for line := range strings.Lines(string(text)) {
		line = strings.TrimRight(line, "\n")
		entries, err := settings.ParseFile("", []byte(strings.TrimPrefix(line, "# ")))
		switch {
		case strings.HasPrefix(line, "## "):
			b.WriteString("\n\t#" + strings.ToUpper(line[2:]) + "\n")
		case err != nil || len(entries) != 1 || app.Commands[0].Declare == nil || !isSetting(app, entries[0].Key):
			if strings.HasPrefix(line, "# ") && b.Len() > len(uciHead) {
				b.WriteString("\t" + line + "\n")
			} else if line == "" && b.Len() > len(uciHead) {
				b.WriteString("\n")
			}
		default:
			e, off := entries[0], "#"
			if v, ok := uciValues[e.Key]; ok {
				e.Value, off = v, ""
			}
			verb := "option"
			if e.Key == "relay" || e.Key == "interfaces" || e.Key == "cache-rules" {
				verb = "list"
			}
			for v := range strings.SplitSeq(e.Value, ",") {
				b.WriteString("\t" + off + verb + " " + uci.OptionName(e.Key) + " '" + strings.ReplaceAll(v, "'", `'\''`) + "'\n")
				if verb == "option" {
					break
				}
			}
		}
	}
	return strings.ReplaceAll(b.String(), "\n\n\n", "\n\n")
}

func isSetting(app *settings.App, key string) bool {
	s := &settings.Set{}
	app.Commands[0].Declare(s)
	for _, e := range s.Values() {
		if e.Key == key {
			return true
		}
	}
	return false
}

// TestUCIFile keeps OpenWrt's configuration file in step with the settings.
func TestUCIFile(t *testing.T) {
	want := uciExample(t)
	if *update {
		if err := os.WriteFile(uciFile, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(uciFile)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, []byte(want)) {
		t.Fatal("the file does not have the settings that cloudrestd has now; write it anew with:\n\tgo test ./firmware/cmd/cloudrestd -run UCIFile -update")
	}
	if _, err := program(io.Discard).Parse([]string{"--config", uciFile}, nil); err != nil {
		t.Errorf("the file as installed: %v", err)
	}

	// Every option as its default or example must be taken too.
	open := t.TempDir() + "/cloudrest"
	text := strings.ReplaceAll(strings.ReplaceAll(want, "#option ", "option "), "#list ", "list ")
	if err := os.WriteFile(open, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	p, err := program(io.Discard).Parse([]string{"--config", open}, nil)
	if err != nil && !strings.Contains(err.Error(), "no such file or directory") {
		t.Errorf("with every option: %v", err)
	}
	for _, e := range p.Set.Values() {
		if src := p.Set.Source(e.Key); !strings.HasPrefix(src, open) {
			t.Errorf("%s comes from %s, want the file", e.Key, src)
		}
	}
}

// TestUCIMistakes checks that a mistake in UCI is told with its line and the right name.
func TestUCIMistakes(t *testing.T) {
	name := t.TempDir() + "/cloudrest"
	if err := os.WriteFile(name, []byte("config cloudrest 'main'\n\toption orign 'http://127.0.0.1:1'\n\toption https '8443'\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var errOut bytes.Buffer
	code := run([]string{"--config", name}, nil, io.Discard, &errOut)
	if code != settings.ExitUsage {
		t.Errorf("exit code = %d, want %d", code, settings.ExitUsage)
	}
	for _, want := range []string{name + `:2: unknown setting "orign", did you mean "origin"?`, name + `:3: https: "8443" is not right`} {
		if !strings.Contains(errOut.String(), want) {
			t.Errorf("printed %q, want it to contain %q", errOut.String(), want)
		}
	}
}
