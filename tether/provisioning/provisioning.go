// Package provisioning is what is said when a device gets its identity in the factory
// (paper, "Device Factory Provisioning"): the HTTP API of the factory station, asked by the
// device, and what the device asks of the maker's REST service. It holds the words and
// their limits; package firmware/internal/provision is the device, tools/factory the station.
//
// # The maker's service: apiFactoryConnect
//
// A device that is to be provisioned by Wi-Fi must first join the factory's network, and
// only its maker's service knows how. The service names a path in the field
// apiFactoryConnect of GET /device; a service without it is on a network already, and the
// step is left out. The device asks
//
//	POST <apiFactoryConnect>
//	{"ssid":"Line 2","passphrase":"…","security":"wpa2-psk","station":"https://station:15850"}
//
// (see Join; fields that nobody gave are left out, and a service may then use a factory
// network that it knows by itself) and expects 200 or 204, connected, or 202, connecting.
// Asked again it answers likewise: it must not mind, since a device that lost power begins
// anew. 409, 425, 429 and every 5xx mean "later", the device asks again; any other answer
// means that the service refuses, and its body is shown to the operator. Whatever the
// service says, the device goes on only once it reaches the station.
//
// # The station
//
// HTTPS with a certificate of the factory's authority, which the device knows from a file.
// Bodies are JSON of at most MaxBody bytes. "Bearer" means Authorization: Bearer <batch
// token>, the right to claim, which is bounded in number and time.
//
//	GET  /v1/factory    open     200 Info: a station is here
//	GET  /v1/network    Bearer   200 Network: what apiFactoryConnect is to be told; 204: nothing
//	POST /v1/claim      Bearer   Claim -> 200 Grant: ID and certificate of this unit
//	POST /v1/confirm    signed   Confirmation -> 204: the unit has stored what it was granted
//	POST /v1/failure    Bearer   Failure -> 204: the unit cannot go on; for the operator to see
//
// A claim may be repeated: the same UID with the same key gets its certificate again and
// counts once. A confirmation may be repeated too; it is signed with the device's key
// instead of the token, so that it works when the token has run out meanwhile.
//
// Errors are Error with a reason. 401, 403, 404, 409 and 400 are final for this attempt;
// 429 and 5xx mean "later", with Retry-After in seconds where the station knows.
package provisioning

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/cloudrest/cloudrest/tether"
	"github.com/cloudrest/cloudrest/tether/devcert"
)

// DefaultPort is where a station listens.
const DefaultPort = 15850

// Paths of the station.
const (
	InfoPath    = "/v1/factory"
	NetworkPath = "/v1/network"
	ClaimPath   = "/v1/claim"
	ConfirmPath = "/v1/confirm"
	FailurePath = "/v1/failure"
)

// Limits, in bytes unless something else is said.
const (
	MaxBody     = 64 << 10 // of any body; a claim with the largest descriptor has about 20 KiB
	MinUID      = 8        // a flash unique ID has 64 bits
	MaxUID      = 64
	MaxField    = 128 // of the short texts
	MaxMessage  = 512 // of Failure.Message; longer ones are cut
	MaxNetwork  = 32  // of an SSID (IEEE 802.11 §9.4.2.2)
	maxPhrase   = 63  // of a WPA passphrase (IEEE 802.11 §J.4)
	pinDigits   = 2 * sha256.Size
	TokenPrefix = "crf_" // begins every batch token, so that a leaked one can be searched for
	tokenText   = 43     // base64url characters of 256 bits behind the prefix
)

// ErrMessage is wrapped by every refusal of a parser of this package.
var ErrMessage = errors.New("provisioning message")

// Info says that a station is here. It tells strangers nothing worth knowing.
type Info struct {
	Station string `json:"station"` // its name, for people
	Version int    `json:"version"` // of this API: 1
}

// Version is the version of this API.
const Version = 1

