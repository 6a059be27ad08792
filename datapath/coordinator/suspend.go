package coordinator

import (
	"context"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// ErrSuspended says that changes of the name space are suspended, and that the caller has waited for as long as may be.
var ErrSuspended = error(&sentinel{"changes of the volume's images are suspended", unix.EBUSY})

// maxSuspended bounds the changes that wait for the end of a suspension; more fail at once.
const maxSuspended = 256

// Suspension keeps the name space as it is: changes of it wait, or fail. I/O goes on, and what it allocates.
type Suspension struct {
	ID    string        // says which
	Why   string        // for the error of a change that has waited in vain
	Wait  time.Duration // of a change; 0: it fails at once
	Until time.Time     // it ends by itself then

	Snapshot string // what it is for: the snapshot of that name can be made and deleted
}

// Refuse is the error of a change that has waited for as long as may be.
func (s *Suspension) Refuse() error {
	if s.Wait == 0 {
		return fmt.Errorf("%w: %s", ErrSuspended, s.Why)
	}
	return fmt.Errorf("%w: %s; it was waited for %v", ErrSuspended, s.Why, s.Wait)
}

// suspension is the present one. The zero value is none.
type suspension struct {
	mu      sync.Mutex // guards what follows
	now     *Suspension
	lifted  chan struct{} // closed when now is not any more
	waiting int
}

// Suspend begins a suspension, in the place of another one; a change that runs may end meanwhile. nil lifts it.
func (c *Coordinator) Suspend(s *Suspension) {
	p := &c.suspension
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case s != nil && p.now != nil && *s == *p.now:
		return
	case p.now != nil:
		close(p.lifted)
	}
	if p.now, p.lifted = s, nil; s != nil {
		p.lifted = make(chan struct{})
	}
}

// Suspended is the ID of the present suspension, "" without one.
func (c *Coordinator) Suspended() string {
	p := &c.suspension
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.now == nil || !time.Now().Before(p.now.Until) {
		return ""
	}
	return p.now.ID
}

// unsuspended returns when the name space may be changed, or that snapshot, "" for none. It is called without a lock, and before the call is counted
// in, so that a term can end meanwhile.
func (c *Coordinator) unsuspended(ctx context.Context, snapshot string) error {
	began := time.Now()
	for {
		s, lifted, err := c.suspension.join(snapshot)
		if s == nil || err != nil {
			return err
		}
		err = c.awaitLifted(ctx, s, lifted, began)
		c.suspension.leave()
		if err != nil {
			return err
		}
	}
}

// join counts a caller among those that wait; s is nil when it need not.
func (p *suspension) join(snapshot string) (s *Suspension, lifted <-chan struct{}, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.now == nil || snapshot != "" && snapshot == p.now.Snapshot || !time.Now().Before(p.now.Until):
		return nil, nil, nil
	case p.waiting >= maxSuspended:
		return nil, nil, fmt.Errorf("%w: %s; %d changes wait already", ErrSuspended, p.now.Why, p.waiting)
	}
	p.waiting++
	return p.now, p.lifted, nil
}

func (p *suspension) leave() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.waiting--
}

func (c *Coordinator) awaitLifted(ctx context.Context, s *Suspension, lifted <-chan struct{}, began time.Time) error {
	left, end := s.Wait-time.Since(began), time.Until(s.Until)
	timer := time.NewTimer(min(left, end))
	defer timer.Stop()
	select {
	case <-lifted:
		return nil
	case <-c.life.Done():
		return errEnded
	case <-ctx.Done():
		return fmt.Errorf("%w: %s: %w", ErrSuspended, s.Why, ctx.Err())
	case <-timer.C:
	}
	if left >= end {
		return nil // it has ended by itself
	}
	return s.Refuse()
}
