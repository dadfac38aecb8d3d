package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestDemoSaysWhatIsMissing(t *testing.T) {
	cloudrest(t, environment{}, "demo", "--once", "--bin", t.TempDir()).check(t, 1, "", "run `make demo` in the source folder")
}

func TestSteps(t *testing.T) {
	var out bytes.Buffer
	d := &demo{out: screenOf(&out)}
	act := func(result string, err error) func(context.Context) (string, error) {
		return func(context.Context) (string, error) { return result, err }
	}
	if !d.step(t.Context(), "works", act("fine", nil)) || !d.step(t.Context(), "cannot", act("", fmt.Errorf("x: %w", &leftOut{"no network"}))) ||
		d.step(t.Context(), "fails", act("", errors.New("bad\x1b[2J"))) {
		t.Error("a step that works or is left out must let the story go on, one that fails must not")
	}
	if d.steps != 3 || d.failed != 1 {
		t.Errorf("%d steps, %d failed, want 3 and 1", d.steps, d.failed)
	}
	for _, want := range []string{"  1  ok        works ", " fine\n", "  2  left out  cannot ", "left out: no network\n", "  3  FAILED    fails ", "bad?[2J\n"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("output lacks %q:\n%s", want, out.String())
		}
	}
	out.Reset()
	d.json = true
	d.step(t.Context(), "works", act("fine", nil))
	if want := `{"step":4,"title":"works","state":"ok","result":"fine","ms":`; !strings.HasPrefix(out.String(), want) {
		t.Errorf("--json = %q, want %q", out.String(), want)
	}
}

func TestAuthority(t *testing.T) {
	dir := t.TempDir()
	a, err := newAuthority(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.issue("relay", "localhost", "*.localhost"); err != nil {
		t.Fatal(err)
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "relay.pem"), filepath.Join(dir, "relay.key"))
	if err != nil {
		t.Fatal(err)
	}
	roots, err := readCA(filepath.Join(dir, "ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"localhost", "x.localhost", "127.0.0.1"} {
		if _, err := pair.Leaf.Verify(x509.VerifyOptions{DNSName: name, Roots: roots}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if i, err := os.Stat(filepath.Join(dir, "relay.key")); err != nil || i.Mode() != fs.FileMode(0o600) {
		t.Errorf("key file: %v, %v, want mode 0600", i.Mode(), err)
	}
}

func TestLogFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	l, err := newLogFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if l.first() != "" {
		t.Error("a first line before anything was written")
	}
	if _, err := io.Copy(l, struct{ io.Reader }{strings.NewReader("listening on x")}); err != nil { // as os/exec does
		t.Fatal(err)
	}
	if got := l.first(); got != "" {
		t.Errorf("first = %q before the line ended", got)
	}
	fmt.Fprintln(l)
	if got := l.first(); got != "listening on x" {
		t.Errorf("first = %q", got)
	}
	for i := range 10_000 {
		fmt.Fprintln(l, "line", i)
	}
	l.Close()
	if got := l.last(); !strings.HasSuffix(got, "  line 9999\n") || len(got) > 2*maxTail {
		t.Errorf("last is %d bytes and ends with %q", len(got), got[max(0, len(got)-20):])
	}
	if got := bytes.Count(read(t, path), []byte("\n")); got != 10_001 {
		t.Errorf("the file has %d lines, want all 10001", got)
	}
}

func TestEqual(t *testing.T) {
	long := strings.Repeat("x", 100_000)
	for _, c := range []struct {
		a, b string
		want bool
	}{{"", "", true}, {long, long, true}, {long, long + "y", false}, {long + "y", long, false}, {long + "a", long + "b", false}} {
		if got, err := equal(strings.NewReader(c.a), io.MultiReader(strings.NewReader(c.b[:len(c.b)/3]), strings.NewReader(c.b[len(c.b)/3:]))); got != c.want || err != nil {
			t.Errorf("equal of %d and %d bytes = %v, %v, want %v", len(c.a), len(c.b), got, err, c.want)
		}
	}
}
