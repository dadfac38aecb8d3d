package factory

import (
	"crypto/sha256"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cloudrest/cloudrest/tether/provisioning"
	"github.com/cloudrest/cloudrest/tools/browser"
)

var shots = flag.String("shots", "", "a directory for screenshots, to be looked at")

// tablet is what stands on a line: landscape, a few steps away.
var tablet = browser.Screen{Width: 1024, Height: 768, Scale: 1, Touch: true}

// The page in a real browser: it follows the line, keeps to its policy, holds no secrets,
// fits the screen, and says so when it is cut off.
func TestPageInBrowser(t *testing.T) {
	if testing.Short() {
		t.Skip("short: without a browser")
	}
	r := start(t, Config{Name: "Line 2"})
	leaf := r.cert.cert.Leaf
	pin := sha256.Sum256(leaf.RawSubjectPublicKeyInfo)
	b, err := browser.Start(t.Context(), browser.Config{Pins: [][]byte{pin[:]}})
	if errors.Is(err, browser.ErrAbsent) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	p, err := b.Open(t.Context(), tablet, "")
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	picture := func(name string) {
		t.Helper()
		png, err := p.Screenshot(ctx, true)
		check(err)
		if *shots != "" {
			check(os.WriteFile(filepath.Join(*shots, "factory-"+name+".png"), png, 0o600))
		}
		var wide bool
		check(p.Eval(ctx, "document.documentElement.scrollWidth > innerWidth", &wide))
		if wide {
			t.Errorf("%s: the page is wider than the screen", name)
		}
	}
	check(p.Go(ctx, r.url+"/"))
	check(p.Read(ctx, "#link", "live"))
	check(p.Read(ctx, "#verdict", "Ready"))
	picture("empty")

	c, err := Connect(ctx, r.cfg.Dir)
	check(err)
	defer c.Close()
	_, token, err := c.NewBatch(ctx, "batch 7", 500, 24*time.Hour)
	check(err)
	check(p.Read(ctx, "#batches", "0 of 500"))
	var last unit
	for range 23 {
		last = newUnit(t)
		if status, body, _ := r.ask(t, "POST", provisioning.ClaimPath, token, last.claim(t)); status != 200 {
			t.Fatalf("claim: %d %s", status, body)
		}
		u, err := r.store.Unit(last.id)
		check(err)
		confirmation, err := provisioning.Sign(last.id, u.Chain[0], last.key)
		check(err)
		if status, body, _ := r.ask(t, "POST", provisioning.ConfirmPath, "", confirmation); status != 204 {
			t.Fatalf("confirm: %d %s", status, body)
		}
	}
	check(p.Read(ctx, "#verdict", "OK"))
	check(p.Read(ctx, "#today", "23"))
	check(p.Read(ctx, "#unit", last.id.Short()))
	for range 2 {
		r.ask(t, "POST", provisioning.ClaimPath, token, newUnit(t).claim(t)) // in progress
	}
	picture("ok")

	erased := last
	erased.key = newKey(t)
	r.ask(t, "POST", provisioning.FailurePath, token, provisioning.Failure{UID: "00112233445566778899", Reason: provisioning.ReasonService, Message: "wait for the REST service: <b>connection</b> refused"})
	r.ask(t, "GET", provisioning.NetworkPath, "crf_wrong", nil)
	if status, _, _ := r.ask(t, "POST", provisioning.ClaimPath, token, erased.claim(t)); status != 409 {
		t.Fatalf("conflict: %d", status)
	}
	check(p.Read(ctx, "#verdict", "FAILED"))
	check(p.Read(ctx, "#conflicts", last.id.Short()))
	check(p.Read(ctx, "#troubles", "<b>connection</b>")) // as text
	check(p.Read(ctx, "#strangers", "127.0.0.1"))
	picture("failed")
	check(p.Show(ctx, browser.Phone))
	picture("phone")

	var text string
	check(p.Eval(ctx, "document.documentElement.outerHTML", &text))
	for _, secret := range []string{last.claim(t).LabelSecret, token, strings.Repeat("ab", 32), "00112233445566778899"} {
		if strings.Contains(text, secret) {
			t.Errorf("the page shows %q", secret)
		}
	}
	check(c.Release(ctx, last.id, ""))
	check(p.Miss(ctx, "#conflictbox"))
	r.stop()
	check(p.Read(ctx, "#link", "no connection"))
	if list := p.Complaints(); len(list) > 0 {
		t.Errorf("the console: %q", list)
	}
}