// Network is what a device must know to join the factory's Wi-Fi. All of it may be empty.
type Network struct {
	SSID       string `json:"ssid,omitempty"`
	Passphrase string `json:"passphrase,omitempty"`
	Security   string `json:"security,omitempty"` // as the maker's service calls it: "open", "wpa2-psk", "wpa3-sae"
}

// Join is the body of apiFactoryConnect.
type Join struct {
	Network
	Station string `json:"station"` // base URL of the station that must be reachable afterwards
}

// Claim asks for the identity of one unit.
type Claim struct {
	UID         string          `json:"uid"` // hex, MinUID to MaxUID bytes
	UIDSource   string          `json:"uid_source,omitempty"`
	CSR         []byte          `json:"csr"`                    // PKCS #10 (package devcert), DER
	Descriptor  json.RawMessage `json:"descriptor,omitempty"`   // GET /device, unmodified
	Daemon      string          `json:"daemon,omitempty"`       // version of cloudrestd
	LANPin      string          `json:"lan_pin,omitempty"`      // of the device's own authority (SPEC.md §11), for the label
	LabelSecret string          `json:"label_secret,omitempty"` // pairs one client without a window; goes on the label, never in a log
}

// Grant is the answer to a claim.
type Grant struct {
	ID        tether.DeviceID `json:"id"`    // SHA-256 of the UID: the station read the same UID
	Chain     [][]byte        `json:"chain"` // DER, leaf first, without the root
	Batch     string          `json:"batch"` // name of the batch the unit counts for
	Confirmed bool            `json:"confirmed,omitempty"`
}

// Confirmation tells that a device holds its certificate in lasting storage.
type Confirmation struct {
	ID        tether.DeviceID `json:"id"`
	Signature []byte          `json:"signature"` // of Sign
}

// Failure tells the operator why a unit cannot go on.
type Failure struct {
	UID     string `json:"uid"`
	Reason  Reason `json:"reason"`
	Message string `json:"message,omitempty"`
}

// Reason is why provisioning failed, in one word for programs.
type Reason string

// Reasons. The station's answers use the first group, devices all of them.
const (
	ReasonToken     Reason = "token"     // unknown, run out, used up or revoked
	ReasonConflict  Reason = "conflict"  // the UID is claimed with another key, or the key for another UID
	ReasonUnknown   Reason = "unknown"   // the station has never heard of this unit
	ReasonMalformed Reason = "malformed" // the station does not understand the device
	ReasonBusy      Reason = "busy"      // later

	ReasonService     Reason = "service"     // the REST service did not come up
	ReasonNetwork     Reason = "network"     // the REST service could not join the factory's network
	ReasonUnreachable Reason = "unreachable" // no station answers
	ReasonStation     Reason = "station"     // what answers is not the factory's station, or its answer is wrong
	ReasonClone       Reason = "clone"       // the identity on this board belongs to another board
	ReasonLocked      Reason = "locked"      // another process works on this device
	ReasonState       Reason = "state"       // the state directory cannot be used
)

// Error is the body of every error of the station.
type Error struct {
	Status  int    `json:"error"`
	Reason  Reason `json:"reason"`
	Message string `json:"message"`
}

