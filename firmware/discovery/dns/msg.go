package dns

import (
	"encoding/binary"
	"errors"
)

// Types of records (RFC 1035 §3.2.2, RFC 3596, RFC 2782, RFC 4034) and of questions.
const (
	TypeA    uint16 = 1
	TypePTR  uint16 = 12
	TypeTXT  uint16 = 16
	TypeAAAA uint16 = 28
	TypeSRV  uint16 = 33
	TypeNSEC uint16 = 47
	TypeANY  uint16 = 255
)

// Classes. Multicast DNS has a bit of its own in the top of the field (RFC 6762 §10.2, §5.4).
const (
	ClassINET = 1
	ClassANY  = 255
)

// Values of a header.
const (
	OpcodeQuery  = 0
	RcodeSuccess = 0
)

const (
	maxMessage = 65535 // bytes, as offsets and lengths are 16 bits
	headerLen  = 12

	// Questions and records of one message. Each can hold a name of 255 bytes by a pointer of
	// two: without a bound, one datagram would cost a small router 11 MB. A packet of 9000
	// bytes, the largest (RFC 6762 §17), holds 562 addresses.
	maxItems = 600
)

// Bits of a header's second field (RFC 1035 §4.1.1, RFC 4035 §3.1.6).
const (
	bitResponse           = 1 << 15
	bitAuthoritative      = 1 << 10
	bitTruncated          = 1 << 9
	bitRecursionDesired   = 1 << 8
	bitRecursionAvailable = 1 << 7
	bitZero               = 1 << 6
	bitAuthenticatedData  = 1 << 5
	bitCheckingDisabled   = 1 << 4
)

// Errors of Pack and Unpack.
var (
	ErrShort  = errors.New("dns: message ends early")
	ErrLong   = errors.New("dns: message of more than 65535 bytes")
	ErrName   = errors.New("dns: bad name")
	ErrRecord = errors.New("dns: bad record")
	ErrMany   = errors.New("dns: message of more than 600 questions and records")
)

// MsgHdr is the head of a message (RFC 1035 §4.1.1).
type MsgHdr struct {
	Id                 uint16
	Response           bool
	Opcode             int // 4 bits
	Authoritative      bool
	Truncated          bool
	RecursionDesired   bool
	RecursionAvailable bool
	Zero               bool
	AuthenticatedData  bool
	CheckingDisabled   bool
	Rcode              int // 4 bits
}

// Question asks for records.
type Question struct {
	Name   string
	Qtype  uint16
	Qclass uint16
}

// Msg is a message.
type Msg struct {
	MsgHdr
	Compress bool // write a name once, and point to it from then on (RFC 1035 §4.1.4)
	Question []Question
	Answer   []RR
	Ns       []RR
	Extra    []RR
}

// SetQuestion makes m a question with the id 0, as multicast wants it (RFC 6762 §18.1).
func (m *Msg) SetQuestion(name string, kind uint16) *Msg {
	m.Id, m.RecursionDesired = 0, true
	m.Question = []Question{{name, kind, ClassINET}}
	return m
}

// SetReply makes m an answer to q, with its first question.
func (m *Msg) SetReply(q *Msg) *Msg {
	m.Id, m.Response, m.Opcode, m.Rcode = q.Id, true, q.Opcode, RcodeSuccess
	if q.Opcode == OpcodeQuery {
		m.RecursionDesired, m.CheckingDisabled = q.RecursionDesired, q.CheckingDisabled
	}
	if len(q.Question) > 0 {
		m.Question = []Question{q.Question[0]}
	}
	return m
}

func (h *MsgHdr) flags() *[8]struct {
	at *bool
	is uint16
} {
	return &[8]struct {
		at *bool
		is uint16
	}{
		{&h.Response, bitResponse}, {&h.Authoritative, bitAuthoritative}, {&h.Truncated, bitTruncated},
		{&h.RecursionDesired, bitRecursionDesired}, {&h.RecursionAvailable, bitRecursionAvailable}, {&h.Zero, bitZero},
		{&h.AuthenticatedData, bitAuthenticatedData}, {&h.CheckingDisabled, bitCheckingDisabled},
	}
}

