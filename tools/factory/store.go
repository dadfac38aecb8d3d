package factory

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"github.com/cloudrest/cloudrest/tether"
	"github.com/cloudrest/cloudrest/tether/devcert"
	"github.com/cloudrest/cloudrest/tether/provisioning"
)

// Limits of the store.
const (
	MaxBatchName = 64        // bytes
	MaxCount     = 1_000_000 // units of one batch
	maxBatches   = 10_000
	maxTroubles  = 500 // units whose failure is kept; the oldest go
	maxConflicts = 500 // likewise; what is not kept is refused all the same

	backdate  = 24 * time.Hour // certificates begin so long ago: clocks on a line differ
	lockWait  = time.Second    // for the store of another process
	batchWait = 2 * time.Millisecond
)

// storeFile is the name of the database in the state directory.
const storeFile = "factory.db"

// ErrInUse means that another process has the store open: a station that is running.
var ErrInUse = errors.New("another station is using this state directory")

// ErrUnknown means that there is no such unit or batch.
var ErrUnknown = errors.New("unknown")

var (
	unitsBucket     = []byte("units")     // device ID -> Unit
	keysBucket      = []byte("keys")      // SHA-256 of a key -> device ID
	batchesBucket   = []byte("batches")   // name -> Batch
	tokensBucket    = []byte("tokens")    // SHA-256 of a token -> name of its batch
	conflictsBucket = []byte("conflicts") // device ID -> Conflict
	troublesBucket  = []byte("troubles")  // device ID -> Trouble
	revokedBucket   = []byte("revoked")   // certificate serial, hex -> Revoked
)

// Unit is one device as the factory knows it. Key and Chain are empty once it is released.
type Unit struct {
	ID          tether.DeviceID `json:"id"`
	UID         string          `json:"uid"` // hex
	UIDSource   string          `json:"uid_source,omitempty"`
	Key         []byte          `json:"key,omitempty"` // SubjectPublicKeyInfo, DER
	Chain       [][]byte        `json:"chain,omitempty"`
	Serial      string          `json:"serial,omitempty"` // of the certificate, hex
	Issued      time.Time       `json:"issued,omitzero"`
	Expires     time.Time       `json:"expires,omitzero"`
	Batch       string          `json:"batch"`
	Claimed     time.Time       `json:"claimed,omitzero"`
	Confirmed   time.Time       `json:"confirmed,omitzero"` // zero: the device has not said that it stored the certificate
	Released    time.Time       `json:"released,omitzero"`
	Claims      int             `json:"claims"` // how often it asked
	Descriptor  json.RawMessage `json:"descriptor,omitempty"`
	Daemon      string          `json:"daemon,omitempty"`
	LANPin      string          `json:"lan_pin,omitempty"`
	LabelSecret string          `json:"label_secret,omitempty"`
}

// Batch is a right to claim a number of units for some time. The token itself is not kept.
type Batch struct {
	Name      string    `json:"name"`
	Hash      []byte    `json:"hash,omitempty"` // SHA-256 of the token
	Count     int       `json:"count"`
	Claimed   int       `json:"claimed"`   // units that counted
	Confirmed int       `json:"confirmed"` // of these
	Created   time.Time `json:"created"`
	Expires   time.Time `json:"expires"`
	Revoked   time.Time `json:"revoked,omitzero"`
}

// Conflict is a claim that was refused because the unit, or the key, is taken.
type Conflict struct {
	ID    tether.DeviceID `json:"id"`
	Why   string          `json:"why"`
	Batch string          `json:"batch"`
	From  string          `json:"from"` // address
	First time.Time       `json:"first"`
	Last  time.Time       `json:"last"`
	Count int             `json:"count"`
}

// Trouble is a unit that failed and has not been confirmed since.
type Trouble struct {
	ID      tether.DeviceID     `json:"id"`
	Reason  provisioning.Reason `json:"reason"`
	Message string              `json:"message"`
	Last    time.Time           `json:"last"`
	Count   int                 `json:"count"`
}

