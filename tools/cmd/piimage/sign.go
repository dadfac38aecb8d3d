package main

import (
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/cloudrest/cloudrest/tools/cmd/piimage/bootpart"
	"github.com/cloudrest/cloudrest/tools/cmd/piimage/update"
	"github.com/cloudrest/cloudrest/tools/cmd/piimage/zerodisk"
)

// manifestBeside is the unsigned manifest that build writes.
func manifestBeside(image string) string {
	return strings.TrimSuffix(image, filepath.Ext(image)) + ".manifest.json"
}

func bundleBeside(image string) string {
	return strings.TrimSuffix(image, filepath.Ext(image)) + ".update"
}

// readKey reads a PEM file with one key of the kind K.
func readKey[K any](name string, parse func([]byte) (any, error)) (key K, err error) {
	text, err := os.ReadFile(name)
	if err != nil {
		return key, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return key, fmt.Errorf("%s: no PEM block", name)
	}
	k, err := parse(block.Bytes)
	if err != nil {
		return key, fmt.Errorf("%s: %w", name, err)
	}
	key, ok := k.(K)
	if !ok {
		return key, fmt.Errorf("%s: the key is a %T, want Ed25519", name, k)
	}
	return key, nil
}

// imagePart is where a part of a version is in the image, in bytes.
type imagePart struct {
	name        string
	start, size int64
}

// The parts of gokrazy's images.
const (
	rootPart = "root"
	bootPart = "boot"
)

func gokrazyParts(root int64) []imagePart {
	return []imagePart{{rootPart, bootpart.RootStart, root}, {bootPart, bootpart.BootStart, bootpart.BootSize}}
}

// signer makes a bundle of an image: what a device takes as an update.
type signer struct {
	key, image, out string
	kernel          bool
	downgradeFrom   int64
}

func (s *signer) declare(f *flag.FlagSet) {
	f.StringVar(&s.key, "key", "", "PEM `file` with the Ed25519 private key; openssl genpkey -algorithm ed25519 makes one, openssl pkey -pubout its other half for --update-key")
	f.StringVar(&s.image, "image", boards[0].out, "the image that piimage build made, `file`; its .manifest.json must be beside it")
	f.StringVar(&s.out, "out", "", "the update, `file` (default: the image's name with .update)")
	f.BoolVar(&s.kernel, "with-kernel", false, "for pi: update the boot partition too, with kernel and firmware. It has no second slot: "+
		"a power cut while it is written needs the SD card to be written anew (zero-w has two, and always updates both)")
	f.Int64Var(&s.downgradeFrom, "allow-downgrade", 0, "sign that devices may take this update although they have had a newer one, whose `sequence` was at most this "+
		"(piimage state shows it); without, no device goes back")
}

func (s *signer) sign(out io.Writer) error {
	if s.key == "" {
		return mistake("--key: name the file with the private key")
	}
	key, err := readKey[ed25519.PrivateKey](s.key, x509.ParsePKCS8PrivateKey)
	if err != nil {
		return fmt.Errorf("read the key that signs: %w", err)
	}
	text, err := os.ReadFile(manifestBeside(s.image))
	if err != nil {
		return err
	}
	var m update.Manifest
	if err := json.Unmarshal(text, &m); err != nil || m.Name != update.Name || m.Format != update.Format {
		return fmt.Errorf("%s is not a manifest of piimage build (%v)", manifestBeside(s.image), err)
	}
	f, err := os.Open(s.image)
	if err != nil {
		return err
	}
	defer f.Close()
	where, err := findParts(f, &m)
	if err != nil {
		return fmt.Errorf("%s: %w", s.image, err)
	}
	m.DowngradeFrom = s.downgradeFrom
	var keep []update.Part
	for _, p := range m.Files {
		if p.Name == bootPart && !s.kernel {
			continue
		}
		// What is signed is what is there, and not what a file beside it says.
		h := sha256.New()
		if _, err := io.Copy(h, where[p.Name]); err != nil {
			return err
		}
		if got := hex.EncodeToString(h.Sum(nil)); got != p.SHA256 {
			return fmt.Errorf("%s of %s has SHA-256 %s, its manifest says %s: they do not belong together", p.Name, s.image, got, p.SHA256)
		}
		keep = append(keep, p)
	}
	m.Files = keep
	name := cmpOr(s.out, bundleBeside(s.image))
	w, err := os.Create(name)
	if err != nil {
		return err
	}
	err = update.Write(w, &m, key, func(part string) io.Reader {
		where[part].Seek(0, io.SeekStart)
		return where[part]
	})
	if err := errors.Join(err, w.Close()); err != nil {
		return err
	}
	fmt.Fprintf(out, "piimage: %s: %s for %s, sequence %d", name, m.Version, m.Board, m.Sequence)
	if m.DowngradeFrom > 0 {
		fmt.Fprintf(out, ", ALSO for devices that have had a newer one, up to sequence %d", m.DowngradeFrom)
	}
	fmt.Fprintln(out)
	return nil
}

// findParts finds in an image what its manifest lists.
func findParts(f *os.File, m *update.Manifest) (map[string]*io.SectionReader, error) {
	all := map[string]*io.SectionReader{}
	if m.Board == zeroName {
		boot := io.NewSectionReader(f, zerodisk.BootStart, zerodisk.BootSize)
		for _, p := range m.Files {
			start, room, err := zerodisk.Section(boot, 'a', p.Name)
			if err != nil || p.Size > room {
				return nil, fmt.Errorf("find %s: %d bytes, room for %d: %w", p.Name, p.Size, room, err)
			}
			all[p.Name] = io.NewSectionReader(f, zerodisk.BootStart+start, p.Size)
		}
		return all, nil
	}
	root, err := rootSize(f)
	if err != nil {
		return nil, err
	}
	for _, p := range gokrazyParts(root) {
		all[p.name] = io.NewSectionReader(f, p.start, p.size)
	}
	for _, p := range m.Files {
		if all[p.Name] == nil || all[p.Name].Size() != p.Size {
			return nil, fmt.Errorf("%s is not the %d bytes of the manifest", p.Name, p.Size)
		}
	}
	return all, nil
}