// ParseClaim reads and checks a claim from anyone: the UID, the request and its signature,
// and that both name one device. The key is that of the request.
func ParseClaim(body []byte) (c Claim, id tether.DeviceID, key crypto.PublicKey, err error) {
	bad := func(format string, args ...any) (Claim, tether.DeviceID, crypto.PublicKey, error) {
		return Claim{}, "", nil, fmt.Errorf("%w: %w", ErrMessage, fmt.Errorf(format, args...))
	}
	if err := decode(body, &c); err != nil {
		return bad("claim: %w", err)
	}
	if id, err = parseUID(c.UID); err != nil {
		return bad("claim: %w", err)
	}
	named, key, err := devcert.ParseRequest(c.CSR)
	if err != nil {
		return bad("claim: %w", err)
	}
	if named != id {
		return bad("claim: the certificate request is for device %s, the UID is that of %s", named.Short(), id.Short())
	}
	if len(c.Descriptor) > 0 && string(c.Descriptor) != "null" {
		if _, err := tether.ParseDescriptor(c.Descriptor); err != nil {
			return bad("claim: %w", err)
		}
	} else {
		c.Descriptor = nil
	}
	if c.LANPin != "" && !isHex(c.LANPin, pinDigits) {
		return bad("claim: lan_pin: want %d lower-case hex digits", pinDigits)
	}
	for name, s := range map[string]string{"uid_source": c.UIDSource, "daemon": c.Daemon} {
		if len(s) > MaxField || !printable(s) {
			return bad("claim: %s: want at most %d bytes of text", name, MaxField)
		}
	}
	if !ValidSecret(c.LabelSecret) && c.LabelSecret != "" {
		return bad("claim: label_secret: want at most %d characters of base64url", MaxField)
	}
	return c, id, key, nil
}

// ParseGrant reads the answer to a claim. Whether it is for this device is checked by the
// caller, with devcert.Verify.
func ParseGrant(body []byte) (g Grant, err error) {
	if err := decode(body, &g); err != nil {
		return Grant{}, fmt.Errorf("%w: grant: %w", ErrMessage, err)
	}
	if id, err := tether.ParseDeviceID(string(g.ID)); err != nil || id != g.ID {
		return Grant{}, fmt.Errorf("%w: grant: id: %w", ErrMessage, tether.ErrDeviceID)
	}
	if len(g.Batch) > MaxField || !printable(g.Batch) {
		g.Batch = "" // only for people
	}
	return g, nil
}

// ParseConfirmation reads a confirmation; its signature is checked with Verify.
func ParseConfirmation(body []byte) (c Confirmation, err error) {
	if err := decode(body, &c); err != nil {
		return Confirmation{}, fmt.Errorf("%w: confirmation: %w", ErrMessage, err)
	}
	if id, err := tether.ParseDeviceID(string(c.ID)); err != nil || id != c.ID {
		return Confirmation{}, fmt.Errorf("%w: confirmation: id: %w", ErrMessage, tether.ErrDeviceID)
	}
	return c, nil
}

// ParseFailure reads a failure and returns the device's ID instead of its UID. Its texts
// are cut and cleaned, not refused: the operator should see something.
func ParseFailure(body []byte) (f Failure, id tether.DeviceID, err error) {
	if err := decode(body, &f); err != nil {
		return Failure{}, "", fmt.Errorf("%w: failure: %w", ErrMessage, err)
	}
	if id, err = parseUID(f.UID); err != nil {
		return Failure{}, "", fmt.Errorf("%w: failure: %w", ErrMessage, err)
	}
	f.Reason = Reason(Clean(string(f.Reason), MaxField))
	f.Message = Clean(f.Message, MaxMessage)
	return f, id, nil
}

// ParseNetwork reads a Network.
func ParseNetwork(body []byte) (n Network, err error) {
	if err = decode(body, &n); err == nil {
		err = n.Validate()
	}
	if err != nil {
		return Network{}, fmt.Errorf("%w: network: %w", ErrMessage, err)
	}
	return n, nil
}

// Validate checks the lengths; the passphrase is not quoted.
func (n Network) Validate() error {
	switch {
	case len(n.SSID) > MaxNetwork || !printable(n.SSID):
		return fmt.Errorf("ssid: want at most %d bytes of text", MaxNetwork)
	case len(n.Passphrase) > maxPhrase+1 || !printable(n.Passphrase): // 64 hex digits are a key
		return fmt.Errorf("passphrase: want at most %d bytes of text", maxPhrase+1)
	case len(n.Security) > MaxField || !printable(n.Security):
		return fmt.Errorf("security: want at most %d bytes of text", MaxField)
	}
	return nil
}

