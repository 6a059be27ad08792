package detector

import "time"

// maxSpans bounds how many unobserved spans are kept; the two oldest become one when there are more.
const maxSpans = 256

// ear knows when nobody listened.
type ear struct {
	period time.Duration // how long grace lasts
	late   time.Duration // a tick this long after the one before is late
	limit  time.Duration // of grace in a row

	last       time.Duration // tick
	graceFrom  time.Duration // 0: no grace
	graceUntil time.Duration
	unseen     spans // when nothing was stamped
	unasked    spans // when we did not beat either, so that nobody answered; unseen is part of it
}

// spans are in order, and apart from each other.
type spans []Span

// listen takes a tick, and tells whether there is grace now.
func (e *ear) listen(t Tick, bounded bool) bool {
	late, length := false, t.Now-e.last
	if e.last != 0 && t.Now-e.last > e.late {
		late = true
		gone := Span{e.last + e.late, t.Now}
		e.unasked.add(gone)
		if !t.Kernel {
			e.unseen.add(gone)
		}
	}
	if t.Blind.To > t.Blind.From {
		late, length = true, max(length, t.Blind.To-t.Blind.From)
		e.unseen.add(t.Blind)
		e.unasked.add(t.Blind)
	}
	e.last = t.Now
	switch {
	case late:
		return e.extend(t.Now, bounded && length < e.limit)
	case t.Now >= e.graceUntil:
		e.graceFrom = 0
	}
	return t.Now < e.graceUntil
}

// extend begins grace, or makes it last for another period. If it is bounded, then after too much of it in a row
// there is none at this tick.
func (e *ear) extend(now time.Duration, bounded bool) bool {
	if e.graceFrom == 0 {
		e.graceFrom = now
	}
	e.graceUntil = now + e.period
	if bounded && now-e.graceFrom >= e.limit {
		e.graceFrom = now
		return false
	}
	return true
}

// add may be given a span that overlaps with the latest ones.
func (l *spans) add(s Span) {
	have := *l
	for n := len(have); n > 0 && have[n-1].To >= s.From; n = len(have) {
		s.From, s.To = min(s.From, have[n-1].From), max(s.To, have[n-1].To)
		have = have[:n-1]
	}
	have = append(have, s)
	if len(have) > maxSpans {
		have[1].From = have[0].From
		have = have[1:]
	}
	*l = have
}

// within is how much of the time between from and to is in the spans.
func (l spans) within(from, to time.Duration) time.Duration {
	var sum time.Duration
	for i := len(l) - 1; i >= 0 && l[i].To > from; i-- {
		sum += max(min(l[i].To, to)-max(l[i].From, from), 0)
	}
	return sum
}
