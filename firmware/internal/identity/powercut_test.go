package identity

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cloudrest/cloudrest/board/boardtest"
	"github.com/cloudrest/cloudrest/firmware/internal/statefile"
	"github.com/cloudrest/cloudrest/firmware/internal/statefile/powercut"
)

// The power goes at every operation of the first start in turn: write, sync, rename, sync
// of the directory. Whatever is then found on the disk, the next start finds the whole
// identity or none, and none only if the first start had not told anyone about it.
func TestPowerCut(t *testing.T) {
	hw := boardtest.NewHardware(flashUID)
	whole, states := 0, 0
	for cut := 1; ; cut++ {
		var written []byte
		disk := powercut.New(cut, nil)
		empty := t.TempDir()
		id, made, err := open(t.Context(), empty, hw, func(name string, content []byte) error {
			written = content
			return statefile.WriteOn(disk, filepath.Base(name), content)
		})
		if (err == nil) == disk.Lost() || made != (err == nil) {
			t.Fatalf("cut %d: made=%v, %v, power lost=%v", cut, made, err, disk.Lost())
		}
		for i, state := range disk.After() {
			states++
			dir := t.TempDir()
			for name, content := range state {
				if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			next, remade, err := Open(t.Context(), dir, hw)
			if err != nil {
				t.Errorf("cut %d, state %d: next start: %v", cut, i, err)
				continue
			}
			content, exists := state[File]
			if remade == exists || exists && !bytes.Equal(content, written) {
				t.Errorf("cut %d, state %d: found %d of %d bytes, made anew: %v", cut, i, len(content), len(written), remade)
			}
			if exists {
				whole++
			}
			if id != nil && (remade || !next.key.Equal(id.key)) {
				t.Errorf("cut %d, state %d: the identity that was told is gone", cut, i)
			}
			if again, remade, err := Open(t.Context(), dir, hw); err != nil || remade || !again.key.Equal(next.key) {
				t.Errorf("cut %d, state %d: the start after the next: made=%v, %v", cut, i, remade, err)
			}
		}
		if err == nil {
			break
		}
	}
	if whole == 0 || whole == states {
		t.Errorf("%d of %d states had an identity: the test shows nothing", whole, states)
	}
}

const killEnv = "IDENTITY_TEST_KILL_DIR"

// TestKill ends processes with SIGKILL while they make identities.
func TestKill(t *testing.T) {
	if dir := os.Getenv(killEnv); dir != "" {
		makeIdentities(t, dir)
		return
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for round := range 4 {
		dir := t.TempDir()
		cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestKill$")
		cmd.Env = append(os.Environ(), killEnv+"="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		told := map[string]string{} // directory: device ID
		in := bufio.NewScanner(out)
		for in.Scan() {
			if name, id, ok := strings.Cut(in.Text(), " "); ok && strings.HasPrefix(name, "d") {
				told[name] = id
			}
			if len(told) == 3+round {
				cmd.Process.Kill() // lines already in the pipe are still read
			}
		}
		cmd.Wait()
		if len(told) < 3+round {
			t.Fatalf("the process told %d identities before it ended, want %d", len(told), 3+round)
		}
		dirs, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range dirs {
			id, made, err := Open(t.Context(), filepath.Join(dir, d.Name()), nil)
			if err != nil {
				t.Errorf("%s: %v", d.Name(), err)
			} else if want, ok := told[d.Name()]; ok && (made || string(id.ID) != want) {
				t.Errorf("%s: ID %s made=%v, want %s", d.Name(), id.ID, made, want)
			}
		}
	}
}

// makeIdentities makes one after the other and tells each, until it is killed.
func makeIdentities(t *testing.T, dir string) {
	for i := range 10000 {
		name := fmt.Sprintf("d%d", i)
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
		id, _, err := Open(t.Context(), filepath.Join(dir, name), nil)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Printf("%s %s\n", name, id.ID)
	}
}
