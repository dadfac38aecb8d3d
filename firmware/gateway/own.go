package gateway

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"

	"github.com/cloudrest/cloudrest/tether"
)

// Paths that the gateway serves itself; all others belong to the maker's service.
const (
	StatusPath = tether.OwnPrefix + "v1/status"
	EventsPath = tether.OwnPrefix + "v1/events"
)

// isOwn reports whether a path is the gateway's.
func isOwn(path string) bool {
	return strings.HasPrefix(path, tether.OwnPrefix) || path+"/" == tether.OwnPrefix
}

// dispatch sends a request to the gateway's own pages or to the origin. It is no ServeMux
// because that cleans paths, and the origin must get them as the client wrote them.
func dispatch(own, origin http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if isOwn(r.URL.Path) {
			own.ServeHTTP(w, r)
			return
		}
		origin.ServeHTTP(w, r)
	})
}

// own serves everything below /.cloudrest/.
func (g *Gateway) own(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("X-Content-Type-Options", "nosniff")
	switch r.URL.Path {
	case StatusPath:
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			h.Set("Allow", "GET, HEAD")
			writeError(w, http.StatusMethodNotAllowed, "the status is read with GET")
			return
		}
		h.Set("Cache-Control", "no-store")
		writeJSON(w, http.StatusOK, g.Status())
	case EventsPath:
		g.events(w, r)
	default:
		writeError(w, http.StatusNotFound, fmt.Sprintf("the gateway has no page %.100q; there are %s and %s", r.URL.Path, StatusPath, EventsPath))
	}
}

// errorBody is how every error of our own looks.
type errorBody struct {
	Error   int    `json:"error"`
	Message string `json:"message"`
}

func writeError(w http.ResponseWriter, status int, message string) {
	w.Header().Set("Cache-Control", "no-store")
	writeJSON(w, status, errorBody{status, message})
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		panic("gateway: " + err.Error()) // types of our own
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", fmt.Sprint(len(body)+1))
	w.WriteHeader(status)
	w.Write(append(body, '\n'))
}
