package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"reflect"
	"strings"
	"time"

	"github.com/cloudrest/cloudrest/tether/settings"
)

func discoverCommand(env environment) *settings.Command {
	var asJSON bool
	var interfaces []string
	var during time.Duration
	return &settings.Command{
		Name: "discover", Summary: "find devices on the LAN, by mDNS and by UDP broadcast together",
		Long: "A terminal shows a table that follows what happens; elsewhere each device is a line when it is found, changes or " +
			"goes. Exit code 1 when no device was found.",
		Samples: []settings.Sample{
			{Says: "look for five seconds", Line: "cloudrest discover"},
			{Says: "keep watching", Line: "cloudrest discover --for 0"},
			{Says: "for a program", Line: "cloudrest discover --json --for 2s"},
		},
		Declare: func(s *settings.Set) {
			asJSON, interfaces, during = false, nil, 5*time.Second
			s.Duration(&during, "for", 0, 24*time.Hour, "how long to look; 0: until Ctrl-C")
			s.Strings(&interfaces, "interfaces", interfacesHelp, settings.What("NAME"))
			s.Switch(&asJSON, "json", "one JSON object per line: {\"event\":\"found|changed|gone\",\"device\":{...}}")
		},
		Run: func(ctx context.Context, _ *settings.Parsed, out io.Writer) error {
			if during > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, during)
				defer cancel()
			}
			heard := env.discover(ctx, interfaces)
			note := func(s sighting) { fmt.Fprintf(env.stderr, "cannot look by %s: %v\n", s.way, s.trouble) }
			s := screenOf(out)
			var n int
			switch {
			case asJSON:
				n = watch(heard, note, func(event string, d device) {
					json.NewEncoder(out).Encode(struct {
						Event  string `json:"event"`
						Device device `json:"device"`
					}{event, d})
				})
			case s.width == 0:
				n = watch(heard, note, func(event string, d device) {
					fmt.Fprintf(out, "%-7s  %s\n", event, strings.TrimRight(strings.Join(row(d), "  "), " "))
				})
			default:
				n = watchLive(heard, note, s, during)
			}
			if n == 0 {
				return fmt.Errorf("no device answered: is one on, and in the same network as this machine? Guest networks and some access points keep devices apart")
			}
			return nil
		},
	}
}

// watch reports each change of the table and returns how many devices there were.
func watch(heard <-chan sighting, note func(sighting), tell func(event string, d device)) int {
	var t table
	before := map[string]device{}
	n := 0
	for s := range heard {
		if s.trouble != nil {
			note(s)
			continue
		}
		t.add(s)
		now := map[string]device{}
		for _, d := range t.devices() {
			key := watchKey(d)
			now[key] = d
			old, known := before[key]
			if !known && d.ID != "" && d.MAC != "" {
				// UDP may have found it earlier, without its ID.
				for k, o := range before {
					if o.ID == "" && o.MAC == d.MAC {
						old, known = o, true
						delete(before, k)
					}
				}
			}
			if !known {
				n++
				tell("found", d)
			} else if !reflect.DeepEqual(old, d) {
				tell("changed", d)
			}
		}
		for key, d := range before {
			if _, still := now[key]; !still {
				tell("gone", d)
			}
		}
		before = now
	}
	return n
}

func watchKey(d device) string {
	if d.ID != "" {
		return string(d.ID)
	}
	return d.MAC + " " + d.URL
}

func row(d device) []string {
	return []string{printable(d.Name), d.ID.Short(), printable(d.URL), printable(d.Version), strings.Join(d.Ways, "+"), printable(d.MAC)}
}

func watchLive(heard <-chan sighting, note func(sighting), s *screen, during time.Duration) int {
	var t table
	l := live{s: s}
	begin := time.Now()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	draw := func(state string) int {
		list := t.devices()
		rows := [][]string{{"NAME", "ID", "URL", "VERSION", "FOUND BY", "MAC"}}
		for _, d := range list {
			rows = append(rows, row(d))
		}
		l.draw(append(s.columns(rows), s.paint(dim, fmt.Sprintf("%d found, %s", len(list), state))))
		return len(list)
	}
	for {
		state := "looking, Ctrl-C ends it"
		if during > 0 {
			state = fmt.Sprintf("looking for %d s more", int(max(0, during-time.Since(begin)).Round(time.Second)/time.Second))
		}
		draw(state)
		select {
		case s, ok := <-heard:
			if !ok {
				return draw("done")
			}
			if s.trouble != nil {
				note(s)
				l.drawn = 0 // below the note
				continue
			}
			t.add(s)
		case <-tick.C:
		}
	}
}
