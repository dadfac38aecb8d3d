package dns

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	other "github.com/miekg/dns"
)

// full is a message with all that Pack knows.
func full() *Msg {
	const host, name = "cloudrest-1a2b3c4d.local.", `My\ Garden\.\\\"\195\164\ 1a._cloudrest._tcp.local.`
	h := func(name string, kind uint16) RR_Header {
		return RR_Header{Name: name, Rrtype: kind, Class: ClassINET | 1<<15, Ttl: 1<<16 | 7}
	}
	return &Msg{
		MsgHdr:   MsgHdr{Id: 4711, Response: true, Opcode: 5, Authoritative: true, RecursionDesired: true, AuthenticatedData: true, Rcode: 3},
		Question: []Question{{name, TypeANY, ClassANY}, {host, TypeA, ClassINET | 1<<15}, {".", TypeNSEC, ClassINET}},
		Answer: []RR{
			&PTR{h("_cloudrest._tcp.local.", TypePTR), name},
			&SRV{h(name, TypeSRV), 1, 2, 8443, host},
			&TXT{h(name, TypeTXT), []string{"id=x", `quote=\" back=\\ byte=\001`, ""}},
			&TXT{h(host, TypeTXT), nil},
		},
		Ns:    []RR{&A{h(host, TypeA), net.IPv4(10, 0, 0, 1)}, &AAAA{h(host, TypeAAAA), net.ParseIP("fd00::1")}},
		Extra: []RR{&NSEC{h(host, TypeNSEC), host, []uint16{TypeA, TypeAAAA, TypeNSEC, 256, 300, 65535}}, &Other{h(host, 13), []byte{1, 'a', 1, 'b'}}},
	}
}

// wire sets what a reader sets, and drops the difference between the forms of an address.
func wire(m *Msg) *Msg {
	m.Compress = false
	for _, s := range [][]RR{m.Answer, m.Ns, m.Extra} {
		for _, rr := range s {
			rr.Header().Rdlength = 0
			switch rr := rr.(type) {
			case *A:
				rr.A = rr.A.To4()
			case *TXT:
				if len(rr.Txt) == 0 {
					rr.Txt = []string{""}
				}
			}
		}
	}
	return m
}

func TestPackAndUnpack(t *testing.T) {
	for _, compress := range []bool{false, true} {
		m := full()
		m.Compress = compress
		b, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		var got Msg
		if err := got.Unpack(b); err != nil {
			t.Fatal(err)
		}
		if want := wire(full()); !reflect.DeepEqual(wire(&got), want) {
			t.Errorf("compress %v: read back = %+v, want %+v", compress, got, want)
		}
		var o other.Msg
		if err := o.Unpack(b); err != nil {
			t.Fatalf("compress %v: another implementation: %v", compress, err)
		}
		o.Compress = compress
		again, err := o.Pack()
		if err != nil || !bytes.Equal(again, b) {
			t.Errorf("compress %v: another implementation writes %x, %v, want %x", compress, again, err, b)
		}
	}
}

func TestUnpackDomainName(t *testing.T) {
	const long = 63
	label := strings.Repeat("a", long)
	four := strings.Repeat(string(rune(long))+label, 3) // 192 bytes
	tests := []struct {
		name string
		msg  string
		off  int
		want string
		next int
		err  error
	}{
		{"§3.1 root", "\x00", 0, ".", 1, nil},
		{"§3.1 labels", "\x01a\x02bc\x00!", 0, "a.bc.", 6, nil},
		{"§4.1.4 pointer", "\x01a\x00\x01b\xC0\x00!", 3, "b.a.", 7, nil},
		{"§4.1.4 pointer to a pointer", "\x01a\x00\xC0\x00\xC0\x03", 5, "a.", 7, nil},
		{"§4.1.4 pointer to itself", "\xC0\x00", 0, "", 2, ErrName},
		{"§4.1.4 pointer ahead", "\xC0\x02\x00", 0, "", 3, ErrName},
		{"§4.1.4 loop of two", "\xC0\x02\xC0\x00", 2, "", 4, ErrName},
		{"§4.1.4 pointer into itself", "\x01a\xC0\x00", 0, "", 4, ErrName},
		{"§4.1.4 reserved", "\x40a\x00", 0, "", 3, ErrName},
		{"§4.1.4 half a pointer", "\x00\xC0", 1, "", 2, ErrShort},
		{"ends in a label", "\x02a", 0, "", 2, ErrShort},
		{"ends before the root", "\x01a", 0, "", 2, ErrShort},
		{"begins behind the end", "\x00", 1, "", 1, ErrShort},
		{"§2.3.4 255 bytes", four + "\x3d" + label[:61] + "\x00", 0, strings.Repeat(label+".", 3) + label[:61] + ".", 255, nil},
		{"§2.3.4 256 bytes", four + "\x3e" + label[:62] + "\x00", 0, "", 256, ErrName},
		{"§5.1 escapes", "\x05.\\ \xff\x01\x00", 0, `\.\\\ \255\001.`, 7, nil},
	}
	for _, test := range tests {
		got, next, err := UnpackDomainName([]byte(test.msg), test.off)
		if got != test.want || next != test.next || !errors.Is(err, test.err) {
			t.Errorf("%s: %q, %d, %v, want %q, %d, %v", test.name, got, next, err, test.want, test.next, test.err)
		}
	}
}

