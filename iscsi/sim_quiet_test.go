package iscsi

import (
	"slices"

	"lunar/iscsi/pdu"
)

// checkQuiet holds when all is delivered: Progress, nothing left behind, the window open again.
func (w *world) checkQuiet() {
	for _, c := range w.conns {
		c.checkProgress()
	}
	w.cold = false
	w.tasks = slices.DeleteFunc(w.tasks, func(t *simTask) bool { return t.conn.phase == simOver })
	if len(w.tasks) > 0 {
		w.fail("Progress", "%v: task management function %d has no answer", w.tasks[0].conn, w.tasks[0].fn)
	}
	for _, r := range w.server.reactors {
		for _, c := range r.conns {
			w.checkIdle(c)
		}
	}
	w.checkEmpty()
	for lun, d := range w.disks {
		w.checkContent(d.data, lun, 0, w.clock+1)
	}
}

func (c *simConn) checkProgress() {
	switch {
	case c.fatal || c.mute || c.phase != simFull:
		c.fail("ConnectionEnds", "phase %d, fatal %v, mute %v", c.phase, c.fatal, c.mute)
		return
	case len(c.held)+len(c.lost)+len(c.nops)+len(c.texts) > 0 || c.logout:
		c.fail("Progress", "%d unsent, %d lost, %d pings, %d texts, window %x..%x, next %x", len(c.held), len(c.lost), len(c.nops), len(c.texts), c.exp, c.last, c.cmdSN)
	}
	for _, cmd := range slices.Clone(c.open) {
		if !cmd.vanish {
			c.fail("Progress", "tag %x sn %x has no status: CDB % x", cmd.itt, cmd.sn, cmd.cdb)
		}
		cmd.settle(false)
		c.dropJobs(cmd)
	}
}

// checkIdle looks into a connection of the server that has nothing to do.
func (w *world) checkIdle(c *conn) {
	for what, n := range map[string]int{
		"tasks": c.tasks.count, "running": c.running, "expecting": c.expecting, "bytes": c.bytes, "managing": c.managing,
		"window": c.win.used, "early": len(c.win.early), "queued": c.tx.queued, "in flight": int(c.counters.inFlight.Load()),
	} {
		if n != 0 {
			w.fail("NothingLeft", "%s: %d of %s", c.remote, n, what)
		}
	}
	for _, own := range w.conns {
		if own.sock == c.sock && own.cmdSN != c.win.expected {
			w.fail("ExpCmdSN", "%v: the target has %x, next is %x", own, c.win.expected, own.cmdSN)
		}
	}
}

// checkWindows: when all is delivered, no initiator takes a window for shut that is open, §4.2.2.1.
func (w *world) checkWindows() {
	for _, r := range w.server.reactors {
		for _, c := range r.conns {
			for _, own := range w.conns {
				if own.sock == c.sock && own.phase == simFull && !own.doomed && !w.cold {
					w.checkWindow(own, &c.win)
				}
			}
		}
	}
}

func (w *world) checkWindow(own *simConn, win *window) {
	next := own.cmdSN
	for _, r := range own.held {
		if sn := r.head.CmdSN(); pdu.Before(sn, next) {
			next = sn
		}
	}
	if pdu.Before(own.last, next) && pdu.InWindow(next, win.expected, win.last()) {
		w.fail("WindowTold", "%v knows %x..%x, the target has %x..%x, next is %x", own, own.exp, own.last, win.expected, win.last(), next)
	}
}

// checkEmpty: buffers, tasks and frames are back.
func (w *world) checkEmpty() {
	if w.pool.used != 0 || len(w.pool.out) != 0 {
		w.fail("BuffersBack", "%d bytes are out", w.pool.used)
	}
	for _, l := range w.lanes {
		if len(l.flights) > 0 {
			w.fail("NothingLeft", "%d backend calls", len(l.flights))
		}
	}
	for _, r := range w.server.reactors {
		tasks, frames := 0, 0
		for t := r.tasks.free; t != nil && tasks <= simTaskStock; t = t.next {
			tasks++
		}
		for f := r.frames.free; f != nil && frames <= simFrameStock; f = f.next {
			frames++
		}
		if tasks != simTaskStock || frames != simFrameStock {
			w.fail("PoolsBack", "%d of %d tasks, %d of %d frames", tasks, simTaskStock, frames, simFrameStock)
		}
		if r.hungry.first != nil || len(r.dirty) > 0 {
			w.fail("NothingLeft", "commands wait for buffers, or connections to be flushed")
		}
	}
}

// The lanes' pools hold more than a seed needs, so that one that is missing shows.
const (
	simTaskStock  = 256
	simFrameStock = 2048
)

func (w *world) stock() {
	for _, r := range w.server.reactors {
		for range simTaskStock {
			t := new(task)
			t.cmd.Done = t.executed
			r.tasks.put(t)
		}
		for range simFrameStock {
			r.frames.put(new(frame))
		}
	}
}

// end sends everyone away: by logout, by the target's order, or by a cut.
func (w *world) end() {
	if w.failure != nil {
		return
	}
	w.leaving = true
	way := w.rnd.IntN(3)
	for _, c := range w.conns {
		switch c.doomed = true; way {
		case 0:
			c.sendLogout()
		case 1:
			c.severe()
		}
	}
	if way == 2 {
		w.server.onReactors((*reactor).askAllToLeave)
	}
	for range 40 {
		w.exhaust()
		w.tick()
	}
	if w.exhaust(); w.failure == nil {
		w.checkGone()
	}
}

func (w *world) checkGone() {
	w.checkEmpty()
	s := w.server
	if n := s.Connections(); n != 0 || len(w.conns) > 0 || len(s.Sessions()) > 0 || len(s.lobby.crowds) > 0 {
		w.fail("AllGone", "%d connections, %d sessions, %d wait", n, len(s.Sessions()), len(s.lobby.crowds))
	}
	for _, r := range s.reactors {
		if n := r.load.Load(); n != 0 || len(r.conns) > 0 {
			w.fail("AllGone", "lane %d has a load of %d", r.lane.Index(), n)
		}
	}
}
