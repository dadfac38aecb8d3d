package main

import (
	"maps"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/cloudrest/cloudrest/tether"
)

// sighting is one thing that discovery heard.
type sighting struct {
	way         string // "mdns" or "udp"
	gone        bool   // mdns: the device said goodbye, or its records ended
	instance    string // mdns
	id          tether.DeviceID
	name        string
	mac         string // udp
	url         string
	addrs       []netip.Addr // mdns
	port        uint16       // mdns
	fingerprint string
	api         string
	version     string
	trouble     error // this way of discovery does not work here; nothing else is set
}

// device is what is known of one device on the LAN.
type device struct {
	ID          tether.DeviceID `json:"id,omitempty"` // empty: only UDP found it, which tells no ID
	Name        string          `json:"name"`
	URL         string          `json:"url"`
	MAC         string          `json:"mac,omitempty"`
	Addresses   []string        `json:"addresses,omitempty"`
	Fingerprint string          `json:"fingerprint,omitempty"` // the pin of its key
	API         string          `json:"api,omitempty"`
	Version     string          `json:"version,omitempty"`
	Ways        []string        `json:"ways"` // "mdns", "udp": which found it
}

// table puts together what the two ways of discovery tell.
type table struct {
	mdns map[string]sighting // by instance
	udp  map[string]sighting // by MAC and URL
}

// maxDevices bounds each map: who fills the LAN with invented devices shall not fill
// our memory.
const maxDevices = 4096

// add takes a sighting in; a new one beyond maxDevices is dropped.
func (t *table) add(s sighting) {
	if t.mdns == nil {
		t.mdns, t.udp = map[string]sighting{}, map[string]sighting{}
	}
	if s.trouble != nil {
		return
	}
	m, key := t.mdns, s.instance
	if s.way == "udp" {
		m, key = t.udp, s.mac+" "+s.url
	}
	if s.gone {
		delete(m, key)
		return
	}
	if _, known := m[key]; known || len(m) < maxDevices {
		m[key] = s
	}
}

// devices is the merged view, by name, then ID and URL.
func (t *table) devices() []device {
	var list []device
	var places [][]netip.AddrPort // of the device with the same index
	byID := map[tether.DeviceID]int{}
	for _, key := range sortedKeys(t.mdns) {
		s := t.mdns[key]
		i, known := byID[s.id]
		if !known || s.id == "" {
			list, places = append(list, device{ID: s.id, Name: s.name, URL: s.url, Fingerprint: s.fingerprint,
				API: s.api, Version: s.version, Ways: []string{"mdns"}}), append(places, nil)
			i = len(list) - 1
			byID[s.id] = i
		}
		for _, a := range s.addrs {
			places[i] = append(places[i], netip.AddrPortFrom(a.Unmap().WithZone(""), s.port))
			if text := a.String(); !slices.Contains(list[i].Addresses, text) {
				list[i].Addresses = append(list[i].Addresses, text)
			}
		}
	}
	for _, key := range sortedKeys(t.udp) {
		s := t.udp[key]
		at, ok := place(s.url)
		i := -1
		if ok {
			i = slices.IndexFunc(places, func(p []netip.AddrPort) bool { return slices.Contains(p, at) })
		}
		if i < 0 { // one device answers once for each of its interfaces
			i = slices.IndexFunc(list, func(d device) bool { return d.MAC == s.mac && d.Name == s.name && d.MAC != "" })
		}
		if i < 0 {
			list, places = append(list, device{Name: s.name, URL: s.url}), append(places, nil)
			i = len(list) - 1
		}
		d := &list[i]
		if d.MAC == "" {
			d.MAC = s.mac
		}
		if ok {
			places[i] = append(places[i], at)
			if text := at.Addr().String(); !slices.Contains(d.Addresses, text) {
				d.Addresses = append(d.Addresses, text)
			}
		}
		if !slices.Contains(d.Ways, "udp") {
			d.Ways = append(d.Ways, "udp")
		}
	}
	slices.SortStableFunc(list, func(a, b device) int {
		return strings.Compare(strings.ToLower(a.Name)+"\x00"+string(a.ID)+a.URL, strings.ToLower(b.Name)+"\x00"+string(b.ID)+b.URL)
	})
	return list
}

// place is the address and port of a URL with an IP address as its host.
func place(text string) (netip.AddrPort, bool) {
	u, err := url.Parse(text)
	if err != nil {
		return netip.AddrPort{}, false
	}
	a, err := netip.ParseAddr(u.Hostname())
	if err != nil {
		return netip.AddrPort{}, false
	}
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	n, err := strconv.ParseUint(port, 10, 16)
	return netip.AddrPortFrom(a.Unmap().WithZone(""), uint16(n)), err == nil
}

func sortedKeys(m map[string]sighting) []string {
	return slices.Sorted(maps.Keys(m))
}
