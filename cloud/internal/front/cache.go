package front

import (
	"net/http"

	"github.com/cloudrest/cloudrest/tether"
)

// cachePage bounds the stored answers that are listed.
const cachePage = 1000

// stored is one stored answer.
type stored struct {
	Path   string   `json:"path"` // with the query, as the device sees it
	Host   string   `json:"host,omitempty"`
	User   string   `json:"user,omitempty"` // the token whose bearer alone gets it; absent: everybody's
	Status int      `json:"status"`
	Body   int      `json:"bodyBytes"`
	Bytes  int64    `json:"bytes"` // with all that belongs to it
	Age    float64  `json:"age"`   // seconds
	Fresh  float64  `json:"fresh"` // for so many seconds more; negative: stale
	ETag   string   `json:"etag,omitempty"`
	Vary   []string `json:"vary,omitempty"`
}

// cache answers what is stored of a device (GET), or drops it (DELETE).
func (f *Front) cache(a *answer, r *http.Request, id tether.DeviceID) {
	if f.cfg.Cache == nil {
		refuseDevice(a, http.StatusNotFound, "this relay stores no answers", id)
		return
	}
	if r.Method == http.MethodDelete {
		writeJSON(a, http.StatusOK, map[string]any{"device": id, "purged": f.cfg.Cache.PurgeDevice(id)})
		return
	}
	list := []stored{}
	for _, e := range f.cfg.Cache.Entries(id, cachePage) {
		list = append(list, stored{Path: e.URI, Host: e.Host, User: e.Principal, Status: e.Status, Body: e.Body, Bytes: e.Cost,
			Age: e.Age.Seconds(), Fresh: e.Fresh.Seconds(), ETag: e.ETag, Vary: e.Vary})
	}
	writeJSON(a, http.StatusOK, map[string]any{"device": id, "stored": list})
}
