package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cloudrest/cloudrest/tether/provisioning"
	"github.com/cloudrest/cloudrest/tether/settings"
	"github.com/cloudrest/cloudrest/tools/factory"
)

// programEnv makes the test's program the command itself, for simulate to start.
const programEnv = "FACTORY_TEST_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(programEnv) != "" {
		os.Exit(run(os.Args[1:], nil, os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

// stateDir is short: the path of a UNIX socket has about 100 bytes.
func stateDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "st")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func command(t *testing.T, want int, args ...string) string {
	t.Helper()
	var out, errOut bytes.Buffer
	if code := program(&errOut).Main(t.Context(), args, nil, &out, &errOut); code != want {
		t.Fatalf("%q: exit %d, want %d: %s", args, code, want, &errOut)
	}
	return out.String()
}

func TestCommands(t *testing.T) {
	dir := stateDir(t)
	phrase, password := filepath.Join(t.TempDir(), "wifi"), filepath.Join(t.TempDir(), "page")
	os.WriteFile(phrase, []byte("passphrase\n"), 0o600)
	os.WriteFile(password, []byte("short\n"), 0o600)
	command(t, settings.ExitUsage, "serve", "--state-dir", dir, "--page-password-file", password)
	command(t, settings.ExitFail, "token", "list", "--state-dir", dir) // no station has ever run
	os.WriteFile(password, []byte("long enough\r\n"), 0o600)

	ctx, cancel := context.WithCancel(t.Context())
	r, w := io.Pipe()
	ended := make(chan int, 1)
	var errOut bytes.Buffer
	go func() {
		code := program(&errOut).Main(ctx, []string{"serve", "--state-dir", dir, "--listen", "127.0.0.1:0", "--wifi-ssid", "Line", "--wifi-passphrase-file", phrase,
			"--page-password-file", password, "--log-level", "error"}, nil, w, &errOut)
		w.Close()
		ended <- code
	}()
	line, _ := bufio.NewReader(r).ReadString('\n')
	go io.Copy(io.Discard, r)
	ca := filepath.Join(dir, factory.AuthorityFile)
	if !strings.HasPrefix(line, "new authority") || !strings.HasSuffix(strings.TrimSpace(line), ca) {
		t.Errorf("serve says %q, want where the authority is: %s", line, ca)
	}

	token := strings.TrimSpace(command(t, 0, "token", "new", "--state-dir", dir, "--count", "3", "--expires", "1h", "--name", "batch 7"))
	if !provisioning.ValidToken(token) {
		t.Errorf("token new prints %q", token)
	}
	file := filepath.Join(t.TempDir(), "token")
	command(t, 0, "token", "new", "--state-dir", dir, "--out", file)
	if st, err := os.Stat(file); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the token's file: %v", err)
	}
	command(t, settings.ExitFail, "token", "new", "--state-dir", dir, "--out", file) // it is there
	if list := command(t, 0, "token", "list", "--state-dir", dir); !strings.Contains(list, "batch 7") || !strings.Contains(list, "batch 2") || strings.Contains(list, token) {
		t.Errorf("token list prints\n%s", list)
	}
	var st factory.State
	if err := json.Unmarshal([]byte(command(t, 0, "status", "--json", "--state-dir", dir)), &st); err != nil || len(st.Batches) != 2 {
		t.Errorf("status: %+v, %v", st, err)
	}
	command(t, 0, "status", "--state-dir", dir)
	command(t, 0, "conflicts", "--state-dir", dir)
	command(t, settings.ExitFail, "release", strings.Repeat("0", 64), "--state-dir", dir)
	command(t, settings.ExitFail, "release", "00000000", "--state-dir", dir)
	command(t, settings.ExitFail, "release", "x", "--state-dir", dir)
	command(t, settings.ExitUsage, "token", "make", "--state-dir", dir)
	command(t, settings.ExitUsage, "export", "--format", "xml", "--state-dir", dir)
	command(t, settings.ExitUsage, "simulate", "--faults", "2")

	cancel()
	if code := <-ended; code != 0 {
		t.Errorf("serve ends with %d: %s", code, &errOut)
	}
	command(t, settings.ExitFail, "status", "--state-dir", dir) // there is no line
	command(t, 0, "token", "revoke", "batch 7", "--state-dir", dir)
	if list := command(t, 0, "token", "list", "--state-dir", dir); !strings.Contains(list, "revoked") {
		t.Errorf("token list prints\n%s", list)
	}
}

func TestSimulateAndExport(t *testing.T) {
	t.Setenv(programEnv, "1")
	dir := stateDir(t)
	var r factory.SimResult
	if err := json.Unmarshal([]byte(command(t, 0, "simulate", "-n", "12", "--parallel", "4", "--faults", "0.3", "--work-dir", dir, "--json")), &r); err != nil {
		t.Fatal(err)
	}
	if r.Identities != 12 || r.Orphans != 0 || len(r.Problems) != 0 {
		t.Errorf("%+v", r)
	}
	station := filepath.Join(dir, "station")
	file := filepath.Join(t.TempDir(), "units.jsonl")
	command(t, 0, "export", "--state-dir", station, "--out", file)
	b, err := os.ReadFile(file)
	if err != nil || bytes.Count(b, []byte("\n")) != 12 || bytes.Contains(b, []byte("label_secret")) {
		t.Errorf("%d lines, %v", bytes.Count(b, []byte("\n")), err)
	}
	labels := command(t, 0, "export", "--state-dir", station, "--format", "csv", "--labels")
	if n := strings.Count(labels, "/.cloudrest/#c="); n != 12 {
		t.Errorf("%d labels have a URL, want 12", n)
	}
	// Release by the digits that the page shows.
	var u struct{ ID string }
	if err := json.Unmarshal(b[:bytes.IndexByte(b, '\n')], &u); err != nil {
		t.Fatal(err)
	}
	command(t, 0, "release", u.ID[:12], "--reason", "repair", "--state-dir", station)
	if revoked := command(t, 0, "export", "--revoked", "--state-dir", station); strings.Count(revoked, "\n") != 1 || !strings.Contains(revoked, u.ID) {
		t.Errorf("revoked: %s", revoked)
	}
	if n := strings.Count(command(t, 0, "export", "--all", "--state-dir", station), "\n"); n != 11 {
		t.Errorf("%d units after a release, want 11", n)
	}
}

// The example configuration of serve is one.
func TestExample(t *testing.T) {
	command(t, 0, "example-config")
	command(t, 0, "version")
}