// Pack writes m. The error is ErrName, ErrRecord or ErrLong.
func (m *Msg) Pack() ([]byte, error) {
	w := writer{b: make([]byte, headerLen, 512)}
	if m.Compress {
		w.seen = map[string]int{}
	}
	bits := uint16(m.Opcode&0xF)<<11 | uint16(m.Rcode&0xF)
	for _, f := range m.flags() {
		if *f.at {
			bits |= f.is
		}
	}
	sections := [...][]RR{m.Answer, m.Ns, m.Extra}
	binary.BigEndian.PutUint16(w.b, m.Id)
	binary.BigEndian.PutUint16(w.b[2:], bits)
	binary.BigEndian.PutUint16(w.b[4:], uint16(len(m.Question)))
	for i, s := range sections {
		binary.BigEndian.PutUint16(w.b[6+2*i:], uint16(len(s)))
		if len(s) > maxMessage {
			return nil, ErrLong
		}
	}
	for _, q := range m.Question {
		w.name(q.Name, true)
		w.uint16(q.Qtype)
		w.uint16(q.Qclass)
	}
	for _, s := range sections {
		for _, rr := range s {
			h := rr.Header()
			w.name(h.Name, true)
			w.uint16(h.Rrtype)
			w.uint16(h.Class)
			w.uint16(uint16(h.Ttl >> 16))
			w.uint16(uint16(h.Ttl))
			w.uint16(0)
			start := len(w.b)
			rr.pack(&w)
			if len(w.b) > maxMessage {
				return nil, ErrLong
			}
			binary.BigEndian.PutUint16(w.b[start-2:], uint16(len(w.b)-start))
		}
	}
	if len(w.b) > maxMessage || len(m.Question) > maxMessage {
		w.err = ErrLong
	}
	if w.err != nil {
		return nil, w.err
	}
	return w.b, nil
}

// Unpack reads a message; what follows it in b is ignored. The records keep nothing of b.
// The error is ErrShort, ErrName, ErrRecord or ErrMany, and m is then good for nothing.
func (m *Msg) Unpack(b []byte) error {
	r := reader{msg: b, end: len(b)}
	*m = Msg{}
	m.Id = r.uint16()
	bits := r.uint16()
	m.Opcode, m.Rcode = int(bits>>11&0xF), int(bits&0xF)
	for _, f := range m.flags() {
		*f.at = bits&f.is != 0
	}
	questions := r.uint16()
	counts := [...]uint16{r.uint16(), r.uint16(), r.uint16()}
	if int(questions)+int(counts[0])+int(counts[1])+int(counts[2]) > maxItems {
		return ErrMany
	}
	for range questions {
		q := Question{r.name(), r.uint16(), r.uint16()}
		if r.err != nil {
			return r.err
		}
		m.Question = append(m.Question, q)
	}
	for i, section := range [...]*[]RR{&m.Answer, &m.Ns, &m.Extra} {
		for range counts[i] {
			rr := r.record()
			if r.err != nil {
				return r.err
			}
			*section = append(*section, rr)
		}
	}
	return r.err
}

// record reads one record.
func (r *reader) record() RR {
	h := RR_Header{Name: r.name(), Rrtype: r.uint16(), Class: r.uint16()}
	h.Ttl = uint32(r.uint16())<<16 | uint32(r.uint16())
	h.Rdlength = r.uint16()
	if r.end-r.off < int(h.Rdlength) {
		r.fail(ErrShort)
	}
	if r.err != nil {
		return nil
	}
	var rr RR
	switch h.Rrtype {
	case TypeA:
		rr = &A{Hdr: h}
	case TypeAAAA:
		rr = &AAAA{Hdr: h}
	case TypePTR:
		rr = &PTR{Hdr: h}
	case TypeSRV:
		rr = &SRV{Hdr: h}
	case TypeTXT:
		rr = &TXT{Hdr: h}
	case TypeNSEC:
		rr = &NSEC{Hdr: h}
	default:
		rr = &Other{Hdr: h}
	}
	if h.Rdlength == 0 {
		return rr // of an update (RFC 2136 §2.5); nobody sends one by multicast
	}
	data := reader{msg: r.msg, off: r.off, end: r.off + int(h.Rdlength)}
	rr.unpack(&data)
	if data.off != data.end {
		data.fail(ErrRecord)
	}
	r.off, r.err = data.end, data.err
	return rr
}
