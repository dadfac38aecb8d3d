package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cloudrest/cloudrest/firmware/gateway"
	"github.com/cloudrest/cloudrest/firmware/internal/features"
	"github.com/cloudrest/cloudrest/tether"
	"github.com/cloudrest/cloudrest/tether/qrcode"
	"github.com/cloudrest/cloudrest/tether/settings"
)

// pairOptions are what the flags of pair say.
type pairOptions struct {
	stateDir           string
	open, list, invite bool
	role, revoke       string
	approve, refuse    string
	yes, json          bool
	minutes            int
}

func pairCommand(in io.Reader) *settings.Command {
	var o pairOptions
	return &settings.Command{
		Name: "pair", Summary: "pair phones with this device, list them, revoke them",
		Long: "Talks to the gateway that runs on this machine. --open lets phones ask for a minute: each shows six digits, and you say " +
			"here whether they are the same. --invite prints a QR code that pairs one phone without a question.",
		Samples: []settings.Sample{
			{Says: "let a phone in, comparing the code", Line: "cloudrestd pair --open"},
			{Says: "a QR code for a guest, good for an hour", Line: "cloudrestd pair --invite --role guest --minutes 60"},
			{Says: "who is paired", Line: "cloudrestd pair --list"},
			{Says: "and no longer", Line: "cloudrestd pair --revoke 5f2e91d0a3b7c468"},
		},
		Declare: func(s *settings.Set) {
			o = pairOptions{stateDir: gateway.Default().StateDir, minutes: 10}
			s.Group("What to do")
			s.Switch(&o.open, "open", "open the pairing window for 60 s and ask about every phone")
			s.Switch(&o.invite, "invite", "print a QR code and a link that pair one phone")
			s.Switch(&o.list, "list", "list the paired phones and programs")
			s.String(&o.revoke, "revoke", "take the rights of one away", settings.What("ID"))
			s.String(&o.approve, "approve", "let a phone in that is waiting, when --open runs without a terminal", settings.What("ID"))
			s.String(&o.refuse, "refuse", "refuse one that is waiting", settings.What("ID"))
			s.Group("How")
			s.Enum(&o.role, "role", []string{"owner", "member", "guest"}, "what the phone may do: all and manage others (owner), use the device (member), only look (guest)")
			s.Int(&o.minutes, "minutes", 1, 24*60, "how long an invitation is good")
			s.Switch(&o.yes, "yes", "with --open: let the first phone in without asking; only where nobody else is in the network")
			s.Switch(&o.json, "json", "one JSON object, for programs; --open returns at once, status --json has who asks")
			s.Path(&o.stateDir, "state-dir", "the directory of the gateway that runs")
		},
		Run: func(ctx context.Context, _ *settings.Parsed, out io.Writer) error { return o.run(ctx, in, out) },
	}
}

func (o *pairOptions) run(ctx context.Context, in io.Reader, out io.Writer) error {
	c := control(o.stateDir)
	n := 0
	for _, b := range []bool{o.open, o.invite, o.list, o.revoke != "", o.approve != "", o.refuse != ""} {
		if b {
			n++
		}
	}
	if n != 1 {
		return usage("say one of --open, --invite, --list, --revoke ID, --approve ID, --refuse ID")
	}
	switch {
	case o.open:
		return o.window(ctx, c, in, out)
	case o.invite:
		return o.invitation(ctx, c, out)
	case o.list:
		return o.clients(ctx, c, out)
	case o.revoke != "":
		return c.call(ctx, http.MethodDelete, "clients/"+o.revoke, nil, nil)
	case o.approve != "":
		return c.call(ctx, http.MethodPost, "pair/"+o.approve+"/approve", roleBody(o.role), nil)
	}
	return c.call(ctx, http.MethodPost, "pair/"+o.refuse+"/refuse", nil, nil)
}

func roleBody(role string) any {
	if role == "" {
		return nil
	}
	return map[string]string{"role": role}
}

// asker is a phone that waits for an answer.
type asker struct {
	Request string    `json:"request"`
	Name    string    `json:"name"`
	Code    string    `json:"code"`
	From    string    `json:"from"`
	Asked   time.Time `json:"asked"`
}

// pollEvery is how often the window is looked at while it is open.
const pollEvery = 500 * time.Millisecond

