package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// bom is a bill of materials, CycloneDX 1.6, of what is in an image.
type bom struct {
	Format     string         `json:"bomFormat"`
	Spec       string         `json:"specVersion"`
	Version    int            `json:"version"`
	Metadata   map[string]any `json:"metadata"`
	Components []bomComponent `json:"components"`
}

type bomComponent struct {
	Type    string `json:"type"`
	Name    string `json:"name"`
	Version string `json:"version"`
	PURL    string `json:"purl,omitempty"`
}

func sbomBeside(image string) string {
	return strings.TrimSuffix(image, filepath.Ext(image)) + ".cdx.json"
}

// sbom lists the modules of the image's programs, its kernel and its firmware.
func (j *job) sbom(ctx context.Context, path string, packages map[string][]string, others []bomComponent) error {
	seen := map[string]bomComponent{}
	for dir, list := range packages {
		cmd := exec.CommandContext(ctx, "go", append([]string{"list", "-deps", "-f", "{{with .Module}}{{.Path}} {{.Version}}{{end}}"}, list...)...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "GOOS=linux", "CGO_ENABLED=0", "GOWORK=off", "GOFLAGS=-mod=readonly")
		cmd.Env = append(cmd.Env, j.board.env...)
		var problem bytes.Buffer
		cmd.Stderr = &problem
		out, err := cmd.Output()
		if err != nil {
			return fmt.Errorf("list the modules of the image: %w: %s", err, bytes.TrimSpace(problem.Bytes()))
		}
		for line := range strings.Lines(string(out)) {
			module, version, _ := strings.Cut(strings.TrimSpace(line), " ")
			if module == "" || strings.HasPrefix(module, mainModule) {
				continue // ours are the image itself
			}
			seen[module] = bomComponent{"library", module, version, "pkg:golang/" + module + "@" + version}
		}
	}
	var all []bomComponent
	for _, c := range seen {
		all = append(all, c)
	}
	all = append(all, others...)
	slices.SortFunc(all, func(a, b bomComponent) int { return strings.Compare(a.Name, b.Name) })
	goVersion, err := exec.CommandContext(ctx, "go", "env", "GOVERSION").Output()
	if err != nil {
		return err
	}
	v := strings.TrimPrefix(strings.TrimSpace(string(goVersion)), "go")
	all = append(all, bomComponent{"library", "stdlib", v, "pkg:golang/stdlib@" + v})
	text, err := json.MarshalIndent(bom{"CycloneDX", "1.6", 1, map[string]any{
		"timestamp": time.Unix(j.info.Sequence, 0).UTC().Format(time.RFC3339),
		"component": bomComponent{"firmware", "cloudrest-image-" + j.board.name, j.info.Version, ""},
	}, all}, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(text, '\n'), 0o644)
}

// moduleComponents describes modules that hold data and not programs, as go.mod pins them.
func moduleComponents(ctx context.Context, own string, modules ...string) ([]bomComponent, error) {
	var all []bomComponent
	for _, m := range modules {
		if m == "" {
			continue
		}
		cmd := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Version}}", m)
		cmd.Dir = own
		out, err := cmd.Output()
		if err != nil {
			return nil, fmt.Errorf("find the version of %s: %w", m, err)
		}
		v := strings.TrimSpace(string(out))
		all = append(all, bomComponent{"firmware", m, v, "pkg:golang/" + m + "@" + v})
	}
	return all, nil
}