// Revoked is a certificate that must not be taken any more.
type Revoked struct {
	ID     tether.DeviceID `json:"id"`
	Serial string          `json:"serial"`
	Key    []byte          `json:"key"`
	At     time.Time       `json:"at"`
	Reason string          `json:"reason"`
}

// Refusal is a request that a station refuses for good.
type Refusal struct {
	Status  int
	Reason  provisioning.Reason
	Message string
}

func (r *Refusal) Error() string { return r.Message }

// Store keeps what the station knows. It is safe for concurrent use; one process at a time.
type Store struct {
	db   *bbolt.DB
	life time.Duration // of new device certificates
	now  func() time.Time
}

// OpenStore opens the store of a state directory, which must exist; ErrInUse if another
// process has it.
func OpenStore(dir string, life time.Duration) (*Store, error) {
	name := filepath.Join(dir, storeFile)
	db, err := bbolt.Open(name, 0o600, &bbolt.Options{Timeout: lockWait})
	if errors.Is(err, berrors.ErrTimeout) {
		return nil, fmt.Errorf("%s: %w", dir, ErrInUse)
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	db.MaxBatchDelay = batchWait // stations are asked by a few devices at once, who wait
	err = db.Update(func(tx *bbolt.Tx) error {
		for _, b := range [][]byte{unitsBucket, keysBucket, batchesBucket, tokensBucket, conflictsBucket, troublesBucket, revokedBucket} {
			if _, err := tx.CreateBucketIfNotExists(b); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		db.Close()
		return nil, fmt.Errorf("prepare %s: %w", name, err)
	}
	return &Store{db: db, life: life, now: time.Now}, nil
}

// Close ends the store.
func (s *Store) Close() error { return s.db.Close() }

func get[T any](tx *bbolt.Tx, bucket []byte, key string) (v T, ok bool, err error) {
	b := tx.Bucket(bucket).Get([]byte(key))
	if b == nil {
		return v, false, nil
	}
	if err = json.Unmarshal(b, &v); err != nil {
		err = fmt.Errorf("read %s of %s: %w", bucket, key, err)
	}
	return v, err == nil, err
}

func put(tx *bbolt.Tx, bucket []byte, key string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return tx.Bucket(bucket).Put([]byte(key), b)
}

// all returns the values of a bucket in the order of their keys.
func all[T any](s *Store, bucket []byte) (list []T, err error) {
	err = s.db.View(func(tx *bbolt.Tx) error {
		return tx.Bucket(bucket).ForEach(func(k, b []byte) error {
			var v T
			if err := json.Unmarshal(b, &v); err != nil {
				return fmt.Errorf("read %s of %s: %w", bucket, k, err)
			}
			list = append(list, v)
			return nil
		})
	})
	return list, err
}

// NewBatch makes a batch and returns its token, which is not shown again. An empty name
// becomes "batch <n>".
func (s *Store) NewBatch(name string, count int, life time.Duration) (b Batch, token string, err error) {
	switch {
	case count < 1 || count > MaxCount:
		return b, "", fmt.Errorf("a batch of %d units: want 1 to %d", count, MaxCount)
	case life <= 0:
		return b, "", fmt.Errorf("a batch for %v: want more than no time", life)
	case len(name) > MaxBatchName || name != provisioning.Clean(name, MaxBatchName):
		return b, "", fmt.Errorf("the name %.80q: want at most %d bytes of text", name, MaxBatchName)
	}
	random := make([]byte, sha256.Size)
	rand.Read(random) // never fails (Go 1.24)
	token = provisioning.TokenPrefix + base64.RawURLEncoding.EncodeToString(random)
	hash := sha256.Sum256([]byte(token))
	now := s.now().UTC()
	err = s.db.Update(func(tx *bbolt.Tx) error {
		n := tx.Bucket(batchesBucket).Stats().KeyN
		if n >= maxBatches {
			return fmt.Errorf("there are %d batches: a new state directory is due", n)
		}
		for i := n + 1; name == ""; i++ {
			if try := "batch " + strconv.Itoa(i); tx.Bucket(batchesBucket).Get([]byte(try)) == nil {
				name = try
			}
		}
		if tx.Bucket(batchesBucket).Get([]byte(name)) != nil {
			return fmt.Errorf("there is a batch %q already", name)
		}
		b = Batch{Name: name, Hash: hash[:], Count: count, Created: now, Expires: now.Add(life)}
		if err := put(tx, batchesBucket, name, b); err != nil {
			return err
		}
		return tx.Bucket(tokensBucket).Put(hash[:], []byte(name))
	})
	if err != nil {
		return Batch{}, "", fmt.Errorf("make a batch: %w", err)
	}
	return b, token, nil
}

// Batches lists the batches by name.
func (s *Store) Batches() ([]Batch, error) { return all[Batch](s, batchesBucket) }

// RevokeBatch ends a batch: its token is refused from now on. What it claimed stays.
func (s *Store) RevokeBatch(name string) error {
	return s.db.Update(func(tx *bbolt.Tx) error {
		b, ok, err := get[Batch](tx, batchesBucket, name)
		if err != nil {
			return err
		}
		if !ok {
			return fmt.Errorf("batch %q: %w", name, ErrUnknown)
		}
		if b.Revoked.IsZero() {
			b.Revoked = s.now().UTC()
		}
		return put(tx, batchesBucket, name, b)
	})
}

// batchOf finds the batch of a token, whatever its state. A wrong token is a *Refusal.
func batchOf(tx *bbolt.Tx, token string) (Batch, error) {
	hash := sha256.Sum256([]byte(token))
	unknown := &Refusal{401, provisioning.ReasonToken, "the batch token is not known here: make one with factory token new"}
	// The way to the bucket depends on the hash only, which nobody can choose.
	name := tx.Bucket(tokensBucket).Get(hash[:])
	if name == nil {
		return Batch{}, unknown
	}
	b, ok, err := get[Batch](tx, batchesBucket, string(name))
	if err != nil {
		return Batch{}, err
	}
	if !ok || subtle.ConstantTimeCompare(hash[:], b.Hash) != 1 {
		return Batch{}, unknown
	}
	return b, nil
}

// open tells why the batch gives no right at all, or returns nil.
func (b *Batch) open(now time.Time) error {
	switch {
	case !b.Revoked.IsZero():
		return &Refusal{403, provisioning.ReasonToken, fmt.Sprintf("the token of %q was revoked at %s", b.Name, b.Revoked.Format(time.RFC3339))}
	case !now.Before(b.Expires):
		return &Refusal{403, provisioning.ReasonToken, fmt.Sprintf("the token of %q ran out at %s", b.Name, b.Expires.Format(time.RFC3339))}
	}
	return nil
}

// CheckToken returns the name of the batch of a token that is valid now; else a *Refusal.
func (s *Store) CheckToken(token string) (name string, err error) {
	err = s.db.View(func(tx *bbolt.Tx) error {
		b, err := batchOf(tx, token)
		if err != nil {
			return err
		}
		name = b.Name
		return b.open(s.now())
	})
	return name, err
}

// Claim gives a unit its certificate, or the one it has. from is the address of who asks.
// What is refused for good is a *Refusal; a conflict has been noted then.
func (s *Store) Claim(a *devcert.Authority, token string, c provisioning.Claim, id tether.DeviceID, pub crypto.PublicKey, from string) (grant provisioning.Grant, err error) {
	spki, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return grant, fmt.Errorf("read the key: %w", err)
	}
	sum := sha256.Sum256(spki)
	keyHash := hex.EncodeToString(sum[:])
	var refusal *Refusal
	err = s.db.Batch(func(tx *bbolt.Tx) error {
		refusal, grant = nil, provisioning.Grant{} // Batch may call twice
		now := s.now().UTC()
		b, err := batchOf(tx, token)
		if err == nil {
			err = b.open(now)
		}
		if r, ok := errors.AsType[*Refusal](err); ok {
			refusal = r
			return nil
		}
		if err != nil {
			return err
		}
		u, known, err := get[Unit](tx, unitsBucket, string(id))
		if err != nil {
			return err
		}
		if known && u.Released.IsZero() && !bytes.Equal(u.Key, spki) {
			refusal = conflict("this unit was claimed at %s with another key: its flash was erased, or another board has the same UID; factory release %s lets it claim anew", stamp(u.Claimed), id.Short())
			return s.note(tx, Conflict{ID: id, Why: refusal.Message, Batch: b.Name, From: from}, now)
		}
		if owner := tx.Bucket(keysBucket).Get([]byte(keyHash)); owner != nil && string(owner) != string(id) {
			refusal = conflict("the key of this unit is that of unit %s: the flash was cloned with its identity; erase identity.json on this board", tether.DeviceID(owner).Short())
			return s.note(tx, Conflict{ID: id, Why: refusal.Message, Batch: b.Name, From: from}, now)
		}
		// A unit counts once for a batch, however often it asks and even after a release.
		if !known || !u.Released.IsZero() && u.Batch != b.Name {
			if b.Claimed >= b.Count {
				refusal = &Refusal{403, provisioning.ReasonToken, fmt.Sprintf("all %d units of %q are claimed", b.Count, b.Name)}
				return nil
			}
			b.Claimed++
			if err := put(tx, batchesBucket, b.Name, b); err != nil {
				return err
			}
			u = Unit{ID: id, Batch: b.Name, Claims: u.Claims}
		}
		if !u.Released.IsZero() {
			u.Released = time.Time{}
		}
		if err := s.issue(a, &u, pub, spki, now); err != nil {
			return err
		}
		u.UID, u.UIDSource, u.Descriptor, u.Daemon, u.LANPin, u.LabelSecret = c.UID, c.UIDSource, c.Descriptor, c.Daemon, c.LANPin, c.LabelSecret
		u.Claims++
		if u.Claimed.IsZero() {
			u.Claimed = now
		}
		if err := tx.Bucket(keysBucket).Put([]byte(keyHash), []byte(id)); err != nil {
			return err
		}
		grant = provisioning.Grant{ID: id, Chain: u.Chain, Batch: u.Batch, Confirmed: !u.Confirmed.IsZero()}
		return put(tx, unitsBucket, string(id), u)
	})
	if err != nil {
		return provisioning.Grant{}, fmt.Errorf("claim %s: %w", id.Short(), err)
	}
	if refusal != nil {
		return provisioning.Grant{}, refusal
	}
	return grant, nil
}

// issue gives u a certificate for pub, unless it has one that this authority stands for.
func (s *Store) issue(a *devcert.Authority, u *Unit, pub crypto.PublicKey, spki []byte, now time.Time) error {
	if bytes.Equal(u.Key, spki) {
		if leaf, _, err := devcert.Verify(u.Chain, a.Roots(), now); err == nil && now.Before(leaf.NotAfter.Add(-s.life/2)) {
			return nil
		}
	}
	chain, err := a.Issue(u.ID, pub, now.Add(-backdate), now.Add(s.life))
	if err != nil {
		return err
	}
	leaf, _, err := devcert.Parse(chain)
	if err != nil {
		return err
	}
	u.Key, u.Chain, u.Serial = spki, chain, hex.EncodeToString(leaf.SerialNumber.Bytes())
	u.Issued, u.Expires, u.Claimed = now, leaf.NotAfter.UTC(), now
	return nil
}

func conflict(format string, args ...any) *Refusal {
	return &Refusal{409, provisioning.ReasonConflict, fmt.Sprintf(format, args...)}
}

// note keeps a conflict for the operator.
func (s *Store) note(tx *bbolt.Tx, c Conflict, now time.Time) error {
	old, ok, err := get[Conflict](tx, conflictsBucket, string(c.ID))
	if err != nil {
		return err
	}
	c.First, c.Last, c.Count = now, now, 1
	if ok {
		c.First, c.Count = old.First, old.Count+1
	} else if tx.Bucket(conflictsBucket).Stats().KeyN >= maxConflicts {
		return nil
	}
	return put(tx, conflictsBucket, string(c.ID), c)
}

// Confirm notes that a unit holds its certificate; first is false when that was known. What
// is refused is a *Refusal.
func (s *Store) Confirm(c provisioning.Confirmation) (u Unit, first bool, err error) {
	var refusal *Refusal
	err = s.db.Batch(func(tx *bbolt.Tx) error {
		refusal, first = nil, false
		var ok bool
		var err error
		u, ok, err = get[Unit](tx, unitsBucket, string(c.ID))
		if err != nil {
			return err
		}
		// The signature is over the certificate, so that a device with an older one is told
		// to claim again. Who has neither learns no more than from a unit that is not there.
		if !ok || !u.Released.IsZero() || !c.Verify(u.Chain[0]) {
			refusal = &Refusal{404, provisioning.ReasonUnknown, "this station has not granted this certificate"}
			return nil
		}
		if !u.Confirmed.IsZero() {
			return nil
		}
		first, u.Confirmed = true, s.now().UTC()
		if b, ok, err := get[Batch](tx, batchesBucket, u.Batch); err != nil {
			return err
		} else if ok {
			b.Confirmed++
			if err := put(tx, batchesBucket, b.Name, b); err != nil {
				return err
			}
		}
		if err := tx.Bucket(troublesBucket).Delete([]byte(c.ID)); err != nil {
			return err
		}
		return put(tx, unitsBucket, string(c.ID), u)
	})
	if err != nil {
		return Unit{}, false, fmt.Errorf("confirm %s: %w", c.ID.Short(), err)
	}
	if refusal != nil {
		return Unit{}, false, refusal
	}
	return u, first, nil
}

// Release lets a unit be claimed with another key: its certificate is revoked and its
// conflict forgotten. ErrUnknown when there is neither a unit nor a conflict of that ID.
func (s *Store) Release(id tether.DeviceID, reason string) (Unit, error) {
	var u Unit
	err := s.db.Update(func(tx *bbolt.Tx) error {
		var ok bool
		var err error
		if u, ok, err = get[Unit](tx, unitsBucket, string(id)); err != nil {
			return err
		}
		if !ok && tx.Bucket(conflictsBucket).Get([]byte(id)) == nil {
			return fmt.Errorf("unit %s: %w", id.Short(), ErrUnknown)
		}
		if err := tx.Bucket(conflictsBucket).Delete([]byte(id)); err != nil {
			return err
		}
		if err := tx.Bucket(troublesBucket).Delete([]byte(id)); err != nil {
			return err
		}
		if !ok || !u.Released.IsZero() {
			return nil
		}
		now := s.now().UTC()
		if err := put(tx, revokedBucket, u.Serial, Revoked{ID: id, Serial: u.Serial, Key: u.Key, At: now, Reason: reason}); err != nil {
			return err
		}
		sum := sha256.Sum256(u.Key)
		if err := tx.Bucket(keysBucket).Delete([]byte(hex.EncodeToString(sum[:]))); err != nil {
			return err
		}
		if !u.Confirmed.IsZero() {
			if b, ok, err := get[Batch](tx, batchesBucket, u.Batch); err != nil {
				return err
			} else if ok {
				b.Confirmed--
				if err := put(tx, batchesBucket, b.Name, b); err != nil {
					return err
				}
			}
		}
		u.Released, u.Claimed, u.Confirmed = now, time.Time{}, time.Time{}
		u.Key, u.Chain, u.Serial, u.LabelSecret, u.LANPin = nil, nil, "", "", ""
		return put(tx, unitsBucket, string(id), u)
	})
	if err != nil {
		return Unit{}, fmt.Errorf("release: %w", err)
	}
	return u, nil
}

// Fail notes why a unit cannot go on.
func (s *Store) Fail(t Trouble) error {
	err := s.db.Batch(func(tx *bbolt.Tx) error {
		old, ok, err := get[Trouble](tx, troublesBucket, string(t.ID))
		if err != nil {
			return err
		}
		t := t
		t.Last, t.Count = s.now().UTC(), old.Count+1
		if !ok && tx.Bucket(troublesBucket).Stats().KeyN >= maxTroubles {
			if err := dropOldest(tx); err != nil {
				return err
			}
		}
		return put(tx, troublesBucket, string(t.ID), t)
	})
	if err != nil {
		return fmt.Errorf("note a failure: %w", err)
	}
	return nil
}

func dropOldest(tx *bbolt.Tx) error {
	var oldest Trouble
	err := tx.Bucket(troublesBucket).ForEach(func(_, b []byte) error {
		var t Trouble
		if json.Unmarshal(b, &t) == nil && (oldest.ID == "" || t.Last.Before(oldest.Last)) {
			oldest = t
		}
		return nil
	})
	if err != nil {
		return err
	}
	return tx.Bucket(troublesBucket).Delete([]byte(oldest.ID))
}

// Conflicts lists the conflicts, the latest first.
func (s *Store) Conflicts() ([]Conflict, error) {
	list, err := all[Conflict](s, conflictsBucket)
	slices.SortFunc(list, func(a, b Conflict) int { return b.Last.Compare(a.Last) })
	return list, err
}

// Troubles lists the units that failed, the latest first.
func (s *Store) Troubles() ([]Trouble, error) {
	list, err := all[Trouble](s, troublesBucket)
	slices.SortFunc(list, func(a, b Trouble) int { return b.Last.Compare(a.Last) })
	return list, err
}

// Revocations lists the revoked certificates.
func (s *Store) Revocations() ([]Revoked, error) { return all[Revoked](s, revokedBucket) }

// Unit returns one unit; ErrUnknown if there is none.
func (s *Store) Unit(id tether.DeviceID) (u Unit, err error) {
	err = s.db.View(func(tx *bbolt.Tx) error {
		var ok bool
		var err error
		if u, ok, err = get[Unit](tx, unitsBucket, string(id)); err == nil && !ok {
			err = fmt.Errorf("unit %s: %w", id.Short(), ErrUnknown)
		}
		return err
	})
	return u, err
}

// Each calls f for every unit, by ID, in pieces so that claims can come in between.
func (s *Store) Each(f func(Unit) error) error {
	const piece = 200
	var after []byte
	for {
		var units []Unit
		err := s.db.View(func(tx *bbolt.Tx) error {
			c := tx.Bucket(unitsBucket).Cursor()
			k, b := c.First()
			if after != nil {
				if k, b = c.Seek(after); bytes.Equal(k, after) {
					k, b = c.Next()
				}
			}
			for ; k != nil && len(units) < piece; k, b = c.Next() {
				var u Unit
				if err := json.Unmarshal(b, &u); err != nil {
					return fmt.Errorf("read unit %s: %w", k, err)
				}
				units = append(units, u)
				after = append(after[:0], k...)
			}
			return nil
		})
		if err != nil {
			return err
		}
		if len(units) == 0 {
			return nil
		}
		for _, u := range units {
			if err := f(u); err != nil {
				return err
			}
		}
	}
}

func stamp(t time.Time) string { return t.Local().Format("2006-01-02 15:04:05") }
