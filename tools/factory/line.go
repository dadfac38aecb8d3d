package factory

import (
	"context"
	"embed"
	"encoding/json"
	"errors"
	"io/fs"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/cloudrest/cloudrest/tether"
	"github.com/cloudrest/cloudrest/tether/provisioning"
	"github.com/cloudrest/cloudrest/tether/sse"
)

// What a page shows, at most, and how often.
const (
	shownUnits   = 30 // of each list
	shownBatches = 8
	shownHours   = 12
	maxStrangers = 10
	maxPages     = 32 // listening at once

	publishEvery = 200 * time.Millisecond // while something happens
	refreshEvery = 15 * time.Second       // while nothing does: rates fall
	rateSpan     = 10 * time.Minute       // that throughput is measured over
	keepMinutes  = 26 * 60                // today has at most 25 hours
)

//go:embed page
var pageFiles embed.FS

// State is what the page shows. It holds no secret, no UID and no key.
type State struct {
	Station   string          `json:"station"`
	Now       time.Time       `json:"now"`
	Today     int             `json:"today"`     // units confirmed since midnight, local time
	LastHour  int             `json:"last_hour"` // in the last 60 minutes
	PerHour   int             `json:"per_hour"`  // at the pace of the last ten minutes
	Hours     []Hour          `json:"hours"`     // the last ones, oldest first
	Total     int             `json:"total"`     // units of all batches
	Last      *Event          `json:"last,omitempty"`
	Progress  []Event         `json:"progress"` // claimed and not confirmed, latest first
	Waiting   int             `json:"waiting"`  // how many those are
	Troubles  []Trouble       `json:"troubles"`
	Failing   int             `json:"failing"` // how many those are
	Conflicts []shownConflict `json:"conflicts"`
	Batches   []shownBatch    `json:"batches"`
	Strangers []Stranger      `json:"strangers"` // refused requests that name no unit
}

// Hour is how many units were confirmed in one hour of the clock.
type Hour struct {
	Hour  int `json:"hour"`
	Units int `json:"units"`
}

// Event is what happened to a unit.
type Event struct {
	ID     tether.DeviceID `json:"id"`
	OK     bool            `json:"ok"`
	Text   string          `json:"text"`
	Reason string          `json:"reason,omitempty"`
	At     time.Time       `json:"at"`
}

// Stranger is requests of one address that were refused before a unit was known.
type Stranger struct {
	From  string    `json:"from"`
	Why   string    `json:"why"`
	Count int       `json:"count"`
	Last  time.Time `json:"last"`
}

type shownBatch struct {
	Name      string    `json:"name"`
	Count     int       `json:"count"`
	Claimed   int       `json:"claimed"`
	Confirmed int       `json:"confirmed"`
	Expires   time.Time `json:"expires"`
	Open      bool      `json:"open"`
}

type shownConflict struct {
	ID    tether.DeviceID `json:"id"`
	Why   string          `json:"why"`
	Last  time.Time       `json:"last"`
	Count int             `json:"count"`
}

// line watches what happens at a station, for its page.
type line struct {
	name    string
	store   *Store
	events  *sse.Ring
	limiter *sse.Limiter
	change  chan struct{} // holds one

	mu        sync.Mutex // guards the fields below
	minutes   map[int64]int
	progress  map[tether.DeviceID]time.Time
	last      *Event
	strangers []Stranger
}

func newLine(name string, store *Store) (*line, error) {
	l := &line{
		name: name, store: store, events: sse.NewRing(4, 1<<20), limiter: sse.NewLimiter(maxPages), change: make(chan struct{}, 1),
		minutes: map[int64]int{}, progress: map[tether.DeviceID]time.Time{},
	}
	begin := time.Now().Add(-keepMinutes * time.Minute)
	return l, store.Each(func(u Unit) error {
		switch {
		case u.Confirmed.After(begin):
			l.minutes[minute(u.Confirmed)]++
			if l.last == nil || u.Confirmed.After(l.last.At) {
				l.last = doneEvent(u)
			}
		case u.Confirmed.IsZero() && u.Released.IsZero():
			l.progress[u.ID] = u.Claimed
		}
		return nil
	})
}

func minute(t time.Time) int64 { return t.Unix() / 60 }

func doneEvent(u Unit) *Event {
	return &Event{ID: u.ID, OK: true, Text: "done, for " + u.Batch, At: u.Confirmed}
}

func (l *line) changed() {
	select {
	case l.change <- struct{}{}:
	default:
	}
}

func (l *line) claimed(id tether.DeviceID, confirmed bool) {
	l.mu.Lock()
	if !confirmed {
		l.progress[id] = time.Now()
	}
	l.mu.Unlock()
	l.changed()
}

func (l *line) confirmed(u Unit) {
	l.mu.Lock()
	delete(l.progress, u.ID)
	l.minutes[minute(u.Confirmed)]++
	l.last = doneEvent(u)
	l.mu.Unlock()
	l.changed()
}

func (l *line) failed(id tether.DeviceID, reason, message string) {
	l.mu.Lock()
	l.last = &Event{ID: id, Reason: reason, Text: message, At: time.Now()}
	l.mu.Unlock()
	l.changed()
}

func (l *line) released(id tether.DeviceID) {
	l.mu.Lock()
	delete(l.progress, id)
	l.mu.Unlock()
	l.changed()
}

