package pairing

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// Role is what a client may do.
type Role string

// The roles, from most to least.
const (
	Owner  Role = "owner"  // use the service and manage who else may
	Member Role = "member" // use the service, open a window with confirmation, see itself
	Guest  Role = "guest"  // GET and HEAD
)

// rank orders roles; 0 is none.
func (r Role) rank() int {
	switch r {
	case Owner:
		return 3
	case Member:
		return 2
	case Guest:
		return 1
	}
	return 0
}

// lesser is the role with fewer rights.
func lesser(a, b Role) Role {
	if a.rank() < b.rank() {
		return a
	}
	return b
}

// Ways a client can come to its token, the field "way".
const (
	WayButton     = "button"
	WayFirstStart = "first-start"
	WayCLI        = "cli"
	WayClient     = "client"
	WayInvitation = "invitation"
	WayLabel      = "label"
)

// Bounds of clients.
const (
	MaxClients = 64
	MaxName    = 64 // bytes of UTF-8

	tokenPrefix = "crp_"
	tokenBytes  = 32 // 256 random bits
	tokenLength = len(tokenPrefix) + (tokenBytes*8+5)/6
	idBytes     = 8
)

// Client is a program that has paired.
type Client struct {
	ID       string // 16 hex digits; a name, no secret
	Name     string // as the client gave it, cleaned; several may have the same
	Role     Role
	Created  time.Time
	Expires  time.Time // zero: never
	LastUsed time.Time // zero: never used; on flash up to 15 minutes behind
	Code     string    // the comparison code of its pairing
	Way      string    // one of the Way constants
}

// record is a client in memory. It does not change except for last: a change of the rest makes a new one.
type record struct {
	Client
	hash [sha256.Size]byte // of the token
	last *atomic.Int64     // Unix seconds of the last use; 0: never
	// life ends when the client is revoked, or gets another role or end, and with it every exchange that is under
	// way for it. A context, because that is what those wait for.
	life context.Context
	end  context.CancelFunc

	savedLast int64 // what the store has; guarded by Pairing.mu
}

func newRecord(c Client, hash [sha256.Size]byte) *record {
	r := &record{Client: c, hash: hash, last: new(atomic.Int64)}
	if !c.LastUsed.IsZero() {
		r.last.Store(c.LastUsed.Unix())
		r.savedLast = c.LastUsed.Unix()
	}
	r.life, r.end = context.WithCancel(context.Background())
	return r
}

// client is what others may see of r, with the last use as it is now.
func (r *record) client() Client {
	c := r.Client
	c.LastUsed = unixTime(r.last.Load())
	return c
}

// clockSlack is how far a clock may lie behind the moment of pairing before it counts as not set.
const clockSlack = time.Hour

// expired reports whether the time is over. A clock that is before the pairing is one that was never set (a board
// without a battery starts in 1970): what should expire is not let in until the time is known.
func (r *record) expired(now time.Time) bool {
	return !r.Expires.IsZero() && (!now.Before(r.Expires) || now.Before(r.Created.Add(-clockSlack)))
}

// table finds clients by the hash of their token. It is replaced as a whole, so that reading takes no lock.
type table map[[sha256.Size]byte]*record

// find returns the client of a token, or nil.
func (t table) find(token string) *record {
	if len(token) != tokenLength || !strings.HasPrefix(token, tokenPrefix) {
		return nil
	}
	sum := sha256.Sum256([]byte(token))
	r := t[sum]
	if r == nil || subtle.ConstantTimeCompare(r.hash[:], sum[:]) != 1 {
		return nil
	}
	return r
}