func TestPackRefuses(t *testing.T) {
	rr := func(rr RR, name string) *Msg {
		rr.Header().Name = name
		return &Msg{Answer: []RR{rr}}
	}
	long := strings.Repeat("a", 64)
	many := make([]RR, 5000)
	for i := range many {
		many[i] = &TXT{RR_Header{Name: "."}, []string{"abc"}}
	}
	tests := []struct {
		name string
		m    *Msg
		err  error
	}{
		{"relative", rr(&PTR{Ptr: "b."}, "a"), ErrName},
		{"relative, escaped dot", rr(&PTR{Ptr: "b."}, `a\.`), ErrName},
		{"empty", rr(&PTR{Ptr: "b."}, ""), ErrName},
		{"empty label", rr(&PTR{Ptr: "b."}, "a..b."), ErrName},
		{"leading dot", rr(&PTR{Ptr: "b."}, ".a."), ErrName},
		{"label of 64", rr(&PTR{Ptr: "b."}, long+"."), ErrName},
		{"name of 256", rr(&PTR{Ptr: "b."}, strings.Repeat(long[1:]+".", 3)+long[2:]+"."), ErrName},
		{"data", rr(&PTR{Ptr: "b"}, "a."), ErrName},
		{"text of 256", rr(&TXT{Txt: []string{strings.Repeat("a", 256)}}, "a."), ErrRecord},
		{"no address", rr(&A{}, "a."), ErrRecord},
		{"IPv6 in A", rr(&A{A: net.ParseIP("fd00::1")}, "a."), ErrRecord},
		{"IPv4 in AAAA", rr(&AAAA{AAAA: net.IP{10, 0, 0, 1}}, "a."), ErrRecord},
		{"types out of order", rr(&NSEC{NextDomain: "a.", TypeBitMap: []uint16{TypeAAAA, TypeA}}, "a."), ErrRecord},
		{"too long", &Msg{Answer: many}, ErrLong},
	}
	for _, test := range tests {
		if b, err := test.m.Pack(); !errors.Is(err, test.err) || b != nil {
			t.Errorf("%s: %d bytes, %v, want none, %v", test.name, len(b), err, test.err)
		}
	}
}

func TestUnpackRefuses(t *testing.T) {
	head := func(counts ...uint16) string {
		b := make([]byte, 4, headerLen)
		for _, n := range counts {
			b = binary.BigEndian.AppendUint16(b, n)
		}
		return string(b)
	}
	const a = "\x00\x00\x01\x00\x01\x00\x00\x00\x78\x00\x04\x0a\x00\x00\x01"
	tests := []struct {
		name string
		msg  string
		err  error
	}{
		{"nothing", "", ErrShort},
		{"half a header", head(0, 0)[:7], ErrShort},
		{"only a header", head(0, 0, 0, 0), nil},
		{"more behind", head(0, 1, 0, 0) + a + "!", nil},
		{"fewer records than counted", head(0, 2, 0, 0) + a, ErrShort},
		{"fewer questions than counted", head(1, 0, 0, 0), ErrShort},
		{"601 counted", head(1, 200, 200, 200), ErrMany},
		{"600 counted", head(0, 200, 200, 200), ErrShort},
		{"data behind the end", head(0, 1, 0, 0) + a[:14], ErrShort},
		{"address of 3 bytes", head(0, 1, 0, 0) + a[:10] + "\x03\x0a\x00\x00", ErrShort},
		{"address of 5 bytes", head(0, 1, 0, 0) + a[:10] + "\x05\x0a\x00\x00\x01\x02", ErrRecord},
		{"name longer than its data", head(0, 1, 0, 0) + "\x00\x00\x0c" + a[3:9] + "\x00\x02\x01a\x00", ErrShort},
		{"string longer than its data", head(0, 1, 0, 0) + "\x00\x00\x10" + a[3:9] + "\x00\x02\x02ab", ErrShort},
		{"no data (RFC 2136)", head(0, 1, 0, 0) + a[:9] + "\x00\x00", nil},
		{"bitmap of no bytes", head(0, 1, 0, 0) + "\x00\x00\x2f" + a[3:9] + "\x00\x03\x00\x00\x00", ErrRecord},
		{"windows out of order", head(0, 1, 0, 0) + "\x00\x00\x2f" + a[3:9] + "\x00\x07\x00\x01\x01\x80\x00\x01\x80", ErrRecord},
	}
	for _, test := range tests {
		if err := new(Msg).Unpack([]byte(test.msg)); !errors.Is(err, test.err) {
			t.Errorf("%s: %v, want %v", test.name, err, test.err)
		}
	}
}

