package uring

import (
	"context"
	"fmt"
)

// Do submits op on ring lane and waits for it; the result is op.Err. When ctx ends it cancels op and
// still waits, at most Options.Grace longer, so op and its buffer are the caller's again (but see
// Op.Held). It uses op.Done itself. Not for callbacks.
func (e *Engine) Do(ctx context.Context, lane int, op *Op) error {
	if lane < 0 || lane >= len(e.rings) {
		return fmt.Errorf("uring: ring %d of %d: %w", lane, len(e.rings), ErrInvalid)
	}
	r := e.rings[lane]
	done := make(chan struct{})
	op.Done = func(*Op) { close(done) }
	if err := r.Post(func() { r.Submit(op) }); err != nil {
		return err
	}
	select {
	case <-done:
	case <-ctx.Done():
		_ = r.mail.post(func() { r.Cancel(op) }, true)
		<-done
	}
	return op.Err
}
