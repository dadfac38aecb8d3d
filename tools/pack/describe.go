package main

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"debug/buildinfo"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// The files that describe the others.
const (
	manifestFile  = "manifest.json"
	signatureFile = manifestFile + ".sig" // 64 bytes, Ed25519 (RFC 8032) over manifest.json
	sbomFile      = "cloudrest.cdx.json"
	sumsFile      = "SHA256SUMS"
)

// manifest names every artifact of a release.
type manifest struct {
	Format  int    `json:"format"` // 1
	Name    string `json:"name"`   // "cloudrest"
	Version string `json:"version"`
	Commit  string `json:"commit,omitempty"`
	Time    string `json:"time"` // of the commit, RFC 3339
	// Sequence grows with every release: it is the time of the commit in seconds. Who
	// installs by manifest refuses one that is smaller than what it has, so that an old
	// release with a known hole cannot be passed off as new.
	Sequence int64    `json:"sequence"`
	Files    []listed `json:"files"`
}

type listed struct {
	Name   string `json:"name"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"` // hex
}

// describe writes the bill of materials, the manifest, its signature and SHA256SUMS.
func (r *release) describe(keyFile string, out io.Writer) error {
	for _, old := range []string{manifestFile, signatureFile, sbomFile, sumsFile} {
		if err := os.Remove(filepath.Join(r.dist, old)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	bill, err := r.sbom()
	if err != nil {
		return fmt.Errorf("make the bill of materials: %w", err)
	}
	if err := os.WriteFile(filepath.Join(r.dist, sbomFile), bill, 0o644); err != nil {
		return err
	}
	m := manifest{Format: 1, Name: "cloudrest", Version: r.name.text, Commit: r.commit, Time: r.time.Format(time.RFC3339), Sequence: r.time.Unix()}
	if m.Files, err = hashes(r.dist); err != nil {
		return err
	}
	text, err := json.MarshalIndent(m, "", "\t")
	if err != nil {
		return err
	}
	text = append(text, '\n')
	if err := os.WriteFile(filepath.Join(r.dist, manifestFile), text, 0o644); err != nil {
		return err
	}
	if keyFile == "" {
		fmt.Fprintln(out, "pack: the manifest is not signed: no key was given")
	} else {
		key, err := readKey[ed25519.PrivateKey](keyFile, x509.ParsePKCS8PrivateKey)
		if err != nil {
			return fmt.Errorf("read the key that signs: %w", err)
		}
		if err := os.WriteFile(filepath.Join(r.dist, signatureFile), ed25519.Sign(key, text), 0o644); err != nil {
			return err
		}
	}
	all, err := hashes(r.dist)
	if err != nil {
		return err
	}
	var sums strings.Builder
	for _, f := range all {
		fmt.Fprintf(&sums, "%s  %s\n", f.SHA256, f.Name)
	}
	return os.WriteFile(filepath.Join(r.dist, sumsFile), []byte(sums.String()), 0o644)
}

func hashes(dir string) (out []listed, err error) {
	list, err := os.ReadDir(dir) // sorted
	if err != nil {
		return nil, err
	}
	for _, d := range list {
		if d.IsDir() || strings.HasPrefix(d.Name(), ".") {
			continue
		}
		f, err := os.Open(filepath.Join(dir, d.Name()))
		if err != nil {
			return nil, err
		}
		h := sha256.New()
		n, err := io.Copy(h, f)
		f.Close()
		if err != nil {
			return nil, err
		}
		out = append(out, listed{Name: d.Name(), Size: n, SHA256: hex.EncodeToString(h.Sum(nil))})
	}
	return out, nil
}

// readKey reads a PEM file with one key of the kind K.
func readKey[K any](name string, parse func([]byte) (any, error)) (key K, err error) {
	text, err := os.ReadFile(name)
	if err != nil {
		return key, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return key, errors.New("no PEM block")
	}
	k, err := parse(block.Bytes)
	if err != nil {
		return key, err
	}
	key, ok := k.(K)
	if !ok {
		return key, fmt.Errorf("the key is a %T, want Ed25519", k)
	}
	return key, nil
}

// errOlder refuses a roll-back.
var errOlder = errors.New("the release is older than the one installed")

// maxManifest bounds what is read before its signature is checked, in bytes.
const maxManifest = 1 << 20

// verifyManifest checks the signature, then that the release is not older than sequence
// last, then every file of the manifest that is in dir. Files may be missing: people fetch
// the one they need.
func verifyManifest(dir, publicKey string, last int64) (*manifest, error) {
	key, err := readKey[ed25519.PublicKey](publicKey, x509.ParsePKIXPublicKey)
	if err != nil {
		return nil, fmt.Errorf("read the public key: %w", err)
	}
	text, err := os.ReadFile(filepath.Join(dir, manifestFile))
	if err != nil {
		return nil, err
	}
	sig, err := os.ReadFile(filepath.Join(dir, signatureFile))
	if err != nil {
		return nil, err
	}
	if len(text) > maxManifest || !ed25519.Verify(key, text, sig) {
		return nil, errors.New("the signature of the manifest is wrong")
	}
	m := new(manifest)
	d := json.NewDecoder(bytes.NewReader(text))
	if err := d.Decode(m); err != nil {
		return nil, fmt.Errorf("read the manifest: %w", err)
	}
	if m.Format != 1 || m.Name != "cloudrest" {
		return nil, fmt.Errorf("the manifest is of %q, format %d; want cloudrest, 1", m.Name, m.Format)
	}
	if m.Sequence < last {
		return nil, fmt.Errorf("%w: sequence %d, installed %d", errOlder, m.Sequence, last)
	}
	have, err := hashes(dir)
	if err != nil {
		return nil, err
	}
	for _, f := range have {
		i := slices.IndexFunc(m.Files, func(e listed) bool { return e.Name == f.Name })
		if i >= 0 && m.Files[i] != f {
			return nil, fmt.Errorf("%s has %d bytes and SHA-256 %s, the manifest says %d and %s", f.Name, f.Size, f.SHA256, m.Files[i].Size, m.Files[i].SHA256)
		}
	}
	return m, nil
}

// component is one entry of the bill, CycloneDX 1.6.
type component struct {
	Type       string              `json:"type"`
	Ref        string              `json:"bom-ref"`
	Name       string              `json:"name"`
	Version    string              `json:"version"`
	PURL       string              `json:"purl,omitempty"`
	Hashes     []map[string]string `json:"hashes,omitempty"`
	Properties []map[string]string `json:"properties,omitempty"`
}

// sbom lists the programs in dist and the modules that each says it is made of; what is
// in a package is the program of the same name.
func (r *release) sbom() ([]byte, error) {
	list, err := hashes(r.dist)
	if err != nil {
		return nil, err
	}
	libraries := map[string]component{}
	var programs []component
	depends := []map[string]any{}
	for _, f := range list {
		info, err := buildinfo.ReadFile(filepath.Join(r.dist, f.Name))
		if err != nil {
			continue // a package, not a program
		}
		p := component{Type: "application", Ref: f.Name, Name: f.Name, Version: r.name.text,
			Hashes: []map[string]string{{"alg": "SHA-256", "content": f.SHA256}}}
		for _, s := range info.Settings {
			if strings.HasPrefix(s.Key, "GO") || s.Key == "CGO_ENABLED" || s.Key == "-tags" {
				p.Properties = append(p.Properties, map[string]string{"name": "build:" + s.Key, "value": s.Value})
			}
		}
		programs = append(programs, p)
		var on []string
		add := func(path, v, sum string) {
			// The package URL of a Go module is in lower case, and its version escaped.
			ref := "pkg:golang/" + strings.ToLower(path) + "@" + strings.ReplaceAll(v, "+", "%2B")
			c := component{Type: "library", Ref: ref, Name: path, Version: v, PURL: ref}
			if sum != "" {
				c.Properties = []map[string]string{{"name": "go:h1", "value": sum}}
			}
			libraries[ref] = c
			on = append(on, ref)
		}
		add("stdlib", strings.TrimPrefix(info.GoVersion, "go"), "")
		for _, d := range info.Deps {
			for d.Replace != nil {
				d = d.Replace
			}
			if strings.HasPrefix(d.Path, ".") {
				continue // a folder of ours, which build.sh puts in a library's place
			}
			add(d.Path, d.Version, d.Sum)
		}
		slices.Sort(on)
		depends = append(depends, map[string]any{"ref": f.Name, "dependsOn": on})
	}
	components := programs
	for _, ref := range sortedKeys(libraries) {
		components = append(components, libraries[ref])
	}
	return append(marshal(map[string]any{
		"bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1,
		"metadata": map[string]any{
			"timestamp": r.time.Format(time.RFC3339),
			"component": map[string]any{"type": "application", "name": "cloudrest", "version": r.name.text,
				"licenses": []any{map[string]any{"license": map[string]string{"id": "Apache-2.0"}}}},
		},
		"components": components, "dependencies": depends,
	}), '\n'), nil
}

func sortedKeys(m map[string]component) []string {
	var out []string
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}
