package dns

import (
	"net"
	"slices"
	"strings"
)

// RR is a resource record.
type RR interface {
	// Header returns the record's own header, not a copy.
	Header() *RR_Header

	pack(*writer)
	unpack(*reader)
	same(RR) bool // rdata
}

// RR_Header is what all records have. Rdlength is set by Unpack only.
type RR_Header struct {
	Name     string
	Rrtype   uint16
	Class    uint16
	Ttl      uint32 // seconds
	Rdlength uint16 // bytes
}

// A is the IPv4 address of a host (RFC 1035 §3.4.1).
type A struct {
	Hdr RR_Header
	A   net.IP
}

// AAAA is the IPv6 address of a host (RFC 3596 §2.2).
type AAAA struct {
	Hdr  RR_Header
	AAAA net.IP
}

// PTR points to a service instance (RFC 6763 §4.1).
type PTR struct {
	Hdr RR_Header
	Ptr string
}

// SRV tells host and port of a service instance (RFC 2782).
type SRV struct {
	Hdr      RR_Header
	Priority uint16
	Weight   uint16
	Port     uint16
	Target   string
}

// TXT describes a service instance (RFC 6763 §6). No string at all is written as an empty one.
type TXT struct {
	Hdr RR_Header
	Txt []string
}

// NSEC tells which types of records a name has (RFC 6762 §6.1).
type NSEC struct {
	Hdr        RR_Header
	NextDomain string
	TypeBitMap []uint16 // ascending
}

// Other is a record of another type.
type Other struct {
	Hdr  RR_Header
	Data []byte
}

func (rr *A) Header() *RR_Header     { return &rr.Hdr }
func (rr *AAAA) Header() *RR_Header  { return &rr.Hdr }
func (rr *PTR) Header() *RR_Header   { return &rr.Hdr }
func (rr *SRV) Header() *RR_Header   { return &rr.Hdr }
func (rr *TXT) Header() *RR_Header   { return &rr.Hdr }
func (rr *NSEC) Header() *RR_Header  { return &rr.Hdr }
func (rr *Other) Header() *RR_Header { return &rr.Hdr }

// IsDuplicate reports whether two records are equal but for their lifetimes. Names are
// compared without case.
func IsDuplicate(a, b RR) bool {
	x, y := a.Header(), b.Header()
	return x.Rrtype == y.Rrtype && x.Class == y.Class && strings.EqualFold(x.Name, y.Name) && a.same(b)
}

func (rr *A) pack(w *writer) {
	ip := rr.A.To4()
	if ip == nil {
		w.fail(ErrRecord)
	}
	w.b = append(w.b, ip...)
}
func (rr *A) unpack(r *reader) { rr.A = r.bytes(net.IPv4len) }
func (rr *A) same(o RR) bool   { b, ok := o.(*A); return ok && rr.A.Equal(b.A) }

func (rr *AAAA) pack(w *writer) {
	if len(rr.AAAA) != net.IPv6len {
		w.fail(ErrRecord)
	}
	w.b = append(w.b, rr.AAAA...)
}
func (rr *AAAA) unpack(r *reader) { rr.AAAA = r.bytes(net.IPv6len) }
func (rr *AAAA) same(o RR) bool   { b, ok := o.(*AAAA); return ok && rr.AAAA.Equal(b.AAAA) }

func (rr *PTR) pack(w *writer)   { w.name(rr.Ptr, true) }
func (rr *PTR) unpack(r *reader) { rr.Ptr = r.name() }
func (rr *PTR) same(o RR) bool   { b, ok := o.(*PTR); return ok && strings.EqualFold(rr.Ptr, b.Ptr) }

func (rr *SRV) pack(w *writer) {
	w.uint16(rr.Priority)
	w.uint16(rr.Weight)
	w.uint16(rr.Port)
	w.name(rr.Target, false) // RFC 2782; legacy resolvers read it too
}
func (rr *SRV) unpack(r *reader) {
	rr.Priority, rr.Weight, rr.Port = r.uint16(), r.uint16(), r.uint16()
	rr.Target = r.name()
}
func (rr *SRV) same(o RR) bool {
	b, ok := o.(*SRV)
	return ok && rr.Priority == b.Priority && rr.Weight == b.Weight && rr.Port == b.Port && strings.EqualFold(rr.Target, b.Target)
}

func (rr *TXT) pack(w *writer) {
	for _, s := range rr.Txt {
		w.text(s)
	}
	if len(rr.Txt) == 0 {
		w.b = append(w.b, 0)
	}
}
func (rr *TXT) unpack(r *reader) {
	for r.err == nil && r.off < r.end {
		rr.Txt = append(rr.Txt, r.text())
	}
}
func (rr *TXT) same(o RR) bool { b, ok := o.(*TXT); return ok && slices.Equal(rr.Txt, b.Txt) }

// The types are in windows of 256, each with a bitmap as long as it must be (RFC 4034 §4.1.2).
func (rr *NSEC) pack(w *writer) {
	w.name(rr.NextDomain, false)
	window, start := -1, 0
	for i, t := range rr.TypeBitMap {
		if i > 0 && t <= rr.TypeBitMap[i-1] {
			w.fail(ErrRecord)
			return
		}
		if int(t>>8) != window {
			window, start = int(t>>8), len(w.b)+2
			w.b = append(w.b, byte(window), 0)
		}
		for len(w.b)-start <= int(t&0xFF)/8 {
			w.b = append(w.b, 0)
		}
		w.b[len(w.b)-1] |= 0x80 >> (t % 8)
		w.b[start-1] = byte(len(w.b) - start)
	}
}
func (rr *NSEC) unpack(r *reader) {
	rr.NextDomain = r.name()
	for last := -1; r.err == nil && r.off < r.end; {
		head := r.bytes(2)
		if r.err != nil {
			return
		}
		window, n := int(head[0]), int(head[1])
		if window <= last || n == 0 || n > 32 {
			r.fail(ErrRecord)
		}
		last = window
		for i, b := range r.bytes(n) {
			for bit := range 8 {
				if b&(0x80>>bit) != 0 {
					rr.TypeBitMap = append(rr.TypeBitMap, uint16(window<<8|i*8|bit))
				}
			}
		}
	}
}
func (rr *NSEC) same(o RR) bool {
	b, ok := o.(*NSEC)
	return ok && strings.EqualFold(rr.NextDomain, b.NextDomain) && slices.Equal(rr.TypeBitMap, b.TypeBitMap)
}

func (rr *Other) pack(w *writer)   { w.b = append(w.b, rr.Data...) }
func (rr *Other) unpack(r *reader) { rr.Data = r.bytes(r.end - r.off) }
func (rr *Other) same(o RR) bool   { b, ok := o.(*Other); return ok && slices.Equal(rr.Data, b.Data) }
