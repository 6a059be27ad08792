package trace

import (
	"math/bits"
	"sync/atomic"
	"time"
)

// Bounds.
const (
	// MaxMarks is how many commands of a lane are timed at a time; more are not.
	MaxMarks = 1 << 16
	// MaxSeries is how many pairs of an initiator and a LUN a lane counts apart; more are counted together, under an
	// empty Key.
	MaxSeries = 1 << 14
	// MaxSlow is how many of the slowest commands a lane keeps between two looks.
	MaxSlow = 64
)

// Lane times the commands of one lane.
type Lane struct {
	on    *atomic.Bool
	epoch time.Time

	commands []command // by mark; 0 is none
	free     uint32
	current  uint32   // starts in this callback, and has made no I/O yet
	starting uint32   // starts in this callback
	fresh    []uint32 // have I/O that the kernel has not
	reaped   int64    // when the present completions were reaped
	sent     int64    // when the answers that end now were sent

	all    []*series // by number; 0 is none, 1 has those beyond MaxSeries
	byKey  map[Key]uint32
	gaps   []uint32 // numbers that are free again
	dirty  []*series
	swept  int64
	slow   slowest
	missed uint64 // commands beyond MaxMarks
}

func newLane(t *Tracer) *Lane {
	l := &Lane{on: &t.on, epoch: t.epoch, commands: make([]command, 1, 256), byKey: map[Key]uint32{}}
	l.all = []*series{nil, {}}
	return l
}

func (l *Lane) now() int64 { return int64(time.Since(l.epoch)) + 1 }

// Now is the time, 0 while nothing is timed.
func (l *Lane) Now() int64 {
	if !l.on.Load() {
		return 0
	}
	return l.now()
}

// Begin marks a command whose header came at received, to be counted in a series; 0 when it is not timed. A command that
// waits for data from its initiator is decoded now, others when they start.
func (l *Lane) Begin(number uint32, received int64, cdb *[16]byte, bytes int, waits bool) uint32 {
	if received == 0 || number == 0 || !l.on.Load() {
		return 0
	}
	mark := l.free
	switch {
	case mark != 0:
		l.free = l.commands[mark].next
	case len(l.commands) >= MaxMarks:
		l.missed++
		return 0
	default:
		mark = uint32(len(l.commands))
		l.commands = append(l.commands, command{})
	}
	c := &l.commands[mark]
	*c = command{series: l.all[number], received: received, cdb: *cdb, opcode: cdb[0], bytes: int32(bytes)}
	if waits {
		c.decoded = l.now()
	}
	return mark
}

// Start says that the device server begins with a command; I/O that begins before Left is its.
func (l *Lane) Start(mark uint32) {
	if mark == 0 {
		return
	}
	l.commands[mark].started = l.now()
	l.current, l.starting = mark, mark
}

// Left says that the device server has returned.
func (l *Lane) Left() { l.current, l.starting = 0, 0 }

// Take is the command whose first I/O begins, 0 for none.
func (l *Lane) Take() uint32 {
	mark := l.current
	l.current = 0
	return mark
}

// Redirected says that a command, or a part of it, goes to the coordinator.
func (l *Lane) Redirected(mark uint32) {
	if mark != 0 && l.commands[mark].redirected == 0 {
		l.commands[mark].redirected = l.now()
	}
}

// Queued says that a command's I/O goes to the ring. In the callback in which the command starts that is at once, since
// nothing can have waited: the clock is not read again.
func (l *Lane) Queued(mark uint32) {
	if mark == 0 {
		return
	}
	c := &l.commands[mark]
	switch {
	case c.queued != 0:
	case l.starting == mark:
		c.queued = c.started
	default:
		c.queued = l.now()
	}
}

// Issued says that a command's I/O goes to the kernel with the next Entered.
func (l *Lane) Issued(mark uint32) {
	if mark != 0 && l.commands[mark].entered == 0 {
		l.fresh = append(l.fresh, mark)
	}
}

// Entered says that the kernel has what was issued.
func (l *Lane) Entered() {
	if len(l.fresh) == 0 {
		return
	}
	now := l.now()
	for _, mark := range l.fresh {
		if c := &l.commands[mark]; c.entered == 0 {
			c.entered = now
		}
	}
	l.fresh = l.fresh[:0]
}

// Reaped says that completions were taken from the kernel.
func (l *Lane) Reaped() { l.reaped = l.Now() }

// Completed says that a completion among these was of a command's I/O.
func (l *Lane) Completed(mark uint32) {
	if mark != 0 {
		l.commands[mark].completed = l.reaped
	}
}

// Executed says that the device server is done with a command. One whose only I/O went to the device was done then.
func (l *Lane) Executed(mark uint32, status uint8) {
	if mark == 0 {
		return
	}
	if l.starting == mark {
		l.current, l.starting = 0, 0
	}
	c := &l.commands[mark]
	c.status = status
	if !ops[c.opcode].simple || c.completed == 0 || c.redirected != 0 {
		c.executed = l.now()
	}
}

// Sent says that the commands whose End follows, until Resumed, were answered just now.
func (l *Lane) Sent() { l.sent = l.Now() }

// Resumed ends what Sent began: a command that ends otherwise is not counted.
func (l *Lane) Resumed() { l.sent = 0 }

// End gives the mark back.
func (l *Lane) End(mark uint32) {
	if mark == 0 {
		return
	}
	c := &l.commands[mark]
	if l.sent != 0 && c.started != 0 {
		l.count(c, l.sent)
	}
	c.series = nil
	c.next, l.free = l.free, mark
}

// count adds a command that was answered at now to its series.
func (l *Lane) count(c *command, now int64) {
	s := c.series
	if !s.dirty {
		s.dirty = true
		l.dirty = append(l.dirty, s)
	}
	var p passed
	c.split(&p, now)
	for left := p.has; left != 0; left &= left - 1 {
		i := bits.TrailingZeros8(left)
		s.counts.Stages[i].add(p.took[i])
	}
	took := p.at - c.received
	op := &s.counts.Ops[ops[c.opcode].kind]
	op.Bytes += uint64(c.bytes)
	op.Times.add(took)
	if took > l.slow.least {
		l.slow.keep(c, &p, took)
	}
}
