package store

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// A real file system without shared maps, as JFFS2 is one: sshfs with direct_io, talking to an SFTP server
// over a pipe. The kernel answers ENODEV there (EINVAL on JFFS2).
func TestRealFileSystemWithoutMaps(t *testing.T) {
	dir := mountWithoutMaps(t)
	volatile := filepath.Join(t.TempDir(), "v")
	c := Config{Dir: dir, VolatileDir: volatile}
	for i := range 3 {
		s := mustOpen(t, c)
		if s.Status().Durability.SnapshotEvery == 0 {
			t.Fatalf("status = %+v, want the database in memory", s.Status())
		}
		b := s.Bucket("b")
		if v, err := b.Get("k"); i > 0 && (err != nil || string(v) != fmt.Sprint(i-1)) {
			t.Errorf("after power cut %d: %q, %v", i, v, err)
		}
		if err := b.Put("k", fmt.Append(nil, i)); err != nil {
			t.Fatal(err)
		}
		mustClose(t, s)
		names, err := os.ReadDir(dir)
		if err != nil || len(names) != 1 || names[0].Name() != snapshotName {
			t.Errorf("on flash: %v, %v, want the snapshot only", names, err)
		}
		if err := os.RemoveAll(volatile); err != nil {
			t.Fatal(err)
		}
	}
}

func mountWithoutMaps(t *testing.T) (dir string) {
	t.Helper()
	const sftp = "/usr/lib/openssh/sftp-server"
	sshfs, err := exec.LookPath("sshfs")
	if _, err2 := os.Stat(sftp); err != nil || err2 != nil {
		t.Skip("sshfs and openssh-sftp-server are not installed")
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip("no /dev/fuse")
	}
	flash, dir := t.TempDir(), t.TempDir()
	// sshfs appends the host and "-s sftp" to the command.
	ssh := filepath.Join(t.TempDir(), "ssh")
	if err := os.WriteFile(ssh, []byte("#!/bin/sh\nexec "+sftp+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(sshfs, "-f", "-o", "direct_io,ssh_command="+ssh, "nobody:"+flash, dir)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = syscall.Unmount(dir, syscall.MNT_DETACH)
		_ = exec.Command("fusermount3", "-u", "-z", dir).Run() // without root
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(10 * time.Second):
			_ = cmd.Process.Kill()
			<-ended
		}
	})
	var here, above syscall.Stat_t
	for {
		if err := errors.Join(syscall.Stat(dir, &here), syscall.Stat(filepath.Dir(dir), &above)); err == nil && here.Dev != above.Dev {
			return dir
		}
		select {
		case err := <-ended:
			ended <- err
			t.Skipf("sshfs does not mount here: %v", err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}
