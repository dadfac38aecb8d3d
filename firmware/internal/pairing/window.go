package pairing

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// Bounds of pairing windows.
const (
	WindowTime       = 60 * time.Second
	FirstStartTime   = 10 * time.Minute
	firstStartMinute = time.Minute
)

// What people are told.
const (
	howToOpen = "press the button of the device, run \"cloudrestd pair --open\" on it, open a window from a device that is paired, or use an invitation or the code on the label"
	howToUndo = "if that was not you, remove it from the list of clients (DELETE /.cloudrest/v1/clients/%s as owner, or \"cloudrestd pair --revoke %s\" on the device)"
)

// Errors of Open.
var (
	ErrWindow = errors.New("another pairing window is open")
	ErrRole   = errors.New("not a role that can be given here")
	ErrWay    = errors.New("a window is opened by button, cli or client")
)

// OpenOptions say more about a window.
type OpenOptions struct {
	Role    Role   // of who pairs in it; "" is owner, and member if a client opens the window
	Confirm bool   // a person confirms each asker; always so where there is a screen: cli and client
	By      Client // who opens it, if the way is client
}

type window struct {
	way      string
	by       string // ID of the client that opened it
	role     Role   // to be given; "": the default of the way
	ceiling  Role   // nobody gets more
	confirm  bool
	until    time.Time
	attempts int
}

// Open opens a pairing window of 60 s and returns its end. While it is open, Open by the same way makes it last longer;
// button and cli take over another's. Errors: ErrWay, ErrRole; ErrWindow when a client finds another's open.
func (p *Pairing) Open(way string, o OpenOptions) (time.Time, error) {
	w := &window{way: way, role: o.Role, ceiling: Owner, confirm: o.Confirm}
	switch way {
	case WayButton:
	case WayCLI:
		w.confirm = true
	case WayClient:
		w.confirm, w.by, w.ceiling = true, o.By.ID, o.By.Role
		if w.role == "" {
			w.role = Member
		}
		if o.By.Role.rank() < Member.rank() {
			return time.Time{}, ErrRole
		}
	default:
		return time.Time{}, fmt.Errorf("%w, not by %.20q", ErrWay, way)
	}
	if w.role != "" && w.role.rank() == 0 || w.role.rank() > w.ceiling.rank() {
		return time.Time{}, ErrRole
	}
	now := p.begin()
	defer p.end()
	if way == WayClient { // it may have been revoked in this moment
		if r := p.clients.Load().byID(w.by); r == nil || r.Role != o.By.Role {
			return time.Time{}, ErrRole
		}
	}
	w.until = now.Add(WindowTime)
	if is := p.win; is != nil {
		switch {
		case is.way == way && is.by == w.by && is.role == w.role && is.confirm == w.confirm:
			is.until = w.until
			return is.until, nil
		case is.way == WayFirstStart && way == WayButton && !w.confirm && w.role == "" && is.until.After(w.until):
			return is.until, nil // it is open as it is asked for, and for longer
		case way == WayClient:
			return time.Time{}, ErrWindow
		}
		p.closeWindow(EventWindowClosed, "another was opened", "")
	}
	p.open(w)
	return w.until, nil
}

// open begins a window. p.mu is held.
func (p *Pairing) open(w *window) {
	p.win, p.winner = w, winner{}
	detail := "by " + w.way
	if w.confirm {
		detail += ", with confirmation"
	}
	p.record(SecurityEvent{Event: EventWindowOpened, Client: w.by, Detail: detail})
	p.tellWindow(true, "")
}

// closeWindow ends the window and all who ask in it, apart from those who wait for a person when only its time is
// over. event may be "" where another one tells it. p.mu is held.
func (p *Pairing) closeWindow(event, why, code string) {
	w := p.win
	if w == nil {
		return
	}
	p.win = nil
	if w.way == WayFirstStart {
		p.closeFirst()
	}
	timeOver := !p.cfg.Now().Before(w.until)
	for _, a := range p.asks {
		if a.window == w && (a.step == stepNonce || a.step == stepWaiting && !timeOver) {
			a.finish(gone("the pairing window was closed: " + why))
		}
	}
	if event != "" {
		p.record(SecurityEvent{Event: event, Client: w.by, Detail: why})
	}
	p.tellWindow(false, code)
}

func (p *Pairing) tellWindow(open bool, code string) {
	if p.cfg.OnWindow != nil {
		p.later = append(p.later, func() { p.cfg.OnWindow(open, code) })
	}
}

// closeBy closes the window for who.
func (p *Pairing) closeBy(who actor) error {
	p.begin()
	defer p.end()
	if p.win == nil {
		return nil
	}
	if who.role != Owner && (p.win.by == "" || p.win.by != who.id) {
		return errOwner
	}
	p.closeWindow(EventWindowClosed, "by "+who.String(), "")
	return nil
}

// Window is the pairing window of this moment.
type Window struct {
	Open    bool
	Until   time.Time
	Way     string
	Confirm bool
	Fresh   bool // it is the one of the first start
}

// Window returns the state of this moment.
func (p *Pairing) Window() Window {
	p.begin()
	defer p.end()
	return p.windowNow()
}

func (p *Pairing) windowNow() Window {
	w := p.win
	if w == nil {
		return Window{}
	}
	return Window{true, w.until, w.way, w.confirm, w.way == WayFirstStart}
}

// firstStart counts the minutes of the first-start window. Each is taken from the store before it begins.
type firstStart struct {
	begun  time.Time
	left   int // at begun
	stored int // left in the store; -1: unknown
}

func (f firstStart) nextMinute(now time.Time) time.Time {
	return f.begun.Add((now.Sub(f.begun)/firstStartMinute + 1) * firstStartMinute)
}

// startFirst opens the first-start window if there is time left for it. p.mu is held.
func (p *Pairing) startFirst(stored []byte) {
	left := 0
	if p.cfg.Fresh {
		left = int(FirstStartTime / firstStartMinute)
	}
	p.first.stored = -1
	var m mark
	if stored != nil && json.Unmarshal(stored, &m) == nil && m.Generation == p.cfg.Generation {
		left = min(m.Minutes, int(FirstStartTime/firstStartMinute))
		p.first.stored = m.Minutes
	}
	if left <= 0 || len(*p.clients.Load()) > 0 {
		return
	}
	p.first.begun, p.first.left = p.cfg.Now(), left
	if err := p.storeFirst(left - 1); err != nil {
		p.log.Warn("pairing at first start stays closed", "err", err)
		return
	}
	p.open(&window{way: WayFirstStart, ceiling: Owner, until: p.first.begun.Add(time.Duration(left) * firstStartMinute)})
}

// countFirst takes the minute that has begun. p.mu is held.
func (p *Pairing) countFirst(now time.Time) {
	left := p.first.left - 1 - int(now.Sub(p.first.begun)/firstStartMinute)
	if left >= p.first.stored {
		return
	}
	if err := p.storeFirst(max(left, 0)); err != nil {
		p.closeWindow(EventWindowClosed, "its time cannot be stored", "")
	}
}

func (p *Pairing) storeFirst(minutes int) error {
	if minutes == p.first.stored {
		return nil
	}
	err := p.commit(map[string][]byte{firstKey: mustJSON(mark{p.cfg.Generation, minutes})}, false, nil)
	if err == nil {
		p.first.stored = minutes
	}
	return err
}

// closeFirst closes the first-start window for good. p.mu is held.
func (p *Pairing) closeFirst() {
	if err := p.storeFirst(0); err != nil {
		p.log.Warn("remember that the first start is over", "err", err) // at most the minutes left come again
	}
}
