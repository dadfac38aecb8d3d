// Package buildinfo says which build is running: version, commit and build time, as
// build.sh linked them in (-X), or else as the Go tool recorded them. The build time is
// the commit's, so that two builds of one commit are the same bytes.
package buildinfo

import (
	"encoding/json"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Set by build.sh with -ldflags "-X ...".
var (
	version string // "v0.1.0-12-g284d6ce", from git describe
	commit  string // full hash
	seconds string // commit time, seconds since 1970
)

// unknown is the version of a build that neither build.sh nor the Go tool marked.
const unknown = "devel"

// shortHash is how many digits of a commit people are shown.
const shortHash = 12

// Info describes one build. Its JSON form is what `version --json` prints.
type Info struct {
	Version string    `json:"version"`
	Commit  string    `json:"commit,omitempty"`
	Time    time.Time `json:"time,omitzero"` // of the commit, UTC
	Go      string    `json:"go"`            // toolchain, "go1.26.8"
	OS      string    `json:"os"`
	Arch    string    `json:"arch"`
}

// Get returns the facts of the running binary. It is safe for concurrent use.
func Get() Info { return once() }

var once = sync.OnceValue(func() Info {
	var settings []debug.BuildSetting
	module := ""
	if b, ok := debug.ReadBuildInfo(); ok {
		settings, module = b.Settings, b.Main.Version
	}
	return merge(version, commit, seconds, module, settings)
})

// merge prefers what was linked in over what the Go tool recorded.
func merge(version, commit, seconds, module string, settings []debug.BuildSetting) Info {
	i := Info{Version: version, Commit: commit, Go: runtime.Version(), OS: runtime.GOOS, Arch: runtime.GOARCH}
	if s, err := strconv.ParseInt(seconds, 10, 64); err == nil && s > 0 {
		i.Time = time.Unix(s, 0).UTC()
	}
	dirty := false
	for _, s := range settings {
		switch {
		case s.Key == "vcs.revision" && i.Commit == "":
			i.Commit = s.Value
		case s.Key == "vcs.time" && i.Time.IsZero():
			i.Time, _ = time.Parse(time.RFC3339, s.Value) // zero when odd
		case s.Key == "vcs.modified":
			dirty = s.Value == "true"
		}
	}
	switch {
	case i.Version != "":
	case module != "" && module != "(devel)":
		i.Version = module // go install module@version
	case i.Commit != "":
		i.Version = unknown + "-" + i.Commit[:min(shortHash, len(i.Commit))]
		if dirty {
			i.Version += "-dirty"
		}
	default:
		i.Version = unknown
	}
	return i
}

// Version is the version in one word, never empty: "v0.1.0", "devel".
func Version() string { return Get().Version }

// BuildTime is the commit's time in UTC, or the zero time when unknown. A device whose
// clock shows an earlier time knows that its clock is wrong.
func BuildTime() time.Time { return Get().Time }

// JSON is Get as one line of JSON without a newline at its end, with what the program was
// built with if it has such choices.
func JSON(features ...string) []byte {
	b, err := json.Marshal(struct {
		Info
		Features []string `json:"features,omitzero"`
	}{Get(), features})
	if err != nil {
		panic("buildinfo: " + err.Error()) // strings and a time always marshal
	}
	return b
}

// String is for people: "cloudrelay v0.1.0 (284d6ce1f0aa, 2026-02-03, go1.26.8 linux/amd64)",
// and what the program was built with if it has such choices.
func String(program string, features ...string) string {
	i := Get()
	s := program + " " + i.Version + " ("
	if i.Commit != "" {
		s += i.Commit[:min(shortHash, len(i.Commit))] + ", "
	}
	if !i.Time.IsZero() {
		s += i.Time.Format(time.DateOnly) + ", "
	}
	s += i.Go + " " + i.OS + "/" + i.Arch + ")"
	if len(features) > 0 {
		s += " with " + strings.Join(features, ", ")
	}
	return s
}