func TestIsDuplicate(t *testing.T) {
	same, other := full(), full()
	for i, rr := range same.Extra {
		if j := other.Extra[i]; !IsDuplicate(rr, j) {
			t.Errorf("%+v and %+v differ, want the same", rr, j)
		}
	}
	for i, a := range same.Answer {
		for j, b := range other.Answer {
			b.Header().Ttl, b.Header().Name = 1, strings.ToUpper(b.Header().Name)
			if got := IsDuplicate(a, b); got != (i == j) {
				t.Errorf("%+v and %+v are the same: %v, want %v", a, b, got, i == j)
			}
		}
	}
	if a, b := same.Ns[0], other.Ns[0].(*A); !IsDuplicate(a, b) {
		t.Errorf("%v and %v differ", a, b)
	} else if b.A = net.IPv4(10, 0, 0, 2); IsDuplicate(a, b) {
		t.Errorf("%v and %v are the same", a, b)
	}
}

// FuzzUnpack reads what strangers on the LAN send. What another implementation reads in the
// same bytes, if it accepts them too, must be the same; and what was read can be written.
func FuzzUnpack(f *testing.F) {
	for _, compress := range []bool{false, true} {
		m := full()
		m.Compress = compress
		b, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte("\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\xc0\x0c\x00\x0c\x00\x01"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var m Msg
		if m.Unpack(b) != nil {
			return
		}
		for _, s := range [][]RR{m.Answer, m.Ns, m.Extra} {
			for _, rr := range s {
				if _, ok := rr.(*Other); !ok && rr.Header().Rdlength == 0 {
					return // cannot be written
				}
			}
		}
		packed, err := m.Pack()
		if err != nil {
			if errors.Is(err, ErrLong) {
				return // without pointers
			}
			t.Fatalf("write %+v: %v", m, err)
		}
		var again Msg
		if err := again.Unpack(packed); err != nil || !reflect.DeepEqual(wire(&again), wire(&m)) {
			t.Fatalf("read back = %+v, %v, want %+v", again, err, m)
		}
		var o, o2 other.Msg
		if o.Unpack(b) != nil || o2.Unpack(packed) != nil {
			return // it knows more types, and refuses what is wrong in those
		}
		if got, want := o2.String(), o.String(); got != want {
			t.Errorf("another implementation reads\n%s\nwant\n%s", got, want)
		}
	})
}

// TestZeroconf builds github.com/grandcat/zeroconf on this package, as build.sh does for MIPS,
// and lets that announce and browse among real ones.
func TestZeroconf(t *testing.T) {
	const root = "../../.."
	dir := t.TempDir()
	mod, overlay := filepath.Join(dir, "go.mod"), filepath.Join(dir, "overlay.json")
	for _, name := range []string{"go.mod", "go.sum"} {
		b, err := os.ReadFile(filepath.Join(root, name))
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	goTool := func(args ...string) string {
		c := exec.CommandContext(t.Context(), "go", args...)
		c.Dir = root
		out, err := c.CombinedOutput()
		if err != nil {
			t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, out)
		}
		return string(out)
	}
	goTool("mod", "edit", "-replace=github.com/miekg/dns=./firmware/discovery/dns/zeroconf", mod)
	files := goTool("list", "-modfile="+mod, "-deps", "-f", "{{.Dir}} {{.GoFiles}}", "github.com/grandcat/zeroconf")
	if !strings.Contains(files, filepath.FromSlash("dns/zeroconf")+" [dns.go]") || strings.Contains(files, "miekg") {
		t.Errorf("zeroconf is built on\n%s\nwant the folder zeroconf", files)
	}

	// These tests need the package that is replaced.
	replace := map[string]string{}
	for _, name := range []string{"own_test.go", "cache_test.go"} {
		path, err := filepath.Abs(filepath.Join("../dnssd", name))
		if err != nil {
			t.Fatal(err)
		}
		replace[path] = ""
	}
	b, err := json.Marshal(map[string]any{"Replace": replace})
	if err == nil {
		err = os.WriteFile(overlay, b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	out := goTool("test", "-v", "-count=1", "-timeout=3m", "-modfile="+mod, "-overlay="+overlay,
		"-run=^(TestAvahiSeesTheDevice|TestNameIsDefended|TestBrowseSeesAvahi|TestTextOverTheWire|TestHardenFindsTheSockets)$", "./firmware/discovery/dnssd")
	t.Logf("%s", out)
	if !strings.Contains(out, "--- PASS: TestTextOverTheWire") {
		t.Error("the tests of dnssd did not run")
	}
}
