package buildinfo

import (
	"encoding/json"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"testing"
	"time"
)

func TestMerge(t *testing.T) {
	vcs := []debug.BuildSetting{
		{Key: "vcs.revision", Value: "0123456789abcdef0123"}, {Key: "vcs.time", Value: "2026-02-03T04:05:06Z"}, {Key: "vcs.modified", Value: "true"},
	}
	at := time.Date(2026, 2, 3, 4, 5, 6, 0, time.UTC)
	here := Info{Go: runtime.Version(), OS: runtime.GOOS, Arch: runtime.GOARCH}
	with := func(version, commit string, t time.Time) Info {
		i := here
		i.Version, i.Commit, i.Time = version, commit, t
		return i
	}
	for name, c := range map[string]struct {
		version, commit, seconds, module string
		settings                         []debug.BuildSetting
		want                             Info
	}{
		"linked in":  {"v1.2.3", "abc", "86400", "v9.9.9", vcs, with("v1.2.3", "abc", time.Unix(86400, 0).UTC())},
		"go build":   {"", "", "", "(devel)", vcs, with("devel-0123456789ab-dirty", "0123456789abcdef0123", at)},
		"go install": {"", "", "", "v0.4.0", nil, with("v0.4.0", "", time.Time{})},
		"unmarked":   {"", "", "soon", "(devel)", nil, with("devel", "", time.Time{})},
	} {
		if got := merge(c.version, c.commit, c.seconds, c.module, c.settings); got != c.want {
			t.Errorf("%s: got %+v, want %+v", name, got, c.want)
		}
	}
}

// build.sh names the three variables by their full path; a renamed one would be
// silently ignored by the linker.
func TestLinkedIn(t *testing.T) {
	dir := t.TempDir()
	out := filepath.Join(dir, "probe")
	const path = "github.com/cloudrest/cloudrest/tether/buildinfo."
	flags := "-X " + path + "version=v7.7.7 -X " + path + "commit=c0ffee -X " + path + "seconds=1000000000"
	if b, err := exec.CommandContext(t.Context(), "go", "build", "-o", out, "-ldflags", flags, "./testdata/probe").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, b)
	}
	b, err := exec.CommandContext(t.Context(), out).Output()
	if err != nil {
		t.Fatal(err)
	}
	var got Info
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatalf("%q: %v", b, err)
	}
	want := Info{Version: "v7.7.7", Commit: "c0ffee", Time: time.Unix(1_000_000_000, 0).UTC(), Go: runtime.Version(), OS: runtime.GOOS, Arch: runtime.GOARCH}
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}
