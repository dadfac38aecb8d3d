package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestBuildTwice runs build.sh in two copies of the source, in other folders, with other
// file modes and times: what it makes, programs and packages, is the same to the byte.
func TestBuildTwice(t *testing.T) {
	if testing.Short() {
		t.Skip("it compiles the programs twice")
	}
	list, err := exec.CommandContext(t.Context(), "git", "-C", "../..", "ls-files", "-coz", "--exclude-standard").Output()
	if err != nil {
		t.Skipf("no clone: git ls-files: %v", err)
	}
	clone := func(mode os.FileMode) string {
		root := filepath.Join(t.TempDir(), "clone")
		for name := range strings.SplitSeq(strings.TrimSuffix(string(list), "\x00"), "\x00") {
			from, to := filepath.Join("../..", name), filepath.Join(root, name)
			info, err := os.Lstat(from)
			if err != nil {
				continue // removed, and that is not committed yet
			}
			b, err := os.ReadFile(from)
			if err == nil {
				err = os.MkdirAll(filepath.Dir(to), 0o755)
			}
			if err == nil {
				err = os.WriteFile(to, b, mode|info.Mode()&0o100)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		return root
	}
	// A router's packages have most that could differ: a second go.mod, flags of their own for
	// each package. What is in the other packages is TestReproducible's matter.
	build := func(root string) string {
		c := exec.CommandContext(t.Context(), "./build.sh", "--only", "mipsel_24kc")
		c.Dir = root
		c.Env = append(os.Environ(), "VERSION=v1.2.3", "SOURCE_DATE_EPOCH=1790000000", "GIT_CEILING_DIRECTORIES="+filepath.Dir(root))
		if out, err := c.CombinedOutput(); err != nil && !strings.Contains(string(out), "checksums in dist/SHA256SUMS") { // too large is told elsewhere
			t.Fatalf("build.sh: %v\n%s", err, out)
		}
		return filepath.Join(root, "dist")
	}
	one, two := clone(0o644), clone(0o600) // both first: somebody may be editing
	first, second := build(one), build(two)
	for _, name := range []string{"cloudrestd-linux-mipsle", "cloudrest_mipsel_24kc.ipk", "cloudrest_mipsel_24kc.apk", sumsFile, manifestFile, sbomFile} {
		if a, b := read(t, first, name), read(t, second, name); len(a) == 0 || !bytes.Equal(a, b) {
			t.Errorf("%s differs between two builds: %d and %d bytes", name, len(a), len(b))
		}
	}
}
