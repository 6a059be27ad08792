package trace

import (
	"math/bits"
	"time"
)

// Buckets is how many classes of durations are counted: class 0 has those below 1,024 ns, class i those of 2^(i+9) up to
// 2^(i+10) ns, the last one also all above.
const Buckets = 28

// Histogram counts durations by powers of two.
type Histogram struct {
	Sum     int64 // ns
	Buckets [Buckets]uint64
}

func (h *Histogram) add(ns int64) {
	h.Sum += ns
	h.Buckets[min(max(bits.Len64(uint64(ns))-10, 0), Buckets-1)]++
}

// Add counts all of o too.
func (h *Histogram) Add(o *Histogram) {
	h.Sum += o.Sum
	for i, n := range o.Buckets {
		h.Buckets[i] += n
	}
}

// Count is how many durations there are.
func (h *Histogram) Count() (n uint64) {
	for _, c := range h.Buckets {
		n += c
	}
	return n
}

// OpCounts are the commands of one kind.
type OpCounts struct {
	Bytes uint64
	Times Histogram // from arrival to answer
}

// Counts are what was counted of an initiator on a LUN.
type Counts struct {
	Ops    [NumOps]OpCounts
	Stages [NumStages]Histogram
}

// Add counts all of o too.
func (c *Counts) Add(o *Counts) {
	for i := range c.Ops {
		c.Ops[i].Bytes += o.Ops[i].Bytes
		c.Ops[i].Times.Add(&o.Ops[i].Times)
	}
	for i := range c.Stages {
		c.Stages[i].Add(&o.Stages[i])
	}
}

// Key names an initiator and a LUN. The empty one is for those beyond MaxSeries.
type Key struct {
	Initiator, Target string
	LUN               uint16
}

// series is what is counted since the last look.
type series struct {
	key    Key
	refs   int // connections that use it
	dirty  bool
	counts Counts
}

// overflow is the number of the series for what is beyond MaxSeries.
const overflow = 1

// Open is the number of the series of an initiator and a LUN, as the eight bytes of SAM-5 §4.7 name it. A connection
// opens it once, and closes it.
func (l *Lane) Open(initiator, target string, lun uint64) uint32 {
	key := Key{Initiator: initiator, Target: target, LUN: lunNumber(lun)}
	n, known := l.byKey[key]
	if !known {
		n = l.place()
		if n == overflow {
			return n
		}
		l.byKey[key], l.all[n] = n, &series{key: key}
	}
	l.all[n].refs++
	return n
}

// Close ends a connection's use of a series.
func (l *Lane) Close(n uint32) {
	if n > overflow {
		l.all[n].refs--
	}
}

// place is a free number, or overflow.
func (l *Lane) place() uint32 {
	if len(l.all) < MaxSeries {
		l.all = append(l.all, nil)
		return uint32(len(l.all) - 1)
	}
	if len(l.gaps) == 0 {
		l.sweep()
	}
	if len(l.gaps) == 0 {
		return overflow
	}
	n := l.gaps[len(l.gaps)-1]
	l.gaps = l.gaps[:len(l.gaps)-1]
	return n
}

// sweepPeriod bounds what it costs to look for series that nobody uses.
const sweepPeriod = int64(time.Second)

// sweep frees the series of connections that are gone.
func (l *Lane) sweep() {
	now := l.now()
	if now-l.swept < sweepPeriod && l.swept != 0 {
		return
	}
	l.swept = now
	for i := overflow + 1; i < len(l.all); i++ {
		if s := l.all[i]; s != nil && s.refs == 0 && !s.dirty {
			delete(l.byKey, s.key)
			l.all[i] = nil
			l.gaps = append(l.gaps, uint32(i))
		}
	}
}

// lunNumber is the LUN by the peripheral device or the flat space addressing method, SAM-5 §4.7.
func lunNumber(lun uint64) uint16 {
	n := uint16(lun >> 48)
	if n>>14 == 0 {
		return n & 0xff
	}
	return n & 0x3fff
}