// ParseError reads the body of an error of the station; a body that is none gives the
// status alone.
func ParseError(status int, body []byte) Error {
	var e Error
	if decode(body, &e) != nil {
		e = Error{}
	}
	e.Status, e.Reason, e.Message = status, Reason(Clean(string(e.Reason), MaxField)), Clean(e.Message, MaxMessage)
	return e
}

// confirmLabel separates this signature from all others made with a device key.
const confirmLabel = "cloudrest-factory-confirm-1"

func confirmMessage(id tether.DeviceID, leaf []byte) []byte {
	sum := sha256.Sum256(leaf)
	return append(append(append([]byte(confirmLabel), 0), id...), sum[:]...) // id has a fixed size
}

// Sign makes the confirmation of a device for the certificate leaf (DER).
func Sign(id tether.DeviceID, leaf []byte, key crypto.Signer) (Confirmation, error) {
	message, hash := confirmMessage(id, leaf), crypto.Hash(0)
	if _, ok := key.Public().(ed25519.PublicKey); !ok {
		sum := sha256.Sum256(message)
		message, hash = sum[:], crypto.SHA256
	}
	signature, err := key.Sign(rand.Reader, message, hash)
	if err != nil {
		return Confirmation{}, fmt.Errorf("sign the confirmation: %w", err)
	}
	return Confirmation{ID: id, Signature: signature}, nil
}

// Verify reports whether c was made with the key that leaf (DER) certifies.
func (c Confirmation) Verify(leaf []byte) bool {
	cert, id, err := devcert.Parse([][]byte{leaf})
	if err != nil || id != c.ID {
		return false
	}
	message := confirmMessage(id, leaf)
	switch pub := cert.PublicKey.(type) {
	case ed25519.PublicKey:
		return ed25519.Verify(pub, message, c.Signature)
	case *ecdsa.PublicKey:
		sum := sha256.Sum256(message)
		return ecdsa.VerifyASN1(pub, sum[:], c.Signature)
	}
	return false
}

// ValidToken reports whether s has the form of a batch token.
func ValidToken(s string) bool {
	rest, ok := strings.CutPrefix(s, TokenPrefix)
	return ok && len(rest) == tokenText && ValidSecret(rest)
}

// ValidSecret reports whether s is 1 to MaxField characters of base64url.
func ValidSecret(s string) bool {
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_' {
			return false
		}
	}
	return s != "" && len(s) <= MaxField
}

// Clean makes a text from elsewhere fit to be shown: valid, on one line, at most max bytes.
func Clean(s string, max int) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == utf8.RuneError {
			return ' '
		}
		return r
	}, s[:min(len(s), max)])
	if len(s) > max { // RuneError has three bytes where the broken one had fewer
		s = s[:max]
	}
	return strings.TrimSpace(strings.ToValidUTF8(s, ""))
}

// decode reads one JSON object and nothing behind it. Unknown fields are passed over: a
// newer device may say more.
func decode(body []byte, v any) error {
	if len(body) > MaxBody {
		return fmt.Errorf("%d bytes, at most %d are allowed", len(body), MaxBody)
	}
	if b := bytes.TrimLeft(body, " \t\r\n"); len(b) == 0 || b[0] != '{' {
		return errors.New("want a JSON object")
	}
	return json.Unmarshal(body, v)
}

func parseUID(s string) (tether.DeviceID, error) {
	uid, err := hex.DecodeString(s)
	if err != nil || len(uid) < MinUID || len(uid) > MaxUID {
		return "", fmt.Errorf("uid: want %d to %d bytes in hex", MinUID, MaxUID)
	}
	return tether.NewDeviceID(uid), nil
}

func isHex(s string, digits int) bool {
	for _, c := range []byte(s) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return len(s) == digits
}

func printable(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f })
}
