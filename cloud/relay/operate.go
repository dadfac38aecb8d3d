package relay

import (
	"github.com/cloudrest/cloudrest/cloud/internal/operator"
	"github.com/cloudrest/cloudrest/tether"
)

// What the operator does beside a running relay. Each call changes a file in the state
// directory in one piece; a running relay notices within a second.

// Token is what is kept of an operator token.
type Token = operator.Token

// Listed is a device on the operator's list.
type Listed = operator.Listed

// NewToken makes an operator token, keeps its SHA-256 under the name ("" takes the next
// number) and returns its text, which exists nowhere else.
func NewToken(stateDir, name string) (string, error) { return operator.NewToken(stateDir, name) }

// Tokens lists what is kept of the operator tokens.
func Tokens(stateDir string) ([]Token, error) { return operator.ListTokens(stateDir) }

// RevokeToken ends the token of that name.
func RevokeToken(stateDir, name string) error { return operator.RevokeToken(stateDir, name) }

// AddDevice puts a device with its public key (base64 of the DER form, or PEM) on the
// list; a key that it had there is replaced.
func AddDevice(stateDir string, id tether.DeviceID, key []byte) error {
	der, err := operator.ParseKey(key)
	if err != nil {
		return err
	}
	return operator.AddDevice(stateDir, id, der)
}

// RemoveDevice takes a device off the list.
func RemoveDevice(stateDir string, id tether.DeviceID) error {
	return operator.RemoveDevice(stateDir, id)
}

// ListedDevices returns the list.
func ListedDevices(stateDir string) ([]Listed, error) { return operator.ListDevices(stateDir) }
