package iscsi

import "time"

// reactor is the server's part on one lane. Its fields belong to the lane's thread, load excepted.
type reactor struct {
	server *Server
	lane   Lane
	clock  Clock
	now    time.Time // of the last tick: good enough for time limits
	spared bool      // the last tick held nobody to a time limit
	load   loadCount
	conns  []*conn
	dirty  []*conn // have answers to send at the end of the batch
	hungry taskQueue
	tasks  taskPool
	frames framePool

	complaints logLimit
}

func newReactor(s *Server, l Lane) *reactor {
	r := &reactor{server: s, lane: l, clock: noClock{}, now: time.Now()}
	if s.opts.Clock != nil {
		r.clock = s.opts.Clock(l.Index())
	}
	return r
}

func (r *reactor) install() {
	r.lane.OnBatch(r.batch)
	r.lane.OnTick(r.tick)
}

// batch runs after each batch of completions: whoever waits for a buffer gets another try, then
// every connection sends what it gathered.
func (r *reactor) batch() {
	r.feed()
	for i := 0; i < len(r.dirty); i++ {
		c := r.dirty[i]
		c.tx.dirty = false
		c.flush()
	}
	r.dirty = r.dirty[:0]
}

// feed starts the commands that wait for a buffer, in their order, while there are buffers. A
// connection that holds its share already does not hold up the others. A command that has stopped its
// connection's receiver goes before those that would ask for data: it could not come in.
func (r *reactor) feed() {
	starved := false
	for t := r.hungry.take(); t != nil; {
		next := t.next
		switch {
		case t.abandoned:
			t.conn.fed(t)
		case t.out.missing() && t.conn.starved != nil && t.conn.starved != t:
			r.hungry.push(t)
		case !starved && t.conn.provide(t):
			t.conn.fed(t)
		default:
			starved = starved || !t.conn.overBudget(t)
			r.hungry.push(t)
		}
		t = next
	}
}

// heldUp is a time between two ticks that is this lane's own fault, or the machine's.
const heldUp = time.Second

// tick holds the connections to their time limits; not after this lane was held up, when what they did meanwhile may
// still wait to be seen, but no two times in a row.
func (r *reactor) tick(now time.Time) {
	r.spared = now.Sub(r.now) > heldUp && !r.spared
	r.now = now
	if !r.spared {
		r.each(func(c *conn) { c.tick(now) })
	}
	r.batch()
}

func (r *reactor) enter(c *conn) {
	c.at = len(r.conns)
	r.conns = append(r.conns, c)
}

func (r *reactor) leave(c *conn) {
	end := len(r.conns) - 1
	last := r.conns[end]
	r.conns[c.at], last.at = last, c.at
	r.conns[end] = nil
	r.conns = r.conns[:end]
}

// each calls fn for every connection, in an order that their past decides alone; fn may end its own.
func (r *reactor) each(fn func(*conn)) {
	for i := len(r.conns) - 1; i >= 0; i-- {
		fn(r.conns[i])
	}
}

func (r *reactor) askAllToLeave() { r.each((*conn).askToLeave) }

func (r *reactor) cutAll() { r.each(func(c *conn) { c.close(errCut) }) }

// complaintsPerSecond bounds what hostile clients can make one lane log.
const complaintsPerSecond = 10

// logLimit lets complaintsPerSecond messages through.
type logLimit struct {
	second time.Time
	count  int
	missed int
}

// allow tells whether to log now, and how many messages were left out since the last one.
func (l *logLimit) allow(now time.Time) (missed int, ok bool) {
	if now.Sub(l.second) >= time.Second {
		l.second, l.count = now, 0
	}
	if l.count >= complaintsPerSecond {
		l.missed++
		return 0, false
	}
	l.count++
	missed, l.missed = l.missed, 0
	return missed, true
}
