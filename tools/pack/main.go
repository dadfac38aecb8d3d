// Command pack turns the static programs in dist/ into packages: .ipk and .apk for OpenWrt,
// .deb for Debian, OCI archives of relay and gateway; then it writes what describes them all: a
// CycloneDX bill of materials, a manifest, signed if the releaser gives a key, and
// SHA256SUMS. build.sh runs it.
//
// It is a module of its own, so that its libraries (nfpm and what that needs) stay out of
// the module that devices and relays are built from. The same input gives the same bytes.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"
)

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "pack:", err)
		os.Exit(1)
	}
}

// release is what all artifacts of one build share.
type release struct {
	root string // of the repository
	dist string
	name version
	time time.Time // of the commit; everything packed bears it

	commit string
	best   bool // take the time for the smallest .ipk
}

func run(args []string, out io.Writer) error {
	var r release
	flags := flag.NewFlagSet("pack", flag.ContinueOnError)
	flags.StringVar(&r.root, "root", "../..", "the `folder` of the repository")
	flags.StringVar(&r.dist, "dist", "../../dist", "the `folder` of the programs, and of what is made")
	text := flags.String("version", "unversioned", "`version`, as git describe gives it")
	flags.StringVar(&r.commit, "commit", "", "the `commit`, in full")
	seconds := flags.Int64("time", 0, "time of the commit, in `seconds` since 1970")
	flags.BoolVar(&r.best, "best", false, "compress .ipk files with zopfli, a Debian package")
	key := flags.String("key", "", "`file` with an Ed25519 key (PKCS #8 PEM) that signs the manifest")
	verify := flags.String("verify", "", "only verify dist with this public key `file` (PEM)")
	last := flags.Int64("last", 0, "with -verify: the `sequence` installed now; anything older is refused")
	flags.Usage = func() {
		fmt.Fprintln(flags.Output(), "usage: pack [flags] PACKAGE:PROGRAM ...   such as cloudrest_mips_24kc.ipk:cloudrestd-linux-mips; luci-app-cloudrest_all.ipk:- has none")
		flags.PrintDefaults()
	}
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return err
	}
	if *verify != "" {
		m, err := verifyManifest(r.dist, *verify, *last)
		if err == nil {
			fmt.Fprintf(out, "pack: %s, sequence %d: the signature and %d files are right\n", m.Version, m.Sequence, len(m.Files))
		}
		return err
	}
	r.name = parseVersion(*text, *seconds)
	r.time = time.Unix(*seconds, 0).UTC()

	for i, arg := range flags.Args() {
		name, program, ok := strings.Cut(arg, ":")
		if !ok {
			return fmt.Errorf("%q: want PACKAGE:PROGRAM", arg)
		}
		if err := r.pack(name, filepath.Join(r.dist, program)); err != nil {
			return fmt.Errorf("make %s: %w", name, err)
		}
		st, err := os.Stat(filepath.Join(r.dist, name))
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "pack: %2d/%d %-42s %5.2f MB\n", i+1, flags.NArg(), name, float64(st.Size())/1e6)
	}
	return r.describe(*key, out)
}

// pack makes one package from one program; the name tells which.
func (r *release) pack(name, program string) error {
	base, arch, ok := strings.Cut(name, "_")
	if !ok {
		return errors.New("want NAME_ARCHITECTURE.KIND")
	}
	out := filepath.Join(r.dist, name)
	for _, k := range []struct {
		suffix string
		make   func(base, arch, program, out string) error
	}{
		{".ipk", r.ipk}, {".apk", r.apk}, {".deb", r.deb}, {".oci.tar", r.oci},
	} {
		if a, ok := strings.CutSuffix(arch, k.suffix); ok {
			return k.make(base, a, program, out)
		}
	}
	return errors.New("want .ipk, .apk, .deb or .oci.tar")
}
