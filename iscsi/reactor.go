package iscsi

import "time"

// reactor is the server's part on one lane. Its fields belong to the lane's thread, load excepted.
type reactor struct {
	server *Server
	lane   Lane
	now    time.Time // of the last tick: good enough for time limits
	load   loadCount
	conns  map[*conn]struct{}
	dirty  []*conn // have answers to send at the end of the batch
	hungry taskQueue
	tasks  taskPool
	frames framePool
}

func newReactor(s *Server, l Lane) *reactor {
	return &reactor{server: s, lane: l, now: time.Now(), conns: map[*conn]struct{}{}}
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
// connection that holds its share already does not hold up the others.
func (r *reactor) feed() {
	starved := false
	for t := r.hungry.take(); t != nil; {
		next := t.next
		switch {
		case t.abandoned:
			t.conn.release(t)
		case !starved && t.conn.provide(t):
			t.hungry = false
			t.conn.advance(t)
		default:
			starved = starved || !t.conn.overBudget(t)
			r.hungry.push(t)
		}
		t = next
	}
}

func (r *reactor) tick(now time.Time) {
	r.now = now
	for c := range r.conns {
		c.tick(now)
	}
	r.batch()
}

func (r *reactor) askAllToLeave() {
	for c := range r.conns {
		c.askToLeave()
	}
}

func (r *reactor) cutAll() {
	for c := range r.conns {
		c.close(errCut)
	}
}
