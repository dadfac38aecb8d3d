package admit

// line holds the waiters of one class: its clients in a ring, and in each client its
// tickets by age. Every step is O(1). A Gate's mutex guards it.
type line struct {
	clients map[string]*client // those with waiters
	next    *client            // whose turn it is
	queued  int
}

// client is one asker with at least one waiting ticket.
type client struct {
	name           string
	before, after  *client // ring
	oldest, newest *Ticket
	queued         int
}

// push puts t behind the other tickets of its client. A client without waiters joins
// the ring last, right behind whose turn it would be in a full round.
func (l *line) push(t *Ticket, name string) {
	c := l.clients[name]
	if c == nil {
		c = &client{name: name}
		if l.clients == nil {
			l.clients = make(map[string]*client)
		}
		l.clients[name] = c
		if l.next == nil {
			c.before, c.after, l.next = c, c, c
		} else {
			c.before, c.after = l.next.before, l.next
			c.before.after, c.after.before = c, c
		}
	}
	t.client, t.older, t.newer = c, c.newest, nil
	if c.newest != nil {
		c.newest.newer = t
	} else {
		c.oldest = t
	}
	c.newest = t
	c.queued++
	l.queued++
}

// advance passes the turn on.
func (l *line) advance() { l.next = l.next.after }

// remove takes a waiting ticket out, from wherever it stands.
func (l *line) remove(t *Ticket) {
	c := t.client
	if t.older != nil {
		t.older.newer = t.newer
	} else {
		c.oldest = t.newer
	}
	if t.newer != nil {
		t.newer.older = t.older
	} else {
		c.newest = t.older
	}
	t.client, t.older, t.newer = nil, nil, nil
	c.queued--
	l.queued--
	if c.queued > 0 {
		return
	}
	delete(l.clients, c.name)
	c.before.after, c.after.before = c.after, c.before
	switch {
	case c.after == c:
		l.next = nil
	case l.next == c:
		l.next = c.after
	}
}
