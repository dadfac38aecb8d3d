package nodeclient

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

const vectors = "../../tether/testdata"

// tool finds a program, or skips the test.
func tool(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("%s is not installed", name)
	}
	return path
}

func TestVectors(t *testing.T) {
	nodeTest(t, ".", "vectors.test.js")
}

// nodeTest runs a test file of Node's own test runner.
func nodeTest(t *testing.T, dir, file string) {
	t.Helper()
	node := tool(t, "node")
	folder, err := filepath.Abs(vectors)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), node, "--test", "--test-reporter=tap", file)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "CLOUDREST_VECTORS="+folder)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("node --test %s: %v\n%s", file, err, out)
	}
	if !bytes.Contains(out, []byte("# fail 0")) || bytes.Contains(out, []byte("# pass 0")) {
		t.Errorf("node --test %s reports no passes:\n%s", file, out)
	}
}

// A lock file without addresses works with whatever registry a machine is set up for.
func TestLockFile(t *testing.T) {
	lock, err := os.ReadFile("package-lock.json")
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(lock, []byte(`"resolved"`)) || bytes.Contains(lock, []byte("://")) {
		t.Error("package-lock.json names a registry")
	}
	if !bytes.Contains(lock, []byte(`"integrity"`)) {
		t.Error("package-lock.json pins no content")
	}
}
