package page

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cloudrest/cloudrest/tools/browser"
	"github.com/cloudrest/cloudrest/tools/browser/pagewalk"
)

var shots = flag.String("shots", "", "directory for screenshots of every state, in light and dark")

// shot writes what a page shows when -shots asks for it.
func shot(t *testing.T, screen browser.Screen) func(string, *browser.Page) {
	if *shots == "" {
		return nil
	}
	return func(name string, p *browser.Page) {
		for _, dark := range []bool{false, true} {
			s := screen
			s.Dark = dark
			file := strings.ReplaceAll(name, " ", "-")
			if strings.Contains(name, "desktop") {
				s = browser.Desktop
				s.Dark = dark
			}
			pagewalk.Do(t, p.Show(t.Context(), s))
			if dark {
				file += "-dark"
				pagewalk.Check(t, p, name+" (dark)")
			}
			data, err := p.Screenshot(t.Context(), true)
			pagewalk.Do(t, err, os.WriteFile(filepath.Join(*shots, file+".png"), data, 0o600))
		}
		s := screen
		pagewalk.Do(t, p.Show(t.Context(), s))
	}
}

func (d *device) walked(t *testing.T) pagewalk.Device {
	return pagewalk.Device{
		URL: d.srv.URL, Pins: [][]byte{d.pin()},
		Button: func() error { d.open(false, 60e9); return nil },
		Notify: func(topic, data string) error { d.notify(topic, data); return nil },
		Shot:   shot(t, browser.Phone),
	}
}

func TestWalk(t *testing.T) {
	pagewalk.Walk(t, newDevice(t).walked(t))
}
