package daemon

import (
	"context"
	"fmt"
	"time"

	"lunar/datapath/uring"
	"lunar/iscsi"
)

// lane lets a ring carry iSCSI connections. Only Attach needs an adapter: its result is an
// interface there, and nil must stay nil.
type lane struct{ *uring.Ring }

// Attach implements iscsi.Lane.
func (l lane) Attach(fd int) (iscsi.Socket, error) {
	s, err := l.Ring.Attach(fd)
	if err != nil {
		return nil, err
	}
	return socket{s}, nil
}

// socket makes an interface of what Pages returns, for the same reason.
type socket struct{ *uring.Socket }

// Pages implements iscsi.Socket.
func (s socket) Pages(n int) (iscsi.Pages, error) {
	p, err := s.Socket.Pages(int64(n))
	if err != nil {
		return nil, err
	}
	return p, nil
}

func lanes(e *uring.Engine) []iscsi.Lane {
	out := make([]iscsi.Lane, e.Rings())
	for i := range out {
		out[i] = lane{e.Ring(i)}
	}
	return out
}

// lanesAnswer checks that every ring still runs callbacks: the daemon's sign of life.
func lanesAnswer(ctx context.Context, e *uring.Engine, within time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	answers := make(chan struct{}, e.Rings())
	for i := range e.Rings() {
		if err := e.Ring(i).Post(func() { answers <- struct{}{} }); err != nil {
			return fmt.Errorf("lane %d: %w", i, err)
		}
	}
	for n := range e.Rings() {
		select {
		case <-answers:
		case <-ctx.Done():
			return fmt.Errorf("only %d of %d lanes answered within %v", n, e.Rings(), within)
		}
	}
	return nil
}
