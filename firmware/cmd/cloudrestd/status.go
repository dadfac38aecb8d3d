package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"

	"github.com/cloudrest/cloudrest/firmware/gateway"
	"github.com/cloudrest/cloudrest/tether/settings"
)

// report is what status --json prints: what everybody may know of the gateway, and what
// only the machine's owner may.
type report struct {
	Status   gateway.Status `json:"status"`
	Clients  int            `json:"clients"`            // paired
	Requests []asker        `json:"requests,omitempty"` // phones that wait for an answer
}

func statusCommand() *settings.Command {
	var dir string
	var asJSON bool
	return &settings.Command{
		Name: "status", Summary: "show how the gateway that runs on this machine is",
		Samples: []settings.Sample{
			{Says: "in short", Line: "cloudrestd status"},
			{Says: "all of it, and who asks to be paired, for programs; OpenWrt keeps its state elsewhere", Line: "cloudrestd status --json --config /etc/config/cloudrest"},
		},
		Declare: func(s *settings.Set) {
			dir, asJSON = gateway.Default().StateDir, false
			s.Switch(&asJSON, "json", "one JSON object, for programs")
			s.Path(&dir, "state-dir", "the directory of the gateway that runs")
		},
		Run: func(ctx context.Context, _ *settings.Parsed, out io.Writer) error {
			c := control(dir)
			var r report
			if err := c.call(ctx, http.MethodGet, "status", nil, &r.Status); err != nil {
				return err
			}
			var clients clientList
			if err := c.call(ctx, http.MethodGet, "clients", nil, &clients); err != nil {
				return err
			}
			r.Clients = len(clients.Clients)
			st := r.Status
			if st.Pairing.Open {
				if err := c.call(ctx, http.MethodGet, "pair/requests", nil, &r.Requests); err != nil {
					return err
				}
			}
			if asJSON {
				return json.NewEncoder(out).Encode(r)
			}
			tether := st.Tether.State
			switch {
			case st.Tether.Error != "":
				tether += ": " + st.Tether.Error
			case st.Tether.Relay != "":
				tether += ", " + st.Tether.Relay
			}
			for _, line := range [][2]string{
				{"name", st.Name}, {"device ID", string(st.ID)}, {"version", st.Version}, {"URL", st.URL}, {"LAN pin", st.Certificate},
				{"service", st.Origin.State}, {"access", fmt.Sprintf("%s; %d paired", st.Access, r.Clients)}, {"relay", tether},
			} {
				fmt.Fprintf(out, "%-10s %s\n", line[0], line[1])
			}
			return nil
		},
	}
}
