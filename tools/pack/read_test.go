package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"
)

// opened is what a package holds, as opkg or apk see it.
type opened struct {
	control map[string]string // file name to text
	data    []*tar.Header
	body    map[string][]byte // by the path from /, such as usr/bin/cloudrestd
}

// readTar reads a tar up to its end; one that is cut off after the last file is fine, since
// apk puts several behind each other.
func readTar(r io.Reader) (list []*tar.Header, body map[string][]byte, err error) {
	body = map[string][]byte{}
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return list, body, nil
		}
		if err != nil {
			return nil, nil, err
		}
		text, err := io.ReadAll(tr)
		if err != nil {
			return nil, nil, err
		}
		name := path.Clean("/" + h.Name)[1:]
		list = append(list, h)
		body[name] = text
	}
}

// readIPK opens what opkg installs: a gzipped tar of debian-binary and two gzipped tars.
func readIPK(file []byte) (*opened, error) {
	z, err := gzip.NewReader(bytes.NewReader(file))
	if err != nil {
		return nil, err
	}
	_, outer, err := readTar(z)
	if err != nil {
		return nil, err
	}
	if got := string(outer["debian-binary"]); got != "2.0\n" {
		return nil, fmt.Errorf("debian-binary is %q", got)
	}
	p := &opened{control: map[string]string{}}
	inner := func(name string) ([]*tar.Header, map[string][]byte, error) {
		z, err := gzip.NewReader(bytes.NewReader(outer[name]))
		if err != nil {
			return nil, nil, fmt.Errorf("open %s: %w", name, err)
		}
		return readTar(z)
	}
	_, control, err := inner("control.tar.gz")
	if err != nil {
		return nil, err
	}
	for name, text := range control {
		p.control[name] = string(text)
	}
	p.data, p.body, err = inner("data.tar.gz")
	return p, err
}

// readAPK opens what apk installs: gzip streams behind each other, the control tar first.
func readAPK(file []byte) (*opened, error) {
	in := bytes.NewReader(file)
	p := &opened{control: map[string]string{}}
	z, err := gzip.NewReader(in)
	if err != nil {
		return nil, err
	}
	for n := 0; ; n++ {
		z.Multistream(false)
		list, body, err := readTar(z)
		if err != nil {
			return nil, fmt.Errorf("stream %d: %w", n, err)
		}
		if _, err := io.Copy(io.Discard, z); err != nil { // the padding
			return nil, err
		}
		if n == 0 {
			for name, text := range body {
				p.control[name] = string(text)
			}
		} else {
			p.data, p.body = list, body
		}
		if err := z.Reset(in); errors.Is(err, io.EOF) {
			return p, nil
		} else if err != nil {
			return nil, err
		}
	}
}

// install puts the files of a package below root, and refuses what a package must not have.
func (p *opened) install(t *testing.T, root string) {
	t.Helper()
	for _, h := range p.data {
		name := path.Clean("/" + h.Name)[1:]
		to := filepath.Join(root, name)
		mode := h.FileInfo().Mode()
		if h.Uid != 0 || h.Gid != 0 || mode&(os.ModeSetuid|os.ModeSetgid) != 0 || strings.Contains(h.Name, "..") {
			t.Errorf("%s: owner %d:%d, mode %v", h.Name, h.Uid, h.Gid, mode)
		}
		switch h.Typeflag {
		case tar.TypeDir:
			if err := os.MkdirAll(to, 0o755); err != nil {
				t.Fatal(err)
			}
		case tar.TypeReg:
			if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(to, p.body[name], mode.Perm()); err != nil {
				t.Fatal(err)
			}
		default:
			t.Errorf("%s: type %c", h.Name, h.Typeflag)
		}
	}
}

func gunzip(text []byte) ([]byte, error) {
	z, err := gzip.NewReader(bytes.NewReader(text))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(z)
}
