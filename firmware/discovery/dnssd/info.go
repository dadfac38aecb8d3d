package dnssd

import (
	"errors"
	"fmt"
	"net"
	"strconv"

	"github.com/cloudrest/cloudrest/tether"
)

// Info is what a device tells about itself. Two equal Infos are the same announcement.
type Info struct {
	ID          tether.DeviceID
	Name        string // what people call the device
	API         string // version or base path of the REST API
	Fingerprint string // SHA-256 of the LAN certificate, lower-case hex
	Path        string // of the REST API; default "/"
	URL         string // full URL; default https://<host>.local[:port]<path>
	Version     string // of the device's software
	Port        int    // of HTTPS
}

// Keys of the TXT record, in their order there (RFC 6763 §6).
const (
	KeyID          = "id"   // device ID, 64 hex digits
	KeyName        = "name" // friendly name
	KeyAPI         = "api"
	KeyFingerprint = "fp"
	KeyPath        = "path"
	KeyURL         = "url"
	KeyVersion     = "v"
)

// maxText is how long one key=value string of a TXT record can be (RFC 6763 §6.1).
const maxText = 255

// ErrInfo means that an Info cannot be announced.
var ErrInfo = errors.New("announcement")

func (in Info) check() error {
	if _, err := tether.ParseDeviceID(string(in.ID)); err != nil {
		return fmt.Errorf("%w: %w", ErrInfo, err)
	}
	if in.Port < 1 || in.Port > 65535 {
		return fmt.Errorf("%w: port %d, want 1 to 65535", ErrInfo, in.Port)
	}
	return nil
}

// text is the TXT record for a device that is called host. All keys are there, always,
// so that a client can tell an empty value from an old device. Names are cut to fit;
// a path or URL that does not fit is left empty, since a part of it would be wrong.
func (in Info) text(host string) []string {
	path := in.Path
	if path == "" {
		path = "/"
	}
	url := in.URL
	if url == "" {
		url = "https://" + host
		if in.Port != 443 {
			url = "https://" + net.JoinHostPort(host, strconv.Itoa(in.Port))
		}
		url += path
	}
	var list []string
	add := func(key, value string, whole bool) {
		value = clean(value)
		if room := maxText - len(key) - 1; len(value) > room {
			if whole {
				value = ""
			}
			value = cut(value, room)
		}
		list = append(list, key+"="+value)
	}
	add(KeyID, string(in.ID), true)
	add(KeyName, in.Name, false)
	add(KeyAPI, in.API, false)
	add(KeyFingerprint, in.Fingerprint, true)
	add(KeyPath, path, true)
	add(KeyURL, url, true)
	add(KeyVersion, in.Version, false)
	return list
}
