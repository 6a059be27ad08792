package wire

import (
	"context"
	"sync"
	"time"

	"lunar/datapath/layout/protocol"
)

// attachment is an image that this node has attached, or is attaching, through a Client.
type attachment struct {
	number uint32
	h      protocol.Holder
	first  chan protocol.Grant // takes the first grant; of one

	mu      sync.Mutex // guards what follows
	granted bool
	recalls map[uint64]*returning // by number, until a grant ends them
}

// returning is a recall that the holder executes, or has answered.
type returning struct {
	cancel context.CancelFunc
	done   chan struct{} // closed when err is set
	err    error
}

func newAttachment(number uint32, h protocol.Holder) *attachment {
	return &attachment{number: number, h: h, first: make(chan protocol.Grant, 1), recalls: map[uint64]*returning{}}
}

// grant takes the first grant, or hands a later one to the holder. A recall that the coordinator ended
// unanswered is given up first, so that the holder does not hear of it after its end.
func (a *attachment) grant(g protocol.Grant) {
	a.mu.Lock()
	if !a.granted {
		a.granted = true
		a.mu.Unlock()
		a.first <- g
		return
	}
	r := a.recalls[g.Ends]
	delete(a.recalls, g.Ends)
	a.mu.Unlock()
	if r != nil {
		r.cancel()
		<-r.done
	}
	a.h.Publish(g)
}

// recall has the holder return a range, once however often it is told; answer gets what came of it,
// from another goroutine if run started one.
func (a *attachment) recall(ctx context.Context, m protocol.Recall, patience time.Duration, run func(func()), answer func(error)) {
	a.mu.Lock()
	r, known := a.recalls[m.Number]
	if !known {
		r = &returning{done: make(chan struct{})}
		if patience > 0 {
			ctx, r.cancel = context.WithTimeout(ctx, patience)
		} else {
			ctx, r.cancel = context.WithCancel(ctx)
		}
		a.recalls[m.Number] = r
	}
	a.mu.Unlock()
	if known {
		select {
		case <-r.done:
			answer(r.err)
		default: // it will be answered
		}
		return
	}
	run(func() {
		defer r.cancel()
		r.err = a.h.Recall(ctx, m)
		close(r.done)
		answer(r.err)
	})
}
