package pagewalk

import (
	"net/url"
	"strings"
	"testing"

	"github.com/cloudrest/cloudrest/tools/browser"
)

// Each flaw is found, and a page without any is not blamed.
func TestFlaws(t *testing.T) {
	b := Start(t, Device{})
	p, err := b.Open(t.Context(), browser.Small, "")
	Do(t, err)
	const good = `<h1>Device</h1><label for=a>Name</label><input id=a style="height:44px"><button style="min-height:44px;min-width:44px">Go</button>`
	for want, body := range map[string]string{
		"":                      good,
		"wider than the screen": good + `<p style="width:500px">wide`,
		"target of":             good + `<button style="width:30px;height:30px;padding:0">x</button>`,
		"no label: input":       good + `<input style="height:44px">`,
		"no label: button":      good + `<button style="height:44px;width:44px"></button>`,
		"no alt":                good + `<img src="data:," width=9 height=9>`,
		"no label: progress":    good + `<progress></progress>`,
		"id used twice":         good + `<p id=b><p id=b>`,
		"labelled by nothing":   good + `<p aria-labelledby=c>`,
		"headings":              good + `<h1>Again</h1>`,
		"contrast":              good + `<p style="color:#999">pale`,
		"contrast 2":            good + `<div style="background:#333"><p style="background:#fff8;color:#eee">pale on what shines through`,
	} {
		doc := `<!doctype html><html lang=en><meta name=viewport content="width=device-width"><title>t</title><body style="font-size:16px;background:#fff">` + body
		Do(t, p.Go(t.Context(), "data:text/html,"+url.PathEscape(doc)))
		flaws, err := Flaws(t.Context(), p)
		Do(t, err)
		if got := strings.Join(flaws, "\n"); want == "" && got != "" || !strings.Contains(got, want) {
			t.Errorf("%s\nhas the flaws %q, want %q", body, got, want)
		}
	}
}
