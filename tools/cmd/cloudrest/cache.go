package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/cloudrest/cloudrest/tether/settings"
)

type cacheOptions struct {
	reach
	purge, json bool
	limit       int
}

func cacheCommand(env environment) *settings.Command {
	var o cacheOptions
	return &settings.Command{
		Name: "cache", Summary: "see what a device's gateway answers by itself, and make it forget", Args: "DEVICE | URL [PATH]", MinArgs: 1, MaxArgs: 2,
		Long: "Lists the stored answers, those used last first. On the LAN this is for owners (`cloudrest pair`); through a relay its token is enough. " +
			"With --purge they are removed, in the gateway and at the relay: those of PATH with any query, those of all paths that begin so " +
			"if it ends in *, or all.",
		Samples: []settings.Sample{
			{Says: "what is there", Line: "cloudrest cache \"Garden irrigation\""},
			{Says: "through a relay", Line: "cloudrest cache 3f2a91bc --relay https://relay.example --token-file token"},
			{Says: "forget all zones", Line: "cloudrest cache \"Garden irrigation\" '/zones*' --purge"},
		},
		Declare: func(s *settings.Set) {
			o = cacheOptions{limit: 200}
			s.Group("The cache")
			s.Switch(&o.purge, "purge", "remove what is stored")
			s.Int(&o.limit, "limit", 1, 1024, "how many answers to list")
			s.Switch(&o.json, "json", "the gateway's answer as it is")
			o.declare(s)
		},
		Run: func(ctx context.Context, in *settings.Parsed, out io.Writer) error {
			o.notes, o.discover = env.stderr, env.discover
			return o.run(ctx, in.Args, screenOf(out))
		},
	}
}

// cached is what the gateway tells of its cache.
type cached struct {
	State       string `json:"state"`
	Entries     int    `json:"entries"`
	Bytes       int64  `json:"bytes"`
	Limit       int64  `json:"limit"`
	Hits        uint64 `json:"hits"`
	Validations uint64 `json:"validations"`
	Misses      uint64 `json:"misses"`
	Saved       uint64 `json:"bytes_saved"`
	Kept        []struct {
		Path       string
		For        string
		Name       string
		Client     string
		Status     int
		Body       int64 `json:"body_bytes"`
		Age, Fresh float64
		Hits       uint64
	} `json:"kept"`
}

func (o *cacheOptions) run(ctx context.Context, args []string, out *screen) error {
	path := ""
	if len(args) == 2 {
		path = args[1]
	}
	if path != "" && !o.purge {
		return &settings.ExitError{Code: settings.ExitUsage, Err: fmt.Errorf("a path is for --purge")}
	}
	m, err := o.find(ctx, args[0])
	if err != nil {
		return err
	}
	var a asker
	at := "cache?limit=" + strconv.Itoa(o.limit)
	if o.purge {
		at = "cache?path=" + url.QueryEscape(path)
		var gone struct {
			Removed int `json:"removed"`
		}
		if _, err := a.do(ctx, m, http.MethodDelete, at, nil, &gone); err != nil {
			return err
		}
		if o.json {
			return json.NewEncoder(out).Encode(gone)
		}
		fmt.Fprintf(out, "%d stored answers removed\n", gone.Removed)
		return nil
	}
	if o.json {
		var raw json.RawMessage
		if _, err := a.do(ctx, m, http.MethodGet, at, nil, &raw); err != nil {
			return err
		}
		return json.NewEncoder(out).Encode(raw)
	}
	var c cached
	if _, err := a.do(ctx, m, http.MethodGet, at, nil, &c); err != nil {
		return err
	}
	c.show(out)
	return nil
}

func (c *cached) show(out *screen) {
	if c.State != "on" {
		fmt.Fprintln(out, "the cache is off (cloudrestd --cache)")
		return
	}
	rows := [][]string{{"PATH", "AGE", "FRESH FOR", "SIZE", "HITS", "FOR"}}
	for _, e := range c.Kept {
		whose := e.For
		if e.Client != "" {
			whose += " " + printable(e.Name) + " (" + printable(e.Client) + ")"
		}
		path := printable(e.Path)
		if e.Status != http.StatusOK {
			path += " [" + strconv.Itoa(e.Status) + "]"
		}
		rows = append(rows, []string{path, span(e.Age), span(e.Fresh), settings.FormatSize(e.Body), strconv.FormatUint(e.Hits, 10), whose})
	}
	if len(c.Kept) > 0 {
		fmt.Fprintln(out, strings.Join(out.columns(rows), "\n"))
	}
	more := ""
	if n := c.Entries - len(c.Kept); n > 0 {
		more = fmt.Sprintf(" (%d are not listed)", n)
	}
	fmt.Fprintf(out, "%d answers%s in %d KiB of %s; %d hits, %d validated, %d misses; %d KiB saved\n",
		c.Entries, more, (c.Bytes+1023)>>10, settings.FormatSize(c.Limit), c.Hits, c.Validations, c.Misses, c.Saved>>10)
}

// span shows seconds; a negative number is "stale".
func span(s float64) string {
	d := time.Duration(s * float64(time.Second))
	switch {
	case d < 0:
		return "stale for " + span(-s)
	case d < 10*time.Second:
		return d.Round(100 * time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}
