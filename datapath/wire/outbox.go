package wire

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"lunar/datapath/layout/protocol"
	"lunar/datapath/wire/wirepb"
)

// outbox is what a session has to tell its node, in order, over as many streams as that takes. It is
// plain state; the session's mutex guards it.
type outbox struct {
	window int // bytes that may be under way, and not acknowledged

	number uint64    // of the letter that was sent last
	queue  []*letter // not sent on this stream, in order
	flying []*letter // sent on this stream, not acknowledged, in order
	bytes  int       // of flying
	boxes  map[uint32]*box
}

// box is what concerns one holder.
type box struct {
	open  map[uint64]*letter  // recalls that are not answered, by their number
	told  map[uint64]struct{} // recalls that were told to the node, or will be, and no grant has ended
	fresh *letter             // the publication in queue that was never sent
	order int                 // grows with each recall
}

// letter is a recall, or one or more grants. It is numbered when it is sent first, and then stays as it is.
type letter struct {
	number uint64
	holder uint32
	size   int

	recall *protocol.Recall
	until  time.Time // of the recall; zero: for ever
	answer chan error

	grants *publication
	order  int           // box.order when grants joined the queue
	sent   chan struct{} // closed when an Attach's grant was sent; nil for others
}

func newOutbox(window int) outbox { return outbox{window: window, boxes: map[uint32]*box{}} }

// add begins with a holder: what it is granted first goes out before anything else for it. sent is
// closed when it went.
func (o *outbox) add(holder uint32, g protocol.Grant) (sent <-chan struct{}) {
	o.boxes[holder] = &box{open: map[uint64]*letter{}, told: map[uint64]struct{}{}}
	l := &letter{holder: holder, grants: newPublication(g), sent: make(chan struct{})}
	o.queue = append(o.queue, l)
	return l.sent
}

// remove ends with a holder. Its open recalls get that answer.
func (o *outbox) remove(holder uint32, answer error) {
	b := o.boxes[holder]
	if b == nil {
		return
	}
	for _, l := range b.open {
		l.answer <- answer
	}
	delete(o.boxes, holder)
	o.queue = slices.DeleteFunc(o.queue, func(l *letter) bool { return l.holder == holder })
}

// recall queues a recall for a holder that there is; its answer comes on the letter's channel, once.
func (o *outbox) recall(holder uint32, r protocol.Recall, until time.Time) *letter {
	b := o.boxes[holder]
	b.order++
	l := &letter{holder: holder, recall: &r, until: until, answer: make(chan error, 1), size: 64}
	b.open[r.Number], b.told[r.Number] = l, struct{}{}
	o.queue = append(o.queue, l)
	return l
}

// cancel forgets a recall whose caller waits no longer.
func (o *outbox) cancel(l *letter) {
	b := o.boxes[l.holder]
	if b == nil || b.open[l.recall.Number] != l {
		return
	}
	delete(b.open, l.recall.Number)
	o.queue = slices.DeleteFunc(o.queue, func(q *letter) bool { return q == l })
	if l.number == 0 {
		delete(b.told, l.recall.Number)
	}
}

// answered ends a recall, if it is open.
func (o *outbox) answered(holder uint32, number uint64, err error) {
	b := o.boxes[holder]
	if b == nil || b.open[number] == nil {
		return
	}
	l := b.open[number]
	delete(b.open, number)
	// On a new stream it may wait to be told again.
	o.queue = slices.DeleteFunc(o.queue, func(q *letter) bool { return q == l })
	l.answer <- err
}

// publish queues a grant for a holder that there is, together with those of it that wait. It moves
// behind a later recall of that holder then, never before one.
func (o *outbox) publish(holder uint32, g protocol.Grant) {
	b := o.boxes[holder]
	if _, told := b.told[g.Ends]; !told {
		g.Ends = 0
	}
	delete(b.told, g.Ends)
	l := b.fresh
	if l == nil {
		l = &letter{holder: holder, grants: newPublication(g), order: b.order}
		b.fresh = l
		o.queue = append(o.queue, l)
		return
	}
	l.grants.add(g)
	if l.order != b.order {
		l.order = b.order
		o.queue = slices.DeleteFunc(o.queue, func(q *letter) bool { return q == l })
		o.queue = append(o.queue, l)
	}
}

// next is the letter to send now, or nil: nothing waits, or the node has to acknowledge first.
func (o *outbox) next() *letter {
	for len(o.queue) > 0 && o.bytes < o.window {
		l := o.queue[0]
		if l.grants != nil && l.number == 0 {
			o.unfold()
			continue
		}
		o.queue = slices.Delete(o.queue, 0, 1)
		if l.number == 0 {
			o.number++
			l.number = o.number
		}
		o.flying = append(o.flying, l)
		o.bytes += l.size
		return l
	}
	return nil
}

// unfold makes the publication at the front a numbered letter per grant.
func (o *outbox) unfold() {
	front := o.queue[0]
	if b := o.boxes[front.holder]; b != nil && b.fresh == front {
		b.fresh = nil
	}
	var letters []*letter
	for _, g := range front.grants.grants() {
		o.number++
		letters = append(letters, &letter{number: o.number, holder: front.holder, size: size(g), grants: newPublication(g), sent: front.sent})
	}
	o.queue = slices.Replace(o.queue, 0, 1, letters...)
}

// acknowledged forgets what the node has received. Recalls stay until they are answered.
func (o *outbox) acknowledged(received uint64) {
	n := 0
	for n < len(o.flying) && o.flying[n].number <= received {
		o.bytes -= o.flying[n].size
		n++
	}
	o.flying = slices.Delete(o.flying, 0, n)
}

// resume begins a new stream to a node that has received up to a number: what it lacks is sent again,
// and every open recall that it may not have answered.
func (o *outbox) resume(received uint64) {
	again := map[*letter]bool{}
	for _, b := range o.boxes {
		for _, l := range b.open {
			again[l] = l.number != 0
		}
	}
	waiting := map[*letter]bool{}
	for _, l := range append(o.flying, o.queue...) {
		switch {
		case o.boxes[l.holder] == nil:
		case l.number == 0:
			waiting[l] = true
		case l.number > received:
			again[l] = l.recall == nil || o.boxes[l.holder].open[l.recall.Number] == l
		}
	}
	rest := slices.DeleteFunc(o.queue, func(l *letter) bool { return !waiting[l] })
	maps.DeleteFunc(again, func(_ *letter, on bool) bool { return !on })
	o.queue = slices.SortedFunc(maps.Keys(again), func(a, b *letter) int { return cmp.Compare(a.number, b.number) })
	o.queue = append(o.queue, rest...)
	o.flying, o.bytes = nil, 0
}

// messages are what a numbered letter is on the wire.
func (l *letter) messages(now time.Time) []*wirepb.ToNode {
	if l.recall == nil {
		return parts(l.number, l.holder, l.grants.last)
	}
	patience := time.Duration(0)
	if !l.until.IsZero() {
		patience = max(time.Millisecond, l.until.Sub(now))
	}
	return []*wirepb.ToNode{recallOut(l.number, l.holder, *l.recall, patience)}
}
