package operator

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/cloudrest/cloudrest/tether"
)

// Bounds of an import.
const (
	maxLine     = 64 << 10 // bytes of one line: a descriptor may be in it
	progressPer = 10_000   // lines between two calls of progress
	shownErrors = 5        // lines named in an error
)

// Errors of Import; nothing was changed.
var (
	ErrImport     = errors.New("the file is not a list of devices in JSON Lines")
	ErrKeyChanges = errors.New("devices are on the list with another key")
)

// Imported says what an import did.
type Imported struct {
	Added     int
	Changed   int // the key, which takes replace
	Unchanged int
}

// Import puts the devices of a factory's export on the list in dir: all of them, or on any
// error none. Each line of r is a JSON object with at least "id" and "key", the base64 of
// the SubjectPublicKeyInfo in DER; its other fields are not looked at. Without replace a
// key that differs from the listed one is an error. progress, if not nil, is told the
// number of lines now and then.
func Import(dir string, r io.Reader, replace bool, progress func(lines int)) (done Imported, err error) {
	keys, order, err := readImport(r, progress)
	if err != nil {
		return Imported{}, err
	}
	err = edit(dir, DevicesFile, func(text []byte) ([]byte, error) {
		done = Imported{}
		have, err := parseDevices(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", DevicesFile, err)
		}
		changed := map[tether.DeviceID]bool{}
		var names []string
		var add []byte
		for _, id := range order {
			old, listed := have[id]
			switch {
			case !listed:
				done.Added++
			case bytes.Equal(old, keys[id]):
				done.Unchanged++
				continue
			default:
				done.Changed++
				changed[id] = true
				names = append(names, string(id))
			}
			add = fmt.Appendf(add, "%s %s\n", id, base64.StdEncoding.EncodeToString(keys[id]))
		}
		if done.Changed > 0 && !replace {
			return nil, fmt.Errorf("%w: %s", ErrKeyChanges, short(names, shownErrors))
		}
		if len(add) == 0 {
			return nil, nil
		}
		out := text
		if len(changed) > 0 {
			out, _ = dropLines(text, func(f []string) bool {
				if len(f) == 0 {
					return false
				}
				id, err := tether.ParseDeviceID(f[0])
				return err == nil && changed[id]
			})
		}
		return append(endLine(out), add...), nil
	})
	if err != nil {
		return Imported{}, err
	}
	return done, nil
}

// readImport reads and checks every line before anything is done.
func readImport(r io.Reader, progress func(int)) (keys map[tether.DeviceID][]byte, order []tether.DeviceID, err error) {
	keys = map[tether.DeviceID][]byte{}
	var wrong []string
	in := bufio.NewScanner(r)
	in.Buffer(make([]byte, 0, 4096), maxLine)
	lines, total := 0, 0
	for in.Scan() {
		lines++
		if progress != nil && lines%progressPer == 0 {
			progress(lines)
		}
		if total += len(in.Bytes()) + 1; total > maxFile {
			return nil, nil, fmt.Errorf("%w: line %d: %w", ErrImport, lines, ErrTooLarge)
		}
		line := bytes.TrimSpace(in.Bytes())
		if len(line) == 0 {
			continue
		}
		id, der, err := importLine(line)
		if err == nil && keys[id] != nil && !bytes.Equal(keys[id], der) {
			err = fmt.Errorf("device %s came before with another key", id)
		}
		if err != nil {
			if wrong = append(wrong, fmt.Sprintf("line %d: %v", lines, err)); len(wrong) > 100*shownErrors {
				break // another kind of file
			}
			continue
		}
		if keys[id] == nil {
			order = append(order, id)
		}
		keys[id] = der
	}
	if err := in.Err(); errors.Is(err, bufio.ErrTooLong) {
		return nil, nil, fmt.Errorf("%w: line %d has more than %d bytes", ErrImport, lines+1, maxLine)
	} else if err != nil {
		return nil, nil, fmt.Errorf("read the file of devices: %w", err)
	}
	if len(wrong) > 0 {
		return nil, nil, fmt.Errorf("%w: %s", ErrImport, short(wrong, shownErrors))
	}
	return keys, order, nil
}

func importLine(line []byte) (tether.DeviceID, []byte, error) {
	var v struct {
		ID  string `json:"id"`
		Key string `json:"key"`
	}
	if err := json.Unmarshal(line, &v); err != nil {
		return "", nil, errors.New("not a JSON object with the texts id and key")
	}
	id, err := tether.ParseDeviceID(v.ID)
	if err != nil {
		return "", nil, err
	}
	der, err := ParseKey([]byte(v.Key))
	return id, der, err
}
