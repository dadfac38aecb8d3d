package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cloudrest/cloudrest/firmware/internal/statefile"
)

// TestNewerState goes back to this version from one that writes another format: the daemon
// says so and leaves the state as it is.
func TestNewerState(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{"format": "99\n", "identity.json": `{"version":2}`, "cloudrest.db": "a newer database"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	before := listing(t, dir)
	for _, args := range [][]string{
		{"run", "--https", "127.0.0.1:0", "--http", "off", "--fifo", "off", "--mdns", "off", "--udp-discovery", "off"},
		{"reset", "--yes"},
	} {
		var out, errOut strings.Builder
		code := run(append(args, "--state-dir", dir), nil, &out, &errOut)
		if code == 0 || !strings.Contains(errOut.String(), statefile.ErrNewer.Error()) || !strings.Contains(errOut.String(), "format 99") {
			t.Errorf("%s: exit code %d, %q, want another than 0 and %q", args[0], code, errOut.String(), statefile.ErrNewer)
		}
	}
	delete(before, "lock")
	after := listing(t, dir)
	delete(after, "lock")
	if len(after) != len(before) {
		t.Errorf("the state directory holds %q, want %q", after, before)
	}
	for name, content := range before {
		if after[name] != content {
			t.Errorf("%s holds %q, want %q as before", name, after[name], content)
		}
	}
}

func listing(t *testing.T, dir string) map[string]string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		files[e.Name()] = string(b)
	}
	return files
}
