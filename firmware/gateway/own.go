package gateway

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/cloudrest/cloudrest/firmware/internal/features"
	"github.com/cloudrest/cloudrest/firmware/internal/pairing"
	"github.com/cloudrest/cloudrest/tether"
)

// Paths that the gateway serves itself; all others belong to the maker's service.
const (
	StatusPath = tether.OwnPrefix + "v1/status"
	EventsPath = tether.OwnPrefix + "v1/events"
	ResetPath  = tether.OwnPrefix + "v1/reset"

	certificatePath = tether.OwnPrefix + "v1/certificate" // package provision serves it
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

// own serves everything below /.cloudrest/. Requests of the control socket and of the
// tether are marked (pairing.Local, pairing.Remote).
func (g *Gateway) own(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("X-Content-Type-Options", "nosniff")
	path := r.URL.Path
	switch {
	case path == StatusPath:
		if method(w, r, http.MethodGet, http.MethodHead) {
			h.Set("Cache-Control", "no-store")
			writeJSON(w, http.StatusOK, g.Status())
		}
	case path == EventsPath:
		if g.cfg.Access != AccessPaired || pairing.IsRemote(r) { // over the tether the relay has decided
			g.events(w, r)
			return
		}
		g.guarded.events.ServeHTTP(w, r)
	case path == CachePath:
		if pairing.IsRemote(r) { // likewise
			g.serveCache(w, r)
			return
		}
		g.guarded.cache.ServeHTTP(w, r)
	case path == ResetPath:
		g.guarded.reset.ServeHTTP(w, r)
	case features.Provision && (path == certificatePath || strings.HasPrefix(path, certificatePath+"/")) && g.certs != nil && (pairing.IsRemote(r) || pairing.IsLocal(r)):
		g.certs.ServeHTTP(w, r)
	case pairing.Serves(path):
		g.guarded.people.ServeHTTP(w, r)
	case strings.HasPrefix(path, tether.OwnPrefix+"v1/"):
		writeError(w, http.StatusNotFound, fmt.Sprintf("the gateway has nothing at %.100q", path))
	case !features.Page:
		writeError(w, http.StatusNotFound, features.Missing("page").Error())
	default:
		g.page.ServeHTTP(w, r)
	}
}

// serveReset answers POST /.cloudrest/v1/reset behind the guard: an owner, or who is at the
// machine itself, makes the device forget its owner.
func (g *Gateway) serveReset(w http.ResponseWriter, r *http.Request) {
	if !method(w, r, http.MethodPost) {
		return
	}
	why := "the machine itself"
	if !pairing.IsLocal(r) {
		c, ok := pairing.ClientOf(r.Context())
		if !ok || c.Role != pairing.Owner {
			writeError(w, http.StatusForbidden, "only an owner resets the device")
			return
		}
		why = fmt.Sprintf("%q (%s)", c.Name, c.ID)
	}
	if err := g.FactoryReset(why); err != nil {
		g.log.Error("factory reset", "err", err)
		writeError(w, http.StatusInsufficientStorage, "the reset could not be stored: nothing has changed")
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// method reports whether r has one of the methods; if not, it is answered 405.
func method(w http.ResponseWriter, r *http.Request, allowed ...string) bool {
	if slices.Contains(allowed, r.Method) {
		return true
	}
	w.Header().Set("Allow", strings.Join(allowed, ", "))
	writeError(w, http.StatusMethodNotAllowed, "want "+strings.Join(allowed, " or "))
	return false
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
