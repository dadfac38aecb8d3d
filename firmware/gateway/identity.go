package gateway

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/cloudrest/cloudrest/firmware/internal/features"
	"github.com/cloudrest/cloudrest/firmware/internal/identity"
	"github.com/cloudrest/cloudrest/firmware/internal/lancert"
	"github.com/cloudrest/cloudrest/firmware/internal/provision"
	"github.com/cloudrest/cloudrest/tether/buildinfo"
)

// Hardware gives the UID that a device ID is made of; *uid.Reader of package board/uid fits.
type Hardware = identity.Hardware

// Identity is who a device is and what it can prove it with.
type Identity struct {
	identity.Info
	UID        []byte     `json:"uid,omitempty"`                       // no secret, but not for logs
	Pin        string     `json:"pin,omitempty"`                       // of the LAN authority; empty before the first start
	Until      *time.Time `json:"factory_certificate_until,omitempty"` // nil: none
	Generation uint32     `json:"generation"`
}

// ReadIdentity looks at a state directory, which a gateway may be using, and changes
// nothing. A device without an identity gives fs.ErrNotExist.
func ReadIdentity(ctx context.Context, dir string, hw Hardware) (Identity, error) {
	id, err := identity.Load(ctx, dir, hw)
	if err != nil {
		return Identity{}, err
	}
	info, err := id.Info()
	if err != nil {
		return Identity{}, err
	}
	out := Identity{Info: info, UID: id.UID()}
	if out.Pin, err = lancert.ReadPin(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Identity{}, err
	}
	if features.Provision {
		certs, err := provision.Open(dir, id.ID, id.Key(), buildinfo.BuildTime(), nil)
		switch {
		case err == nil:
			out.Until = known(certs.Leaf().NotAfter)
		case !errors.Is(err, fs.ErrNotExist):
			return Identity{}, fmt.Errorf("look at the factory certificate: %w", err)
		}
	}
	g, _, err := readGeneration(dir)
	out.Generation = g.Number
	return out, err
}
