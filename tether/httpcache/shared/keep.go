package shared

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/cloudrest/cloudrest/tether/httpcache"
)

// Keeper has answers outlive the process. Only those are offered that are for everybody, do
// not vary, and stay fresh for Config.KeepFrom.
type Keeper interface {
	// Note is told what there is now for a target on a host: s, or nil when what was noted
	// before does not hold any more. The cache is locked: Note only remembers.
	Note(host, uri string, s *Snapshot)
	// Forget returns when nothing that was noted for the targets meant can come back, not even
	// after a power cut. It is called before a write's answer is released, the cache not locked.
	Forget(meant func(uri string) bool)
}

// Snapshot is an answer that was noted. It is safe for concurrent use.
type Snapshot struct {
	e    *entry
	base time.Time
}

// Size is about how many bytes Append adds.
func (s *Snapshot) Size() int {
	return len(s.e.text) + len(s.e.body) + 64
}

// snapshotVersion begins each; others are not read.
const snapshotVersion = 2

// Append appends the answer in a form that Restore reads.
func (s *Snapshot) Append(b []byte) []byte {
	e := s.e
	b = append(b, snapshotVersion, byte(e.flags), e.fields)
	for _, n := range [...]int64{int64(e.status), s.base.Add(e.born).UnixMilli(), int64(e.lifetime), int64(e.swr), int64(e.sie)} {
		b = binary.AppendVarint(b, n)
	}
	for _, text := range [...]string{e.uri(), e.host(), e.block()} {
		b = binary.AppendUvarint(b, uint64(len(text)))
		b = append(b, text...)
	}
	b = binary.AppendUvarint(b, uint64(len(e.body)))
	return append(b, e.body...)
}

// ErrSnapshot means that stored bytes are no answer of ours.
var ErrSnapshot = errors.New("not a kept answer")

// ErrExpired means that a kept answer is of no use any more, or that the clock does not tell.
var ErrExpired = errors.New("kept answer is over")

// Restore puts a kept answer back into a space; it returns its host and target. An answer is
// only as old as the wall clock says, so without a right one there is none. Errors:
// ErrSnapshot, ErrExpired.
func (c *Cache) Restore(space string, data []byte) (host, uri string, err error) {
	e, born, err := parseSnapshot(data)
	if err != nil {
		return "", "", err
	}
	age := time.Since(born)
	if age < 0 || age >= e.lifetime || !httpcache.ClockRight(born) {
		return e.host(), e.uri(), ErrExpired
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.siteOf(space)
	defer c.tidy(s)
	e.site, e.born = s, c.now()-age
	if s.targets[e.uri()] != nil || !c.add(e, nil) {
		return e.host(), e.uri(), ErrExpired // something newer is there, or no room
	}
	return e.host(), e.uri(), nil
}

func parseSnapshot(data []byte) (e *entry, born time.Time, err error) {
	bad := func(what string) (*entry, time.Time, error) {
		return nil, time.Time{}, fmt.Errorf("%w: %s", ErrSnapshot, what)
	}
	if len(data) < 3 || data[0] != snapshotVersion {
		return bad("version")
	}
	e = &entry{flags: entryFlags(data[1]), fields: data[2]}
	data = data[3:]
	var n [5]int64
	for i := range n {
		v, k := binary.Varint(data)
		if k <= 0 {
			return bad("number")
		}
		n[i], data = v, data[k:]
	}
	var parts [4][]byte
	for i := range parts {
		v, k := binary.Uvarint(data)
		if k <= 0 || v > uint64(len(data)-k) {
			return bad("length")
		}
		parts[i], data = data[k:k+int(v)], data[k+int(v):]
	}
	if len(data) != 0 {
		return bad("more than an answer")
	}
	if n[0] < 200 || n[0] > 999 || n[2] < 0 || n[2] > int64(httpcache.MaxDelta*time.Second) || n[3] < 0 || n[3] > httpcache.MaxDelta || n[4] < 0 || n[4] > httpcache.MaxDelta {
		return bad("value")
	}
	if max(len(parts[0]), len(parts[1])) > maxPart {
		return bad("length")
	}
	e.status, e.lifetime, e.swr, e.sie = int16(n[0]), time.Duration(n[2]), uint32(n[3]), uint32(n[4])
	e.uris, e.hosts = uint16(len(parts[0])), uint16(len(parts[1]))
	e.text = string(parts[2]) + string(parts[0]) + string(parts[1])
	e.body = append([]byte(nil), parts[3]...)
	if !httpcache.Plain(e.uri()) {
		return bad("target")
	}
	fields := 0
	for b := e.block(); b != ""; fields++ {
		if !wholeField(b) {
			return bad("field")
		}
		_, _, b = cutField(b)
	}
	if fields != int(e.fields) {
		return bad("number of fields")
	}
	e.look()
	return e, time.UnixMilli(n[1]), nil
}

// noted tells the keeper what there is now for e's target. The cache is locked.
func (c *Cache) noted(e *entry, there bool) {
	k := c.conf.Keeper
	if k == nil || e.owners > 0 {
		return
	}
	host, uri := strings.Clone(e.host()), strings.Clone(e.uri())
	if there && e.vary == nil && e.flags&askFirst == 0 && e.lifetime-(c.now()-e.born) >= c.conf.KeepFrom {
		k.Note(host, uri, &Snapshot{e, c.base})
	} else {
		k.Note(host, uri, nil)
	}
}

// forget has the keeper forget; the cache is not locked.
func (c *Cache) forget(meant func(uri string) bool) {
	if c.conf.Keeper != nil {
		c.conf.Keeper.Forget(meant)
	}
}
