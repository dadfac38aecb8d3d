package relay

import (
	"context"
	"io"
	"time"

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

// Imported says what ImportDevices did.
type Imported = operator.Imported

// ImportDevices lists the devices of a factory's export, JSON Lines with at least "id" and
// "key" in each: all of them, or on any error none. Without replace, another key than the
// listed one is an error. progress, which may be nil, is told the number of lines.
func ImportDevices(stateDir string, r io.Reader, replace bool, progress func(lines int)) (Imported, error) {
	return operator.Import(stateDir, r, replace, progress)
}

// RevokeDevice keeps a device out, whatever it can prove; added is false if it was already.
func RevokeDevice(stateDir string, id tether.DeviceID) (added bool, err error) {
	return operator.Revoke(stateDir, id)
}

// UnrevokeDevice lets it come again.
func UnrevokeDevice(stateDir string, id tether.DeviceID) error {
	return operator.Unrevoke(stateDir, id)
}

// Revoked is a device that is revoked.
type Revoked = operator.Mark

// RevokedDevices lists them.
func RevokedDevices(stateDir string) ([]Revoked, error) { return operator.ListRevoked(stateDir) }

// RekeyDevice has the relay forget the key that a device enrolled with, so that the next
// one it proves counts: at once if the relay runs, else when it starts.
func RekeyDevice(stateDir string, id tether.DeviceID) error { return operator.Rekey(stateDir, id) }

// rekeyEvery is how often the relay looks whether keys are to be forgotten.
const rekeyEvery = time.Second

// rekey forgets keys as the operator asks, until ctx is done. The store belongs to this
// process alone, so the command leaves a note and this does the work.
func (r *Relay) rekey(ctx context.Context) error {
	t := time.NewTicker(rekeyEvery)
	defer t.Stop()
	// What could not be taken off the file must not be forgotten again and again: that would
	// let anybody in who proves any key.
	forgotten := map[operator.Mark]bool{}
	failing := false
	for {
		err := r.forgetKeys(ctx, forgotten)
		if err != nil && !failing && ctx.Err() == nil {
			r.log.Error("keys to be forgotten", "err", err, "retry_in", rekeyEvery)
		}
		failing = err != nil
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
	}
}

func (r *Relay) forgetKeys(ctx context.Context, forgotten map[operator.Mark]bool) error {
	list, err := operator.Rekeys(r.cfg.StateDir)
	if err != nil || len(list) == 0 {
		return err
	}
	ids := make([]tether.DeviceID, 0, len(list))
	for _, m := range list {
		if !forgotten[m] {
			if err := r.db.ForgetKey(ctx, m.ID); err != nil {
				return err
			}
			if r.cache != nil {
				r.cache.PurgeDevice(m.ID)
			}
			forgotten[m] = true
			r.log.Warn("key forgotten, the next one that is proved counts", "security", "device_rekeyed", "device", m.ID)
		}
		ids = append(ids, m.ID)
	}
	if err := operator.Rekeyed(r.cfg.StateDir, ids...); err != nil {
		return err
	}
	clear(forgotten)
	return nil
}
