package guard

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// demand is how the network's goroutines wake the guard's own thread.
type demand struct {
	event int // eventfd
}

func newDemand() (demand, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return demand{}, fmt.Errorf("eventfd: %w", err)
	}
	return demand{fd}, nil
}

func (d demand) raise() error {
	_, err := unix.Write(d.event, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	if errors.Is(err, unix.EAGAIN) { // raised often enough
		return nil
	}
	return err
}

// verdict is what is known of the daemon's end, for other nodes.
type verdict struct {
	over    chan struct{} // closed when the daemon is dead and its volumes are shut down, or cannot be
	failed  error         // why they cannot be; valid when over is closed
	took    time.Duration // of the end; likewise
	yielded chan struct{} // closed when a later guard of this node takes the port over
	yield   *sync.Once

	turn chan struct{} // has one token: who holds it looks at the devices, and reads and writes done
	done bool          // nothing was under way any more
	left int           // requests that were, at the first look
}

func newVerdict() verdict {
	v := verdict{over: make(chan struct{}), yielded: make(chan struct{}), yield: new(sync.Once), turn: make(chan struct{}, 1)}
	v.turn <- struct{}{}
	return v
}

func (v *verdict) ended(err error) {
	v.failed = err
	close(v.over)
}

func (v *verdict) isOver() bool {
	select {
	case <-v.over:
		return true
	default:
		return false
	}
}

// prove waits until the daemon is dead, its volumes are shut down, and its devices are still.
func (s *server) prove(ctx context.Context) error {
	select {
	case <-s.over:
	case <-ctx.Done():
		return fmt.Errorf("the daemon has not ended yet: %w", ctx.Err())
	}
	if s.failed != nil {
		return s.failed
	}
	select {
	case <-s.turn:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { s.turn <- struct{}{} }()
	if s.done {
		return nil
	}
	s.left = s.underWay()
	for volume, w := range s.devices { // nobody changes it after the end
		if err := w.still(ctx); err != nil {
			return fmt.Errorf("volume %s: %w", volume, err)
		}
	}
	s.done = true
	return nil
}

func (s *server) underWay() (sum int) {
	for _, w := range s.devices {
		n, _ := w.counted() // for the words only
		sum += n
	}
	return sum
}

// decide answers an order. The daemon is ended only if it is of that very incarnation.
func (s *server) decide(ctx context.Context, o order, peer string) answer {
	if o.verb == verbYield {
		return s.giveWay(ctx, peer)
	}
	first, latest := s.word.incarnations()
	if a, ok := s.net.inherited(o.incarnation, first); ok {
		return a
	}
	switch {
	case s.isOver() && first <= o.incarnation && o.incarnation <= latest:
	case o.incarnation == latest && !s.isOver() && s.word.load() == 0:
		return answer{words: fmt.Sprintf("incarnation %d has stopped all its I/O by itself, and lives: wait for its deadline", latest)}
	case o.incarnation == latest:
		s.log.Error("the daemon is ended by another node's order", "node", peer, "incarnation", o.incarnation, "reason", o.reason)
		if err := s.demand.raise(); err != nil {
			return answer{words: err.Error()}
		}
	default:
		return answer{words: fmt.Sprintf("incarnation %d is not guarded here: this is the guard of %d", o.incarnation, latest)}
	}
	began := Now()
	if err := s.prove(ctx); err != nil {
		return answer{words: err.Error()}
	}
	return answer{first, latest, fmt.Sprintf("killed, %d volumes shut down, %d devices still after %d requests left under way; %v to end it, %v in all",
		len(s.mounts), len(s.devices), s.left, s.took.Round(time.Microsecond), (Now() - began).Round(time.Microsecond))}
}

// giveWay leaves the port to the guard of a later daemon of this node, with what it has to know.
func (s *server) giveWay(ctx context.Context, peer string) answer {
	first, latest := s.word.incarnations()
	switch {
	case peer != s.net.identity.Load().name:
		return answer{words: "only a guard of this node may have the port"}
	case !s.isOver():
		return answer{words: "the daemon of this guard lives"}
	case latest == 0:
		return answer{words: "the daemon of this guard had no incarnation; the port is free at once"}
	}
	if err := s.prove(ctx); err != nil {
		return answer{words: err.Error()}
	}
	return answer{first, latest, "an earlier guard of this node said so"}
}