// window opens the window and asks about each phone until one is in or the time is over.
func (o *pairOptions) window(ctx context.Context, c control, in io.Reader, out io.Writer) error {
	if err := c.call(ctx, http.MethodPost, "pair/window", roleBody(o.role), nil); err != nil {
		return err
	}
	var st struct {
		Open  bool      `json:"open"`
		Until time.Time `json:"until"`
	}
	if err := c.call(ctx, http.MethodGet, "pair", nil, &st); err != nil {
		return err
	}
	if o.json {
		return json.NewEncoder(out).Encode(st)
	}
	var before clientList
	if err := c.call(ctx, http.MethodGet, "clients", nil, &before); err != nil {
		return err
	}
	fmt.Fprintf(out, "The window is open for %d s. Ask on the phone now: the app, or %sin its browser.\n", int(time.Until(st.Until).Seconds()+0.5), "/.cloudrest/ ")
	answers := bufio.NewReader(in)
	asked := map[string]bool{}
	for {
		var list []asker
		if err := c.call(ctx, http.MethodGet, "pair/requests", nil, &list); err != nil {
			return err
		}
		for _, a := range list {
			if asked[a.Request] {
				continue
			}
			asked[a.Request] = true
			fmt.Fprintf(out, "%q from %s asks. Its code: %s %s\n", a.Name, a.From, a.Code[:3], a.Code[3:])
			answer := "refuse"
			if o.yes {
				answer = "approve"
			} else {
				terminal := isTerminal(in)
				line := ""
				if terminal {
					fmt.Fprint(out, "Does the phone show the same code? [y/N] ")
					var err error
					line, err = answers.ReadString('\n')
					terminal = err == nil || line != "" // /dev/null looks like one, and nobody is there
				}
				if !terminal {
					fmt.Fprintf(out, "If the phone shows the same code: cloudrestd pair --approve %s; else --refuse\n", a.Request)
					continue
				}
				if l := strings.ToLower(strings.TrimSpace(line)); l == "y" || l == "yes" {
					answer = "approve"
				}
			}
			if err := c.call(ctx, http.MethodPost, "pair/"+a.Request+"/"+answer, nil, nil); err != nil {
				fmt.Fprintf(out, "%v\n", err)
			}
		}
		if err := c.call(ctx, http.MethodGet, "pair", nil, &st); err != nil {
			return err
		}
		if !st.Open {
			var after clientList
			if err := c.call(ctx, http.MethodGet, "clients", nil, &after); err != nil {
				return err
			}
			if one, ok := after.newest(before); ok {
				fmt.Fprintf(out, "Paired: %q as %s, %s. Take it back with: cloudrestd pair --revoke %s\n", one.Name, one.Role, one.ID, one.ID)
				return nil
			}
			return errors.New("the window is closed and nobody was paired")
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pollEvery):
		}
	}
}

func (o *pairOptions) invitation(ctx context.Context, c control, out io.Writer) error {
	role := o.role
	if role == "" {
		role = "member"
	}
	var inv struct {
		URL     string    `json:"url"`
		Expires time.Time `json:"expires"`
	}
	if err := c.call(ctx, http.MethodPost, "invitations", map[string]any{"role": role, "minutes": o.minutes}, &inv); err != nil {
		return err
	}
	if o.json {
		return json.NewEncoder(out).Encode(inv)
	}
	if features.Page {
		if err := qrcode.Terminal(out, inv.URL); err != nil {
			return err
		}
	}
	fmt.Fprintf(out, "\n%s\n\nPairs one phone as %s, until %s. Whoever sees it can use it: show it to nobody else.\n", inv.URL, role, inv.Expires.Local().Format("15:04"))
	return nil
}

// paired is one line of the list.
type paired struct {
	ID       string     `json:"id"`
	Name     string     `json:"name"`
	Role     string     `json:"role"`
	Way      string     `json:"way"`
	Code     string     `json:"code,omitempty"`
	Created  time.Time  `json:"created"`
	LastUsed *time.Time `json:"last_used,omitempty"`
	Expires  *time.Time `json:"expires,omitempty"`
}

type clientList struct {
	Clients []paired `json:"clients"`
}

// newest is the client that an earlier list did not have.
func (l clientList) newest(before clientList) (paired, bool) {
	old := map[string]bool{}
	for _, p := range before.Clients {
		old[p.ID] = true
	}
	for _, p := range l.Clients {
		if !old[p.ID] {
			return p, true
		}
	}
	return paired{}, false
}

func (o *pairOptions) clients(ctx context.Context, c control, out io.Writer) error {
	var list clientList
	if err := c.call(ctx, http.MethodGet, "clients", nil, &list); err != nil {
		return err
	}
	if o.json {
		return json.NewEncoder(out).Encode(list)
	}
	if len(list.Clients) == 0 {
		fmt.Fprintln(out, "Nobody is paired. Begin with: cloudrestd pair --open")
		return nil
	}
	const row = "%-16s  %-24s  %-6s  %-10s  %-11s  %s\n"
	fmt.Fprintf(out, row, "ID", "NAME", "ROLE", "PAIRED", "BY", "LAST USED")
	for _, p := range list.Clients {
		used := "never"
		if p.LastUsed != nil {
			used = p.LastUsed.Local().Format("2006-01-02 15:04")
		}
		fmt.Fprintf(out, row, p.ID, p.Name, p.Role, p.Created.Local().Format("2006-01-02"), p.Way, used)
	}
	return nil
}

// control talks to the gateway that runs.
type control string // its state directory

const (
	controlTimeout = 30 * time.Second
	maxControl     = 1 << 20 // bytes of an answer
)

// call sends in as JSON, if it is not nil, and reads the answer into v, if v is not nil.
func (c control) call(ctx context.Context, method, path string, in, v any) error {
	ctx, cancel := context.WithTimeout(ctx, controlTimeout)
	defer cancel()
	var body io.Reader
	if in != nil {
		text, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = strings.NewReader(string(text))
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://device"+tether.OwnPrefix+"v1/"+path, body)
	if err != nil {
		return err
	}
	res, err := gateway.Control(string(c), req)
	if err != nil {
		return fmt.Errorf("ask the gateway: %w", err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(io.LimitReader(res.Body, maxControl))
	if err != nil {
		return fmt.Errorf("ask the gateway: %w", err)
	}
	if res.StatusCode >= 400 {
		var e struct{ Message string }
		if json.Unmarshal(text, &e) != nil || e.Message == "" {
			e.Message = res.Status
		}
		return errors.New(e.Message)
	}
	if v == nil {
		return nil
	}
	return json.Unmarshal(text, v)
}

// isTerminal reports whether a person can answer.
func isTerminal(r io.Reader) bool {
	f, ok := r.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
