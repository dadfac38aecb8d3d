package store

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"go.etcd.io/bbolt"
)

// filled makes a store with a journal of n records and returns its database file.
func filled(t *testing.T, n int) []byte {
	t.Helper()
	s := mustOpen(t, Config{Dir: t.TempDir()})
	j, err := s.Journal("events", Limits{Entries: n, Bytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	for pos := range uint64(n) {
		if pos%20 == 0 {
			var recs [][]byte
			for i := range uint64(20) {
				recs = append(recs, record(pos+i))
			}
			if _, err := j.Append(recs, pos/2); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := s.Bucket("b").Put("k", []byte("v")); err != nil {
		t.Fatal(err)
	}
	mustClose(t, s)
	return mustCopy(t, filepath.Join(s.cfg.Dir, fileName))
}

// works does on a store what a daemon does, twice, since the first time may find the damage.
func works(t *testing.T, c Config) (damaged int64) {
	t.Helper()
	s, err := Open(c)
	if err != nil {
		t.Fatalf("Open = %v, want a store", err)
	}
	defer s.Close()
	use := func() error {
		j, err := s.Journal("events", Limits{Entries: 100, Bytes: 1 << 20})
		if err != nil {
			return err
		}
		if _, err := j.Append([][]byte{[]byte("new")}, 0); err != nil {
			return err
		}
		st := j.State()
		recs, _, _, err := j.Read(nil, st.Next-1, 10, 1<<20)
		if err == nil && (len(recs) != 1 || string(recs[0].Data) != "new") {
			t.Errorf("Read after Append = %v", recs)
		}
		if _, _, _, err := j.Read(nil, 0, 1000, 1<<20); err != nil {
			return err
		}
		return err
	}
	for try := 0; ; try++ {
		err := use()
		if err == nil {
			return s.Status().Damaged
		}
		if !errors.Is(err, ErrDamaged) || try == maxReplaced {
			t.Fatalf("use = %v", err)
		}
	}
}

// A file cut at any page, or in the middle of one, never stops the daemon.
func TestCutFile(t *testing.T) {
	whole := filled(t, 400)
	aside := 0
	for _, cut := range []int{0, 1000} {
		for at := 0; at < min(len(whole), 64*os.Getpagesize()); at += os.Getpagesize() { // what lies behind was never used
			dir := t.TempDir()
			path := filepath.Join(dir, fileName)
			if err := os.WriteFile(path, whole[:min(at+cut, len(whole))], 0o600); err != nil {
				t.Fatal(err)
			}
			if works(t, Config{Dir: dir}) > 0 {
				aside++
				if _, err := os.Stat(path + asideSuffix); err != nil {
					t.Errorf("cut at %d: %v, want the damaged file beside", at+cut, err)
				}
			}
		}
	}
	if aside == 0 {
		t.Error("no cut was ever noticed")
	}
}

// Bytes changed anywhere, whole pages of zeros or noise: the same.
func TestNoise(t *testing.T) {
	whole := filled(t, 400)
	rng := rand.New(rand.NewPCG(1, 2))
	aside := int64(0)
	for trial := range 150 {
		b := bytes.Clone(whole)
		switch trial % 3 {
		case 0:
			for range 1 + rng.IntN(20) {
				b[rng.IntN(len(b))] ^= byte(1 + rng.IntN(255))
			}
		case 1: // in the heads of pages, where the structure is
			for range 1 + rng.IntN(4) {
				b[rng.IntN(len(b)/os.Getpagesize())*os.Getpagesize()+rng.IntN(64)] ^= byte(1 + rng.IntN(255))
			}
		case 2:
			at := rng.IntN(len(b)/os.Getpagesize()) * os.Getpagesize()
			for i := range os.Getpagesize() {
				b[at+i] = byte(rng.Uint32()) * byte(trial%2)
			}
		}
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, fileName), b, 0o600); err != nil {
			t.Fatal(err)
		}
		aside += works(t, Config{Dir: dir})
	}
	if aside == 0 {
		t.Error("no damage was ever noticed")
	}
}

// The file is cut off below a running store: reads beyond the end fault, and it begins anew. Positions
// go on, so that a listener's cursor stays meaningful.
func TestDamageWhileRunning(t *testing.T) {
	s := mustOpen(t, Config{Dir: t.TempDir()})
	j, err := s.Journal("events", Limits{Entries: 1000, Bytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		if _, err := j.Append([][]byte{make([]byte, 5000), make([]byte, 5000)}, 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Truncate(s.path, int64(2*os.Getpagesize())); err != nil {
		t.Fatal(err)
	}
	if _, _, _, err := j.Read(nil, 0, 1000, 1<<20); !errors.Is(err, ErrDamaged) {
		t.Errorf("Read = %v, want ErrDamaged", err)
	}
	st, err := j.Append([][]byte{[]byte("new")}, 0)
	if err != nil || st.Next != 41 || st.First != 40 || st.Entries != 1 {
		t.Errorf("Append = %+v, %v, want the only record at 40", st, err)
	}
	recs, next, lost, err := j.Read(nil, 7, 10, 1<<20)
	if err != nil || len(recs) != 1 || recs[0].Pos != 40 || next != 41 || !lost {
		t.Errorf("Read = %v, %d, %v, %v, want the record 40 and lost", recs, next, lost, err)
	}
	if got := s.Status().Damaged; got != 1 {
		t.Errorf("damaged = %d, want 1", got)
	}
}

// A snapshot cut at any length or with any byte changed is moved aside, and the state is empty, never half.
func TestDamagedSnapshot(t *testing.T) {
	c := Config{Dir: t.TempDir(), VolatileDir: filepath.Join(t.TempDir(), "v"), Volatile: true}
	s := mustOpen(t, c)
	if err := s.Bucket("b").Change(map[string][]byte{"k": []byte("v"), "l": []byte("w")}); err != nil {
		t.Fatal(err)
	}
	mustClose(t, s)
	whole := mustCopy(t, s.snapshotPath())
	try := func(what string, at int, b []byte) {
		t.Helper()
		os.RemoveAll(c.VolatileDir)
		if err := os.WriteFile(s.snapshotPath(), b, 0o600); err != nil {
			t.Fatal(err)
		}
		again := mustOpen(t, c)
		all, err := again.Bucket("b").All()
		if err != nil || len(all) != 0 || again.Status().Damaged != 1 {
			t.Errorf("%s at %d: %q, %v, damaged %d, want nothing and 1", what, at, all, err, again.Status().Damaged)
		}
		mustClose(t, again)
		if !bytes.Equal(mustCopy(t, s.snapshotPath()+asideSuffix), b) {
			t.Errorf("%s at %d: the damaged snapshot is not beside", what, at)
		}
	}
	for at := 0; at < len(whole); at += 7 {
		try("cut", at, whole[:at])
		b := bytes.Clone(whole)
		b[at] ^= 1
		try("changed", at, b)
	}
	try("longer", 0, append(bytes.Clone(whole), 0))
	os.RemoveAll(c.VolatileDir)
	if err := os.WriteFile(s.snapshotPath(), whole, 0o600); err != nil {
		t.Fatal(err)
	}
	if all, err := mustOpen(t, c).Bucket("b").All(); err != nil || len(all) != 2 {
		t.Errorf("the whole one: %q, %v, want two values", all, err)
	}
}

// Whatever the bytes are, a snapshot is read to its end or refused; what is read is written the
// same way.
func FuzzSnapshot(f *testing.F) {
	f.Add([]byte("B\x01bK\x01k\x01vE"))
	f.Add([]byte("B\x01bK\x01k\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01E"))
	f.Add([]byte("K\x01k\x01vE"))
	f.Add([]byte("B\x01bE"))
	f.Fuzz(func(t *testing.T, body []byte) {
		sum := sha256.Sum256(append([]byte(snapshotMagic), body...))
		whole := append(append([]byte(snapshotMagic), body...), sum[:]...)
		pairs := 0
		err := parseSnapshot(whole, func(name []byte) error { return nil }, func(k, v []byte) error { pairs++; return nil })
		if err != nil && !errors.Is(err, errSnapshot) {
			t.Errorf("%v, want errSnapshot", err)
		}
		if err == nil && pairs*3 > len(body) {
			t.Errorf("%d pairs from %d bytes", pairs, len(body))
		}
	})
}

// bbolt's own check of a file, for tests that end a process the hard way.
func bboltCheck(t *testing.T, path string) {
	t.Helper()
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.View(func(tx *bbolt.Tx) error {
		for err := range tx.Check() {
			t.Errorf("bbolt check: %v", err)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// The kinds of damage that would make bbolt loop, exhaust memory or fault are found before it sees the file.
func TestCheckFile(t *testing.T) {
	page := os.Getpagesize()
	whole := filled(t, 400)
	if err := checkPages(bytes.NewReader(whole), int64(len(whole))); err != nil {
		t.Fatalf("a good file: %v", err)
	}
	newest := 0
	if order.Uint64(whole[page+pageHeader+metaTx:]) > order.Uint64(whole[pageHeader+metaTx:]) {
		newest = page
	}
	meta := whole[newest+pageHeader:]
	freelist, pages := int(order.Uint64(meta[metaFreelist:]))*page, int(order.Uint64(meta[metaPages:]))
	free := map[int]bool{}
	for i := range int(order.Uint16(whole[freelist+10:])) {
		free[int(order.Uint64(whole[freelist+pageHeader+8*i:]))] = true
	}
	refused := func(what string, change func(b []byte)) {
		t.Helper()
		b := bytes.Clone(whole)
		change(b)
		if err := checkPages(bytes.NewReader(b), int64(len(b))); err == nil {
			t.Errorf("%s: not refused", what)
		}
	}
	branches := 0
	for id := 2; id < pages; id++ {
		if free[id] {
			continue
		}
		at := id * page
		refused("overflow", func(b []byte) { order.PutUint32(b[at+12:], 1<<32-1) })
		refused("wrong id", func(b []byte) { order.PutUint64(b[at:], uint64(id+1)) })
		refused("unknown flags", func(b []byte) { order.PutUint16(b[at+8:], 0x40) })
		refused("listed as free", func(b []byte) { order.PutUint64(b[freelist+pageHeader:], uint64(id)) })
		if at != freelist {
			refused("too many elements", func(b []byte) { order.PutUint16(b[at+10:], 0xfffe) })
		}
		if order.Uint16(whole[at+8:]) == branchPage {
			branches++
			refused("branch to itself", func(b []byte) { order.PutUint64(b[at+pageHeader+8:], uint64(id)) })
			refused("branch out of the file", func(b []byte) { order.PutUint64(b[at+pageHeader+8:], 1<<40) })
		}
		if order.Uint16(whole[at+8:]) == leafPage {
			refused("endless value", func(b []byte) { order.PutUint32(b[at+pageHeader+12:], 1<<31) })
			refused("value elsewhere", func(b []byte) { order.PutUint32(b[at+pageHeader+4:], 1<<20) })
		}
	}
	if branches == 0 {
		t.Error("the file has no branch page to try")
	}
	refused("endless freelist", func(b []byte) {
		order.PutUint16(b[freelist+10:], manyFree)
		order.PutUint64(b[freelist+pageHeader:], 1<<36)
	})
	refused("free page beyond the end", func(b []byte) { order.PutUint64(b[freelist+pageHeader:], 1<<20) })
	if err := checkPages(bytes.NewReader(whole[:(pages-1)*page]), int64((pages-1)*page)); err == nil {
		t.Error("a file that ends too early: not refused")
	}
	// A torn write of the newer meta page, by a power cut, is not damage: the older one counts.
	b := bytes.Clone(whole)
	b[newest+pageHeader+metaTx] ^= 1
	if err := checkPages(bytes.NewReader(b), int64(len(b))); err != nil {
		t.Errorf("torn meta page: %v, want the older one used", err)
	}
	dir := t.TempDir()
	copy(b, whole)
	order.PutUint32(b[freelist+12:], 1<<31)
	if err := os.WriteFile(filepath.Join(dir, fileName), b, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := works(t, Config{Dir: dir}); got != 1 {
		t.Errorf("damaged = %d, want 1", got)
	}
}

// Whatever the bytes are, checking ends and stays within bounds.
func FuzzCheck(f *testing.F) {
	dir := f.TempDir()
	s, err := Open(Config{Dir: dir})
	if err != nil {
		f.Fatal(err)
	}
	if err := s.Bucket("b").Put("k", []byte("v")); err != nil {
		f.Fatal(err)
	}
	if err := s.Close(); err != nil {
		f.Fatal(err)
	}
	whole, err := os.ReadFile(s.path)
	if err != nil {
		f.Fatal(err)
	}
	if err := checkPages(bytes.NewReader(whole), int64(len(whole))); err != nil {
		f.Fatal(err)
	}
	f.Add(uint32(0), []byte{1})
	f.Add(uint32(2*os.Getpagesize()+8), []byte{2, 0, 0xff, 0xff, 1})
	f.Add(uint32(3*os.Getpagesize()), []byte{3})
	f.Fuzz(func(t *testing.T, at uint32, change []byte) {
		b := bytes.Clone(whole[:16*os.Getpagesize()])
		copy(b[int(at)%len(b):], change)
		_ = checkPages(bytes.NewReader(b), int64(len(b)))
	})
}
