package uring

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Engine is a set of rings with a buffer pool and a table of files in common.
type Engine struct {
	opts  Options
	epoch time.Time
	pool  *Pool
	lent  pageSets
	rings []*Ring
	files indexes
	help  helper

	closing  sync.Once
	closeErr error
}

// Open starts an engine. Close ends it.
func Open(o Options) (*Engine, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	o = o.withDefaults()
	pool, err := newPool(o.PoolBytes)
	if err != nil {
		return nil, err
	}
	e := &Engine{opts: o, epoch: time.Now(), pool: pool, files: newIndexes(o.Files)}
	for i := range o.Rings {
		r, err := startRing(e, i)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("uring: ring %d: %w", i, err), e.Close(context.Background()))
		}
		e.rings = append(e.rings, r)
	}
	return e, nil
}

// Rings is the number of rings.
func (e *Engine) Rings() int { return len(e.rings) }

// Ring is ring i, from 0.
func (e *Engine) Ring(i int) *Ring { return e.rings[i] }

// Pool is the pool that every ring has registered.
func (e *Engine) Pool() *Pool { return e.pool }

// now is the engine's monotonic clock.
func (e *Engine) now() time.Duration { return time.Since(e.epoch) }

// each runs fn on every ring's thread, one after the other, and waits; rings that have stopped are
// passed over.
func (e *Engine) each(fn func(*Ring) error) error {
	var all error
	for _, r := range e.rings {
		done := make(chan error, 1)
		if r.mail.post(func() { done <- fn(r) }, true) == nil {
			all = errors.Join(all, <-done)
		}
	}
	return all
}

// Close refuses new work, lets what was submitted finish, closes the sockets that are still
// attached, and stops the threads. When ctx ends first it cancels what is left; what cannot be
// cancelled is abandoned after Options.Grace, its buffers kept from reuse, and an error says so. The pool's buffers
// are gone afterwards. A second call returns what the first did. Not for callbacks.
func (e *Engine) Close(ctx context.Context) error {
	e.closing.Do(func() { e.closeErr = e.close(ctx) })
	return e.closeErr
}

func (e *Engine) close(ctx context.Context) error {
	for _, r := range e.rings {
		r.beginClose()
	}
	for _, r := range e.rings {
		select {
		case <-r.stopped:
		case <-ctx.Done():
			r.beginAbort()
			<-r.stopped
		}
	}
	e.help.stop()
	var all error
	for _, r := range e.rings {
		all = errors.Join(all, r.closeErr)
	}
	return errors.Join(all, e.pool.close())
}

// indexes hands out the places of the file table.
type indexes struct {
	mu   *sync.Mutex // guards free
	free []int32
}

func newIndexes(n int) indexes {
	x := indexes{mu: new(sync.Mutex)}
	for i := n - 1; i >= 0; i-- {
		x.free = append(x.free, int32(i))
	}
	return x
}

func (x *indexes) take() (int32, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	n := len(x.free)
	if n == 0 {
		return 0, fmt.Errorf("uring: every place of the file table is taken; raise Options.Files: %w", errors.Join(ErrQueueFull, unix.ENFILE))
	}
	i := x.free[n-1]
	x.free = x.free[:n-1]
	return i, nil
}

func (x *indexes) give(i int32) {
	x.mu.Lock()
	x.free = append(x.free, i)
	x.mu.Unlock()
}
