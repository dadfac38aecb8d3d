package main

import (
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cloudrest/cloudrest/tools/cmd/piimage/update"
)

// Signed updates of an image of gokrazy: gokrazy's own interface, which takes anything, is
// closed; what is refused changes nothing; what is taken goes through a trial.
func TestSigned(t *testing.T) {
	needTools(t)
	dir := t.TempDir()
	disk, secretsFile := filepath.Join(dir, "v1.img"), filepath.Join(dir, "secrets.json")
	key, public := keys(t, dir, "owner")
	stranger, _ := keys(t, dir, "stranger")
	vm := []string{"--board", "vm", "--update-key", public}
	at(t, "1790000100", "v1.0.0", disk, vm...)
	again := filepath.Join(dir, "again.img")
	at(t, "1790000100", "v1.0.0", again, vm...)
	if !sameFile(t, disk, again) {
		t.Error("two builds of the same differ")
	}
	os.Remove(again)

	v := newVM(t, virt, disk)
	p := newPhone(t, v, func() string { return "" })
	first := p.up(t)
	c := &client{address: v.updateAddress(), secretsFile: secretsFile}
	if err := c.open(); err != nil {
		t.Fatal(err)
	}
	// With the password and all.
	for _, path := range []string{"update/root", "update/switch", "update/testboot", "reboot", "uploadtemp/x"} {
		method := http.MethodPost
		if path == "update/root" {
			method = http.MethodPut
		}
		_, err := c.call(t.Context(), method, path, nil)
		if e, ok := errors.AsType[*statusError](err); !ok || !strings.HasPrefix(e.status, "404") {
			t.Errorf("gokrazy's /%s: %v, want 404", path, err)
		}
	}
	if out, code := tool("update", v.updateAddress(), "--secrets", secretsFile, "--image", disk); code != exitFailed || !strings.Contains(out, "signed updates only") {
		t.Errorf("an unsigned update: exit %d, %s", code, out)
	}
	p.pair(t, secretsFile)

	next, old := filepath.Join(dir, "v2.img"), filepath.Join(dir, "v0.img")
	at(t, "1790000200", "v2.0.0", next, vm...)
	at(t, "1790000000", "v0.9.0", old, vm...)
	strange := filepath.Join(dir, "strange.update")
	sign(t, stranger, next, "--out", strange)
	good := sign(t, key, next)
	for name, w := range wrongBundles(t, good, sign(t, key, old), strange) {
		if out, code := tool("update", v.updateAddress(), "--secrets", secretsFile, "--bundle", w.file); code != exitFailed || !strings.Contains(out, w.want) {
			t.Errorf("an update that is %s: exit %d, %s, want %q", name, code, out, w.want)
		}
	}
	if s, err := c.ours(t.Context()); err != nil || s.Version != "v1.0.0" || s.Newest != 1790000100 {
		t.Errorf("after the wrong ones: %+v, %v, want v1.0.0", s, err)
	}
	take := func(bundle string, code int, want, version string) {
		t.Helper()
		out, got := tool("update", v.updateAddress(), "--secrets", secretsFile, "--bundle", bundle)
		t.Logf("update:\n%s", out)
		if got != code || !strings.Contains(out, want) {
			t.Fatalf("piimage update: exit %d, want %d and %q", got, code, want)
		}
		if s := p.up(t); s.Version != version || s.ID != first.ID {
			t.Errorf("after the update: %+v, want %s of %s", s, version, first.ID)
		}
	}
	take(good, exitOK, "v2.0.0 stays", "v2.0.0")
	// What was the newest is now too old.
	if out, code := tool("update", v.updateAddress(), "--secrets", secretsFile, "--bundle", sign(t, key, disk)); code != exitFailed || !strings.Contains(out, update.ErrOlder.Error()) {
		t.Errorf("back to v1.0.0: exit %d, %s, want %q", code, out, update.ErrOlder)
	}
	bad := filepath.Join(dir, "v3.img")
	at(t, "1790000300", "v3.0.0", bad, append(vm, "--origin-binary", broken(t))...)
	take(sign(t, key, bad), exitFailed, errBack.Error(), "v2.0.0")
	take(sign(t, key, old, "--allow-downgrade", "1790000200"), exitOK, "v0.9.0 stays", "v0.9.0")
	if err := c.showState(t.Context(), io.Discard); err != nil {
		t.Errorf("piimage state: %v", err)
	}
}