// list returns the clients in the order of their pairing.
func (t table) list() []*record {
	l := make([]*record, 0, len(t))
	for _, r := range t {
		l = append(l, r)
	}
	slices.SortFunc(l, func(a, b *record) int {
		if c := a.Created.Compare(b.Created); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
	return l
}

func (t table) byID(id string) *record {
	for _, r := range t {
		if r.ID == id {
			return r
		}
	}
	return nil
}

// lastOwner reports whether r is the only owner without an end.
func (t table) lastOwner(r *record) bool {
	return r.keepsDevice() && t.owners() == 1
}

// owners counts the owners without an end.
func (t table) owners() (n int) {
	for _, r := range t {
		if r.keepsDevice() {
			n++
		}
	}
	return n
}

// keepsDevice reports whether the device still has an owner tomorrow because of r.
func (r *record) keepsDevice() bool { return r.Role == Owner && r.Expires.IsZero() }

// newToken makes a token and its hash.
func newToken() (token string, hash [sha256.Size]byte) {
	token = tokenPrefix + random(tokenBytes)
	return token, sha256.Sum256([]byte(token))
}

// random is n random bytes in base64url.
func random(n int) string {
	return base64.RawURLEncoding.EncodeToString(randomBytes(n))
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	rand.Read(b) // never fails (crypto/rand)
	return b
}

func newID() string { return hex.EncodeToString(randomBytes(idBytes)) }

// noName is shown for a client that gave none.
const noName = "unnamed"

// cleanName makes a name safe to show: printable characters of valid UTF-8 only (no control characters, no marks
// that turn the direction of writing), at most MaxName bytes, never empty.
func cleanName(s string) string {
	var b strings.Builder
	space := false
	for _, r := range s {
		if r == ' ' || r == '\t' || r == '\n' || r == '\r' {
			space = b.Len() > 0
			continue
		}
		if r == '\uFFFD' || !strconv.IsPrint(r) {
			continue
		}
		n := len(string(r))
		if space {
			n++
		}
		if b.Len()+n > MaxName {
			break
		}
		if space {
			b.WriteByte(' ')
			space = false
		}
		b.WriteRune(r)
	}
	if b.Len() == 0 {
		return noName
	}
	return b.String()
}

// Keys of the bucket: a prefix and a name.
const (
	clientKey = "c:"
	eventKey  = "e:"
	firstKey  = "m:first-start"
	labelKey  = "m:label"
)

// storedClient is a client in the store, as JSON.
type storedClient struct {
	Generation uint32 `json:"gen"`
	Name       string `json:"name"`
	Role       Role   `json:"role"`
	Hash       string `json:"hash"` // SHA-256 of the token, hex
	Created    int64  `json:"created"`
	Expires    int64  `json:"expires,omitempty"`
	Last       int64  `json:"last,omitempty"`
	Code       string `json:"code,omitempty"`
	Way        string `json:"way"`
}

func (r *record) encode(generation uint32) []byte {
	return mustJSON(storedClient{
		Generation: generation, Name: r.Name, Role: r.Role, Hash: hex.EncodeToString(r.hash[:]),
		Created: r.Created.Unix(), Expires: unixOf(r.Expires), Last: r.last.Load(), Code: r.Code, Way: r.Way,
	})
}

// errRecord is a value in the store that this program did not write, or that decayed.
var errRecord = errors.New("not a client of this generation")

func decodeClient(id string, value []byte, generation uint32) (*record, error) {
	var s storedClient
	if err := json.Unmarshal(value, &s); err != nil {
		return nil, errRecord
	}
	sum, err := hex.DecodeString(s.Hash)
	if err != nil || len(sum) != sha256.Size || s.Generation != generation || s.Role.rank() == 0 || id == "" {
		return nil, errRecord
	}
	return newRecord(Client{
		ID: id, Name: cleanName(s.Name), Role: s.Role, Created: unixTime(s.Created), Expires: unixTime(s.Expires),
		LastUsed: unixTime(s.Last), Code: s.Code, Way: s.Way,
	}, [sha256.Size]byte(sum)), nil
}

// unixTime is the zero time for 0.
func unixTime(s int64) time.Time {
	if s == 0 {
		return time.Time{}
	}
	return time.Unix(s, 0).UTC()
}

func unixOf(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.Unix()
}

func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic("pairing: " + err.Error()) // types of our own
	}
	return b
}
