package rig

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"text/tabwriter"
)

// Goal is a figure to reach.
type Goal struct {
	What string  `json:"what"`
	Most float64 `json:"at_most"`
	Is   float64 `json:"is"`
	Met  bool    `json:"met"`
}

// AtMost makes a Goal.
func AtMost(what string, most, is float64) Goal { return Goal{what, most, is, is <= most} }

func (g Goal) String() string {
	word := "met"
	if !g.Met {
		word = "missed"
	}
	return fmt.Sprintf("goal: %s at most %g: %.2f, %s", g.What, g.Most, g.Is, word)
}

// Report is what a bench prints.
type Report struct {
	Bench   string `json:"bench"`
	What    string `json:"what"` // is measured, in one line
	Machine string `json:"machine"`
	Rows    any    `json:"rows"` // for JSON, a slice
	Goals   []Goal `json:"goals"`

	Head  []string   `json:"-"` // of the table
	Lines [][]string `json:"-"`
}

// Print writes the table to standard output, or the report as JSON.
func (r *Report) Print(asJSON bool) error {
	if r.Machine == "" {
		r.Machine = Machine()
	}
	if asJSON {
		e := json.NewEncoder(os.Stdout)
		e.SetIndent("", "  ")
		return e.Encode(r)
	}
	return r.table(os.Stdout)
}

func (r *Report) table(out io.Writer) error {
	fmt.Fprintf(out, "%s; %s\n", r.What, r.Machine)
	lines := append([][]string{r.Head}, r.Lines...)
	first := 0 // the names stand left, the figures right
	for _, line := range lines {
		first = max(first, len(line[0]))
	}
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	for _, line := range lines {
		fmt.Fprintf(t, "%-*s\t", first, line[0])
		for _, cell := range line[1:] {
			fmt.Fprintf(t, "%s\t", cell)
		}
		fmt.Fprintln(t)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, g := range r.Goals {
		fmt.Fprintln(out, g)
	}
	return nil
}
