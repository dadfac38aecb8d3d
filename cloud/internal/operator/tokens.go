package operator

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// TokensFile is the name of the file of tokens in the state directory, mode 0600: a
// line for each token with the hex SHA-256 of its text, when it was made (RFC 3339),
// and its name. Empty lines and lines that begin with # are skipped.
const TokensFile = "operator-tokens"

// TokenPrefix begins every operator token, so that the relay, and scanners for leaked
// secrets, can tell it from a device's own bearer token.
const TokenPrefix = "crt_"

const (
	tokenBytes = 32                    // of randomness
	tokenChars = len(TokenPrefix) + 43 // base64url without padding
	maxTokens  = 1000
	maxName    = 64
)

// ErrName means that a name for a token or device is not 1 to 64 of A-Z a-z 0-9 . _ -
var ErrName = errors.New("not a name: want 1 to 64 letters, digits, dots, hyphens or underscores")

// Token is what is kept of a token.
type Token struct {
	Name    string
	Created time.Time
	sum     [sha256.Size]byte
}

// NewToken makes a token of 256 random bits, keeps its SHA-256 in dir under the name
// ("" finds one: operator-1, operator-2...) and returns its text, which is nowhere else.
func NewToken(dir, name string) (token string, err error) {
	random := make([]byte, tokenBytes)
	rand.Read(random) // never fails
	token = TokenPrefix + base64.RawURLEncoding.EncodeToString(random)
	err = edit(dir, TokensFile, func(text []byte) ([]byte, error) {
		have, err := parseTokens(text)
		if err != nil {
			return nil, err
		}
		taken := func(name string) bool {
			return slices.ContainsFunc(*have, func(t Token) bool { return t.Name == name })
		}
		for i := 1; name == ""; i++ {
			if try := fmt.Sprintf("operator-%d", i); !taken(try) {
				name = try
			}
		}
		switch {
		case !validName(name):
			return nil, ErrName
		case taken(name):
			return nil, fmt.Errorf("there is a token named %q already: revoke it first or choose another name", name)
		case len(*have) >= maxTokens:
			return nil, fmt.Errorf("there are %d tokens, at most that many are kept: revoke some", len(*have))
		}
		line := fmt.Sprintf("%x %s %s\n", sha256.Sum256([]byte(token)), time.Now().UTC().Format(time.RFC3339), name)
		return append(endLine(text), line...), nil
	})
	if err != nil {
		return "", fmt.Errorf("make a token: %w", err)
	}
	return token, nil
}

// ListTokens returns what is kept in dir.
func ListTokens(dir string) ([]Token, error) {
	text, err := os.ReadFile(filepath.Join(dir, TokensFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	have, err := parseTokens(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", TokensFile, err)
	}
	return *have, nil
}

// RevokeToken removes the token with the name; it stops being good within a second.
func RevokeToken(dir, name string) error {
	return edit(dir, TokensFile, func(text []byte) ([]byte, error) {
		out, n := dropLines(text, func(fields []string) bool { return len(fields) == 3 && fields[2] == name })
		if n == 0 {
			return nil, fmt.Errorf("there is no token named %q", name)
		}
		return out, nil
	})
}

func parseTokens(text []byte) (*[]Token, error) {
	list := []Token{}
	n := 0
	for line := range strings.Lines(string(text)) {
		n++
		f := strings.Fields(line)
		if len(f) == 0 || strings.HasPrefix(f[0], "#") {
			continue
		}
		var t Token
		sum, err := []byte(nil), error(nil)
		if len(f) == 3 {
			sum, err = hex.DecodeString(f[0])
		}
		if len(f) != 3 || err != nil || len(sum) != sha256.Size || !validName(f[2]) {
			return nil, fmt.Errorf("line %d: want a SHA-256 in hex, a time and a name", n)
		}
		if t.Created, err = time.Parse(time.RFC3339, f[1]); err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		t.sum, t.Name = [sha256.Size]byte(sum), f[2]
		list = append(list, t)
	}
	return &list, nil
}

// Tokens checks tokens against the file in dir as it is now. It may be used by many
// goroutines.
type Tokens struct{ file watched[[]Token] }

// OpenTokens reads the file in dir; there need not be one yet. It fails when the file
// cannot be read or understood.
func OpenTokens(dir string, log *slog.Logger) (*Tokens, error) {
	t := &Tokens{watched[[]Token]{path: filepath.Join(dir, TokensFile), parse: parseTokens, log: log}}
	return t, t.file.open()
}

// Check reports whether the token is good, and its name for logs. Every stored sum is
// compared in constant time, so that the time tells nothing of them. A new token is
// good at once, a revoked one fails within a second.
func (t *Tokens) Check(token string) (name string, ok bool) {
	if len(token) != tokenChars || !strings.HasPrefix(token, TokenPrefix) {
		return "", false
	}
	sum := sha256.Sum256([]byte(token))
	if name, ok = match(*t.file.get(false), sum); !ok {
		name, ok = match(*t.file.get(true), sum)
	}
	return name, ok
}

// Len is how many tokens are good now.
func (t *Tokens) Len() int { return len(*t.file.get(false)) }

func match(list []Token, sum [sha256.Size]byte) (name string, ok bool) {
	for i := range list {
		if subtle.ConstantTimeCompare(list[i].sum[:], sum[:]) == 1 {
			name, ok = list[i].Name, true
		}
	}
	return name, ok
}

func validName(s string) bool {
	return len(s) > 0 && len(s) <= maxName && !strings.ContainsFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '.' && r != '_' && r != '-'
	})
}

// dropLines removes the lines that drop says and counts them.
func dropLines(text []byte, drop func(fields []string) bool) (out []byte, n int) {
	out = []byte{} // not nil: an empty file is written
	for line := range bytes.Lines(text) {
		if drop(strings.Fields(string(line))) {
			n++
			continue
		}
		out = append(out, line...)
	}
	return out, n
}

// endLine makes sure that what is appended begins on a line of its own.
func endLine(text []byte) []byte {
	if len(text) > 0 && text[len(text)-1] != '\n' {
		text = append(text, '\n')
	}
	return text
}
