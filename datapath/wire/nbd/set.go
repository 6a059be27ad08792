package nbd

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"lunar/datapath/layout/protocol"
)

// connSet is a client's set of connections; it works as a whole, or not at all.
type connSet struct {
	opts   ClientOptions
	size   int64
	flags  Flags
	conns  []*clientConn
	next   atomic.Uint32
	broken atomic.Pointer[error]
	wg     sync.WaitGroup // the connections' goroutines
}

// openSet connects: once, and then as often as the server lets several connections be one client.
func openSet(ctx context.Context, o ClientOptions) (*connSet, error) {
	name := o.Export()
	first, err := o.dial(ctx, name)
	if err != nil {
		return nil, err
	}
	s := &connSet{opts: o, size: first.size, flags: first.flags}
	sessions := make([]*session, 1, o.Connections)
	sessions[0] = first
	if first.flags&CanMultiConn != 0 {
		sessions, err = o.dialMore(ctx, name, sessions)
	}
	if err != nil {
		for _, x := range sessions {
			_ = x.raw.Close()
		}
		return nil, err
	}
	for _, x := range sessions {
		s.conns = append(s.conns, newClientConn(s, x))
	}
	for _, c := range s.conns {
		c.start()
	}
	return s, nil
}

// dialMore opens the others, all at once.
func (o ClientOptions) dialMore(ctx context.Context, name string, sessions []*session) ([]*session, error) {
	more := make([]*session, o.Connections-1)
	errs := make([]error, len(more))
	var wg sync.WaitGroup
	for i := range more {
		wg.Go(func() { more[i], errs[i] = o.dial(ctx, name) })
	}
	wg.Wait()
	for _, x := range more {
		if x != nil {
			sessions = append(sessions, x)
		}
	}
	return sessions, errors.Join(errs...)
}

// pick takes the connections in turn.
func (s *connSet) pick() *clientConn {
	return s.conns[int(s.next.Add(1))%len(s.conns)]
}

// fail ends the set, once; its calls end when nothing uses their buffers any more.
func (s *connSet) fail(err error) {
	if !s.broken.CompareAndSwap(nil, &err) {
		return
	}
	for _, c := range s.conns {
		c.stop()
	}
}

// reason is what calls get from a set that is broken.
func (s *connSet) reason() error {
	err := *s.broken.Load()
	if errors.Is(err, ErrClosed) {
		return err
	}
	return fmt.Errorf("nbd: connection to %s lost: %w: %w", s.opts.Address, protocol.ErrUnreachable, err)
}

// disconnect says good-bye where nothing is under way, and ends the set.
func (s *connSet) disconnect() {
	for _, c := range s.conns {
		c.goodbye()
	}
	s.fail(ErrClosed)
}
