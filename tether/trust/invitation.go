package trust

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"github.com/cloudrest/cloudrest/tether"
)

const (
	// MaxInvitation is the size of the longest invitation that is read, in bytes: a QR code
	// of it is still easy for a phone's camera.
	MaxInvitation = 512
	// MaxSecret is the size of the longest secret in one, in bytes.
	MaxSecret = 128

	invitationPath  = tether.OwnPrefix
	invitationField = "c="
	maxHost         = 253 // RFC 1035 §2.3.4, without the last dot
)

// ErrInvitation means that a text is no invitation. It never quotes the text, which may
// hold a secret.
var ErrInvitation = errors.New("not a CloudREST invitation")

// Invitation is what a QR code or a label tells a client: where the device is, who it is,
// the pin of its key, and a secret that pairs once without a pairing window. It is not to
// be logged.
type Invitation struct {
	URL    string          // https://host[:port], lower case, without path
	ID     tether.DeviceID // of the device
	Pin    string          // of its authority
	Secret string          // 1 to MaxSecret characters of base64url (RFC 4648 §5)
}

// strict refuses spare bits that are not zero: one invitation has one form.
var strict = base64.RawURLEncoding.Strict()

// String is the URL form. What follows the # stays in the browser and reaches no server
// (RFC 9110 §4.2.5, RFC 3986 §3.5).
func (i Invitation) String() string {
	pin, _ := hex.DecodeString(i.Pin) // checked by ParseInvitation, and by who reads this
	return i.URL + invitationPath + "#" + invitationField + i.ID.Label() + "." + strict.EncodeToString(pin) + "." + i.Secret
}

// ParseInvitation reads what String wrote, and nothing else; the error is ErrInvitation.
func ParseInvitation(s string) (Invitation, error) {
	bad := func(why string) (Invitation, error) { return Invitation{}, fmt.Errorf("%w: %s", ErrInvitation, why) }
	if len(s) > MaxInvitation {
		return bad("it is longer than " + strconv.Itoa(MaxInvitation) + " bytes")
	}
	base, words, ok := strings.Cut(s, invitationPath+"#"+invitationField)
	if !ok {
		return bad("want https://host/.cloudrest/#c=...")
	}
	if !validBase(base) {
		return bad("its address is not https://host or https://host:port")
	}
	parts := strings.Split(words, ".")
	if len(parts) != 3 {
		return bad("want device ID, pin and secret after #c=, with dots between")
	}
	id, err := tether.ParseDeviceID(parts[0])
	if err != nil || id.Label() != parts[0] {
		return bad("the device ID is damaged")
	}
	pin, err := strict.DecodeString(parts[1])
	if err != nil || !ValidPin(hex.EncodeToString(pin)) || strings.ContainsAny(parts[1], "\r\n") {
		return bad("the pin is damaged")
	}
	if !validSecret(parts[2]) {
		return bad("the secret is damaged")
	}
	return Invitation{URL: base, ID: id, Pin: hex.EncodeToString(pin), Secret: parts[2]}, nil
}

// validBase accepts scheme and host in lower case, addresses in their usual form and
// without a zone, which means something on one machine only.
func validBase(s string) bool {
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.Scheme+"://"+u.Host != s {
		return false
	}
	host, port := u.Hostname(), u.Port()
	if port != "" || strings.HasSuffix(u.Host, ":") {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 || strconv.FormatUint(n, 10) != port {
			return false
		}
	}
	if addr, err := netip.ParseAddr(host); err == nil {
		return addr.Zone() == "" && addr.String() == host && strings.HasPrefix(u.Host, "[") == addr.Is6()
	}
	return len(host) <= maxHost && !strings.HasPrefix(u.Host, "[") && validName(host)
}

// validName accepts host names of letters, digits and hyphens, in lower case (RFC 1123 §2.1).
func validName(host string) bool {
	for label := range strings.SplitSeq(host, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for _, c := range []byte(label) {
			if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
				return false
			}
		}
	}
	return true
}

func validSecret(s string) bool {
	if s == "" || len(s) > MaxSecret {
		return false
	}
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_' {
			return false
		}
	}
	return true
}