func (l *line) stranger(from string, err error) {
	why := provisioning.Clean(err.Error(), provisioning.MaxField)
	l.mu.Lock()
	s := Stranger{From: from, Why: why}
	if i := slices.IndexFunc(l.strangers, func(s Stranger) bool { return s.From == from && s.Why == why }); i >= 0 {
		s = l.strangers[i]
		l.strangers = slices.Delete(l.strangers, i, i+1)
	}
	s.Count++
	s.Last = time.Now()
	l.strangers = slices.Insert(l.strangers, 0, s)
	l.strangers = l.strangers[:min(len(l.strangers), maxStrangers)]
	l.mu.Unlock()
	l.changed()
}

// state is what there is to see now.
func (l *line) state() (State, error) {
	now := time.Now()
	s := State{Station: l.name, Now: now, Progress: []Event{}, Troubles: []Trouble{}, Conflicts: []shownConflict{}, Batches: []shownBatch{}}
	troubles, err := l.store.Troubles()
	if err != nil {
		return s, err
	}
	s.Failing = len(troubles)
	s.Troubles = append(s.Troubles, troubles[:min(len(troubles), shownUnits)]...)
	conflicts, err := l.store.Conflicts()
	if err != nil {
		return s, err
	}
	for _, c := range conflicts[:min(len(conflicts), shownUnits)] {
		s.Conflicts = append(s.Conflicts, shownConflict{c.ID, c.Why, c.Last, c.Count})
	}
	batches, err := l.store.Batches()
	if err != nil {
		return s, err
	}
	slices.SortFunc(batches, func(a, b Batch) int { return b.Created.Compare(a.Created) })
	for i, b := range batches {
		s.Total += b.Confirmed
		if i < shownBatches {
			s.Batches = append(s.Batches, shownBatch{b.Name, b.Count, b.Claimed, b.Confirmed, b.Expires, b.open(now) == nil && b.Confirmed < b.Count})
		}
	}

	l.mu.Lock()
	defer l.mu.Unlock()
	s.Last, s.Strangers = l.last, slices.Clone(l.strangers)
	if s.Strangers == nil {
		s.Strangers = []Stranger{}
	}
	for id, at := range l.progress {
		s.Progress = append(s.Progress, Event{ID: id, At: at})
	}
	s.Waiting = len(s.Progress)
	slices.SortFunc(s.Progress, func(a, b Event) int { return b.At.Compare(a.At) })
	s.Progress = s.Progress[:min(len(s.Progress), shownUnits)]
	y, m, d := now.Date()
	midnight := minute(time.Date(y, m, d, 0, 0, 0, 0, now.Location()))
	first := now.Add(-(shownHours - 1) * time.Hour)
	hours := map[int]int{}
	recent := 0
	for at, n := range l.minutes {
		if at < minute(now)-keepMinutes {
			delete(l.minutes, at)
			continue
		}
		if at >= midnight {
			s.Today += n
		}
		if at > minute(now)-60 {
			s.LastHour += n
		}
		if at > minute(now.Add(-rateSpan)) {
			recent += n
		}
		if t := time.Unix(at*60, 0); t.After(now.Add(-shownHours * time.Hour)) {
			hours[t.Hour()] += n
		}
	}
	s.PerHour = recent * int(time.Hour/rateSpan)
	for i := range shownHours {
		h := first.Add(time.Duration(i) * time.Hour).Hour()
		s.Hours = append(s.Hours, Hour{h, hours[h]})
	}
	return s, nil
}

// run publishes the state to the pages whenever it changes, until ctx is done.
func (l *line) run(ctx context.Context) {
	pause := time.NewTicker(publishEvery)
	defer pause.Stop()
	refresh := time.NewTicker(refreshEvery)
	defer refresh.Stop()
	for n := 1; ; n++ {
		select {
		case <-ctx.Done():
			return
		case <-l.change:
		case <-refresh.C:
		}
		if l.limiter.Listeners() > 0 {
			if s, err := l.state(); err == nil {
				b, err := json.Marshal(s)
				if err != nil {
					panic("factory: " + err.Error()) // types of our own
				}
				l.events.Append(sse.Event{ID: strconv.Itoa(n), Name: "state", Data: b})
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-pause.C:
		}
	}
}

// page serves the page and what it reads. It is read-only: orders come over the control socket.
func (l *line) page(stop <-chan struct{}) http.Handler {
	files, err := fs.Sub(pageFiles, "page")
	if err != nil {
		panic("factory: " + err.Error()) // the directory is embedded
	}
	mux := http.NewServeMux()
	mux.Handle("GET /", http.FileServerFS(files))
	mux.HandleFunc("GET /state", func(w http.ResponseWriter, _ *http.Request) {
		s, err := l.state()
		if err != nil {
			http.Error(w, "the station cannot read its store", http.StatusInternalServerError)
			return
		}
		answer(w, http.StatusOK, s)
	})
	mux.HandleFunc("GET /events", func(w http.ResponseWriter, r *http.Request) {
		// The stream sets a deadline for every write; that of whole answers would end it.
		_ = http.NewResponseController(w).SetWriteDeadline(time.Time{})
		_ = http.NewResponseController(w).SetReadDeadline(time.Time{})
		_ = sse.Serve(w, r, l.events, sse.Options{Limiter: l.limiter, Done: stop})
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		mux.ServeHTTP(w, r)
	})
}

// errNoLine: an order that needs a running station.
var errNoLine = errors.New("no station is running in this state directory")
