package e2e

import (
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cloudrest/cloudrest/tools/browser"
	"github.com/cloudrest/cloudrest/tools/browser/pagewalk"
)

var shots = flag.String("shots", "", "directory for screenshots of the device's page")

// The family's walk over the page of the built gateway. It has no button, so a person at
// the device gives it back its first start instead, under the eyes of the first phone.
// It runs alone: a browser is what waits least patiently on a busy machine.
func TestPage(t *testing.T) {
	u := newUnit(t, "garden", sampleOrigin(t))
	u.start("--name", "Garden irrigation")
	st := u.eventually("is there", func(unitStatus) error { return nil })
	pin, err := hex.DecodeString(st.Pin) // of its authority: the leaf is another one after each start
	if err != nil {
		t.Fatal(err)
	}
	u.control("DELETE", "pair/window")
	pagewalk.Walk(t, pagewalk.Device{
		URL: u.base(), Pins: [][]byte{pin},
		Button: func() error {
			if code, said := u.command("reset", "--yes"); code != 0 {
				return fmt.Errorf("reset: exit %d: %s", code, said)
			}
			return nil
		},
		Notify: func(topic, data string) error {
			f, err := os.OpenFile(filepath.Join(u.dir, "notify"), os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(f, "%s: %s\n", topic, data)
			return errors.Join(err, f.Close())
		},
		Shot: func(name string, p *browser.Page) {
			if name == "events" { // the device's own among them: who has paired
				if text, err := p.Text(t.Context(), "#event-list"); err != nil || !strings.Contains(text, "Paired") || strings.Contains(text, "{") {
					t.Errorf("the events are shown as %q, %v; want words", text, err)
				}
			}
			if *shots == "" {
				return
			}
			b, err := p.Screenshot(t.Context(), true)
			if err == nil {
				err = os.WriteFile(filepath.Join(*shots, strings.ReplaceAll(name, " ", "-")+".png"), b, 0o600)
			}
			if err != nil {
				t.Error(err)
			}
		},
	})
}
