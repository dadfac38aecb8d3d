package factory

import (
	"encoding/base64"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/cloudrest/cloudrest/tether"
	"github.com/cloudrest/cloudrest/tether/trust"
)

// Forms of an export.
const (
	FormatJSONL = "jsonl" // one JSON object on each line; cloudrelay devices import reads it
	FormatCSV   = "csv"   // RFC 4180 with a head line
)

// ExportOptions says what of the units is exported.
type ExportOptions struct {
	Format string
	Batch  string // only this one; empty: all
	All    bool   // unconfirmed units too
	UID    bool   // with the raw UID
	Labels bool   // with what goes on labels: secrets
	Port   int    // of the devices' HTTPS, for the labels' URL; 0: 443
}

// Exported is one line of an export.
type Exported struct {
	ID           tether.DeviceID `json:"id"`
	Key          string          `json:"key"`    // SubjectPublicKeyInfo, base64 of DER
	Serial       string          `json:"serial"` // of the certificate, hex
	Issued       time.Time       `json:"issued"`
	Expires      time.Time       `json:"expires"`
	Confirmed    *time.Time      `json:"confirmed,omitempty"`
	Batch        string          `json:"batch"`
	Name         string          `json:"name,omitempty"` // this and the next from the descriptor
	Manufacturer string          `json:"manufacturer,omitempty"`
	Version      string          `json:"version,omitempty"`
	Revision     string          `json:"revision,omitempty"`
	API          string          `json:"api,omitempty"`
	Daemon       string          `json:"daemon,omitempty"`
	UIDSource    string          `json:"uid_source,omitempty"`
	UID          string          `json:"uid,omitempty"`
	LANPin       string          `json:"lan_pin,omitempty"`
	Descriptor   json.RawMessage `json:"descriptor,omitempty"` // unmodified; not in CSV
	LabelSecret  string          `json:"label_secret,omitempty"`
	LabelURL     string          `json:"label_url,omitempty"` // for the label's QR code; holds the secret
}

// export makes the line of u; ok is false when it is not wanted.
func (o ExportOptions) export(u Unit) (e Exported, ok bool) {
	if !u.Released.IsZero() || o.Batch != "" && u.Batch != o.Batch || u.Confirmed.IsZero() && !o.All {
		return Exported{}, false
	}
	d, _ := tether.ParseDescriptor(u.Descriptor) // of a service without one all fields are empty
	e = Exported{
		ID: u.ID, Key: base64.StdEncoding.EncodeToString(u.Key), Serial: u.Serial, Issued: u.Issued, Expires: u.Expires,
		Batch: u.Batch, Name: d.Name, Manufacturer: d.Manufacturer, Version: d.Version, Revision: d.Revision, API: d.API,
		Daemon: u.Daemon, UIDSource: u.UIDSource, LANPin: u.LANPin, Descriptor: u.Descriptor,
	}
	if !u.Confirmed.IsZero() {
		e.Confirmed = &u.Confirmed
	}
	if o.UID {
		e.UID = u.UID
	}
	if o.Labels {
		e.LabelSecret = u.LabelSecret
		if u.LabelSecret != "" && u.LANPin != "" {
			e.LabelURL = trust.Invitation{URL: labelHost(u.ID, o.Port), ID: u.ID, Pin: u.LANPin, Secret: u.LabelSecret}.String()
		}
	}
	return e, true
}

// labelHost is where a device is found on any LAN: by its mDNS name.
func labelHost(id tether.DeviceID, port int) string {
	host := "https://cloudrest-" + id.Short() + ".local"
	if port != 0 && port != 443 {
		host += ":" + strconv.Itoa(port)
	}
	return host
}

// Exporter writes units in one of the formats.
type Exporter struct {
	o   ExportOptions
	enc *json.Encoder
	csv *csv.Writer
	n   int
}

// NewExporter makes one. An unknown format is an error.
func NewExporter(w io.Writer, o ExportOptions) (*Exporter, error) {
	e := &Exporter{o: o}
	switch o.Format {
	case FormatJSONL:
		e.enc = json.NewEncoder(w)
		e.enc.SetEscapeHTML(false)
		return e, nil
	case FormatCSV:
		e.csv = csv.NewWriter(w)
		head := []string{"id", "key", "serial", "issued", "expires", "confirmed", "batch", "name", "manufacturer", "version", "revision", "api", "daemon", "uid_source", "lan_pin"}
		if o.UID {
			head = append(head, "uid")
		}
		if o.Labels {
			head = append(head, "label_secret", "label_url")
		}
		return e, e.csv.Write(head)
	}
	return nil, fmt.Errorf("format %q: want %s or %s", o.Format, FormatJSONL, FormatCSV)
}

// Write writes u, if it is wanted.
func (x *Exporter) Write(u Unit) error {
	e, ok := x.o.export(u)
	if !ok {
		return nil
	}
	x.n++
	if x.enc != nil {
		return x.enc.Encode(e)
	}
	confirmed := ""
	if e.Confirmed != nil {
		confirmed = e.Confirmed.Format(time.RFC3339)
	}
	row := []string{string(e.ID), e.Key, e.Serial, e.Issued.Format(time.RFC3339), e.Expires.Format(time.RFC3339), confirmed, e.Batch,
		e.Name, e.Manufacturer, e.Version, e.Revision, e.API, e.Daemon, e.UIDSource, e.LANPin}
	if x.o.UID {
		row = append(row, e.UID)
	}
	if x.o.Labels {
		row = append(row, e.LabelSecret, e.LabelURL)
	}
	for i := range row {
		row[i] = cell(row[i])
	}
	return x.csv.Write(row)
}

// Close ends the export and tells how many units it has.
func (x *Exporter) Close() (n int, err error) {
	if x.csv != nil {
		x.csv.Flush()
		err = x.csv.Error()
	}
	return x.n, err
}

// cell keeps a spreadsheet from taking a device's words for a formula
// (https://owasp.org/www-community/attacks/CSV_Injection).
func cell(s string) string {
	if s != "" && strings.ContainsRune("=+-@\t\r", rune(s[0])) {
		return "'" + s
	}
	return s
}
