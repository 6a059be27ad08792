package coordinator

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"lunar/datapath/layout"
	"lunar/datapath/layout/protocol"
)

// member is a holder and where it is.
type member struct {
	protocol.Holder
	node protocol.NodeID
}

// recalling is the recall of one operation's range from every holder.
type recalling struct {
	ready chan struct{} // closed when the range is returned
	asked chan error    // each holder's end, nil when it returned the range
	n     int           // of holders asked
	stop  context.CancelFunc
	all   sync.WaitGroup
}

// end returns when no holder is being asked any more: a recall that came after the grant that ends it
// would never end.
func (rc *recalling) end() {
	rc.stop()
	rc.all.Wait()
}

// begin asks every holder that has a part of op's range, all at once; nil when there is none.
func (im *image) begin(op *protocol.Op) *recalling {
	im.mu.Lock()
	defer im.mu.Unlock()
	asked := op.Awaited()
	if len(asked) == 0 {
		return nil
	}
	ctx, stop := context.WithCancel(im.c.life)
	rc := &recalling{ready: make(chan struct{}), asked: make(chan error, len(asked)), n: len(asked), stop: stop}
	im.returning[op] = rc.ready
	r := protocol.Recall{Call: im.call(), Number: op.Number, Range: op.Range}
	for _, id := range asked {
		h := im.holders[id]
		rc.all.Go(func() {
			err := im.c.ask(ctx, h, r)
			if err == nil {
				im.returned(op, id)
			}
			rc.asked <- err
		})
	}
	return rc
}

// returned notes that a holder has nothing in op's range any more.
func (im *image) returned(op *protocol.Op, id protocol.HolderID) {
	im.mu.Lock()
	defer im.mu.Unlock()
	if im.table.Returned(op, id) {
		im.run(op)
	}
}

// run lets op go on, which has its range returned; mu is locked.
func (im *image) run(op *protocol.Op) {
	if ready := im.returning[op]; ready != nil {
		close(ready)
		delete(im.returning, op)
	}
}

// wait returns nil when the range is returned. Without a way to fence, the first end that is no
// return is the end of the recall.
func (rc *recalling) wait(ctx, life context.Context) error {
	var errs []error
	for {
		select {
		case <-rc.ready:
			return nil
		case err := <-rc.asked:
			if errs = append(errs, err); len(errs) < rc.n {
				continue
			}
			select {
			case <-rc.ready:
				return nil
			default:
				return fmt.Errorf("%w: %w", ErrRecall, errors.Join(errs...))
			}
		case <-life.Done():
			return errEnded
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ErrRecall, ctx.Err())
		}
	}
}

// askAgain is how soon a holder that refused is asked again.
const askAgain = 100 * time.Millisecond

// ask recalls from one holder: again when it does not answer, and until its node is fenced where that
// can be had. nil when the holder has returned the range.
func (c *Coordinator) ask(ctx context.Context, h member, r protocol.Recall) error {
	until := time.Now().Add(c.opts.RecallTimeout)
	for fencing := false; ; {
		attempt, cancel := context.WithTimeout(ctx, c.opts.AnswerTimeout)
		err := h.Recall(attempt, r)
		late := attempt.Err() != nil
		cancel()
		overdue := !time.Now().Before(until)
		switch {
		case err == nil || ctx.Err() != nil:
			return err
		case errors.Is(err, protocol.ErrStale): // the holder knows a later term
			c.deposed(err)
			return err
		case c.opts.Fence == nil && (overdue || !late):
			return err
		case overdue && !fencing:
			c.fence(h.node)
			fencing = true
		}
		if !late {
			sleep(ctx, askAgain)
		}
	}
}

// deposed ends the term when a holder says that there is a later one.
func (c *Coordinator) deposed(err error) {
	if c.opts.Failed != nil {
		c.fail(fmt.Errorf("another coordinator has taken over: %w", err))
	}
}

// recall takes op's range back. When ctx ends before that, and the holders that do not answer can be
// fenced, that goes on: abandoned is then true, and op ends in the background.
func (im *image) recall(ctx context.Context, op *protocol.Op, r layout.Range) (abandoned bool, err error) {
	rc := im.begin(op) //nolint:contextcheck // a recall outlives its caller: it ends with the term
	if rc == nil {
		return false, nil
	}
	err = rc.wait(ctx, im.c.life)
	if err == nil || ctx.Err() == nil || im.c.life.Err() != nil || im.c.opts.Fence == nil {
		rc.end()
		im.forget(op)
		return false, err
	}
	im.c.background.Go(func() {
		_ = rc.wait(context.WithoutCancel(ctx), im.c.life)
		rc.end()
		im.forget(op)
		im.publish(r, op.Number)
		im.end(op)
	})
	return true, err
}

func (im *image) forget(op *protocol.Op) {
	im.mu.Lock()
	defer im.mu.Unlock()
	delete(im.returning, op)
}

// expel takes what a node held as returned.
func (im *image) expel(node protocol.NodeID) {
	im.mu.Lock()
	defer im.mu.Unlock()
	for id, h := range im.holders {
		if h.node == node {
			im.remove(id)
		}
	}
}

// remove ends a holder; mu is locked.
func (im *image) remove(id protocol.HolderID) {
	delete(im.holders, id)
	for _, op := range im.table.Leave(id) {
		im.run(op)
	}
}
