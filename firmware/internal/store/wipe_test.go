package store

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestWipe(t *testing.T) {
	for name, volatile := range map[string]bool{"on flash": false, "in memory": true} {
		t.Run(name, func(t *testing.T) {
			c := Config{Dir: t.TempDir(), VolatileDir: filepath.Join(t.TempDir(), "v"), Volatile: volatile}
			s, err := Open(c)
			if err != nil {
				t.Fatal(err)
			}
			b := s.Bucket("x")
			if err := errors.Join(b.Put("k", []byte("secret")), s.Sync()); err != nil {
				t.Fatal(err)
			}
			c.LockWait = 1
			if err := Wipe(c); !errors.Is(err, ErrInUse) {
				t.Errorf("Wipe of an open store = %v, want ErrInUse", err)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(c.Dir, fileName+asideSuffix), []byte("old"), 0o600); err != nil {
				t.Fatal(err)
			}
			for range 2 { // a second time finds nothing, as after a power cut at the end
				if err := Wipe(c); err != nil {
					t.Fatal(err)
				}
			}
			for _, dir := range []string{c.Dir, c.VolatileDir} {
				if left, _ := os.ReadDir(dir); len(left) > 0 {
					t.Errorf("left in %s: %v", dir, left)
				}
			}
			if s, err = Open(c); err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			if v, err := s.Bucket("x").Get("k"); !errors.Is(err, ErrNotFound) {
				t.Errorf("after Wipe: %q, %v, want ErrNotFound", v, err)
			}
		})
	}
}
