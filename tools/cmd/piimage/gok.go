package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// gokPatches make gokrazy's builder write the same bytes for the same input: it takes the
// time of now and of files in the module cache, and the names of temporary folders, from
// this machine. It has no option for it, so these are replaced in the copy that is compiled.
// Each must be found as often as it says, which a new version of gok makes sure to break.
var gokPatches = []struct {
	file, old, new string
	times          int
}{
	{"packerprepare.go", "time.Now()", "buildTime(time.Now)", 1},
	{"write.go", "time.Now()", "buildTime(time.Now)", 7},
	{"write.go", "st.ModTime()", "buildTime(st.ModTime)", 3},
	// init comes from a temporary folder.
	{"buildinit.go", `"-mod=mod",`, `"-mod=mod", "-trimpath", "-buildvcs=false", "-ldflags=-s -w -buildid=",`, 1},
	{"sbom.go", "config.InstanceConfigPath()", `"config.json"`, 1},
	{"sbom.go", "string(formattedCfg)", `strings.ReplaceAll(string(formattedCfg), os.Getenv("PIIMAGE_WORK"), "")`, 1},
	{"sbom.go", "Path: fi.FromHost,", "Path: fi.Filename,", 1},
}

// buildTimeSource is added to the package that is patched.
const buildTimeSource = `package packer

import (
	"os"
	"strconv"
	"time"
)

func buildTime(func() time.Time) time.Time {
	n, err := strconv.ParseInt(os.Getenv("SOURCE_DATE_EPOCH"), 10, 64)
	if err != nil {
		panic(err)
	}
	return time.Unix(n, 0).UTC()
}
`

// gok compiles gokrazy's builder and returns its file.
func gok(ctx context.Context, j *job) (string, error) {
	dir, err := moduleDir(ctx, j.own, "github.com/gokrazy/tools")
	if err != nil {
		return "", err
	}
	copied := filepath.Join(j.work, "gok-source")
	if err := os.CopyFS(copied, os.DirFS(dir)); err != nil {
		return "", err
	}
	packer := filepath.Join(copied, "internal", "packer")
	patched := map[string]string{"buildtime.go": buildTimeSource}
	for _, p := range gokPatches {
		text, ok := patched[p.file]
		if !ok {
			b, err := os.ReadFile(filepath.Join(packer, p.file))
			if err != nil {
				return "", err
			}
			text = string(b)
		}
		if n := strings.Count(text, p.old); n != p.times {
			return "", fmt.Errorf("gokrazy's builder has changed: %q is %d times in %s, want %d", p.old, n, p.file, p.times)
		}
		patched[p.file] = strings.ReplaceAll(text, p.old, p.new)
	}
	for name, text := range patched {
		path := filepath.Join(packer, name)
		if err := os.Remove(path); err != nil && !os.IsNotExist(err) { // the copy is read-only, as the module cache is
			return "", err
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			return "", err
		}
	}
	// Our pins, with the copy in the place of the module.
	mod, sum, err := pins(j.own, "")
	if err != nil {
		return "", err
	}
	mod = fmt.Appendf(mod, "\nreplace github.com/gokrazy/tools => %q\n", copied)
	modfile := filepath.Join(j.work, "gok.mod")
	for name, text := range map[string][]byte{modfile: mod, filepath.Join(j.work, "gok.sum"): sum} {
		if err := os.WriteFile(name, text, 0o600); err != nil {
			return "", err
		}
	}
	out := filepath.Join(j.work, "gok")
	return out, command(ctx, j.own, []string{"GOFLAGS=-mod=mod", "GOWORK=off", "GOPROXY=off"}, "go", "build", "-trimpath", "-modfile", modfile, "-o", out, "github.com/gokrazy/tools/cmd/gok")
}
