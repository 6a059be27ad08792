package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"lunar/appliance/cluster"
	"lunar/appliance/fence/guard"
	"lunar/datapath/coordinator"
	"lunar/datapath/layout/protocol"
)

// The bounds of a seat's steps.
const (
	followLimit   = 30 * time.Second // for a coordinator to take this node's images
	handOverLimit = 15 * time.Second // for the unmount of a planned end; then the file system is shut down
	recordLimit   = 2 * time.Second  // for a step to be recorded in the database
	settleAgain   = 100 * time.Millisecond
)

// seat is a volume's coordination as this node takes part in it. One goroutine, run, does what the latest
// news asks for: takes the volume over, hands it over, or follows another node's coordinator.
type seat struct {
	node *Node
	v    *volumeState
	log  *slog.Logger
	wake chan struct{}

	mu    sync.Mutex // guards what follows
	won   *cluster.Term
	order *departure
	seen  cluster.Seat
	here  *tenure // this node's own term, from its mount to its end
	fault error   // why the last step failed
	tried error   // why this node's last try to take over failed
	busy  bool    // a step is under way

	overhaul    *overhaul // is due at the next take-over, or under way
	overhauling bool      // a tool may be at work on the device

	abort  context.CancelFunc // ends a take-over that is under way; nil: there is none
	ending atomic.Bool        // the guard has given the mount up, and it may be there still
	regard atomic.Bool        // there is a new guard, which has to have the mount

	interrupt context.CancelFunc // ends the wait for a coordinator that is none any more; may be nil

	owed    *owed     // an end that the database has not heard of; run's alone
	refused time.Time // since when the coordinator refuses this node; run's alone
	remote  *remote   // the coordinator that the volume follows, on another node; run's alone
	stop    context.CancelFunc
	ended   chan struct{}
}

// tenure is a term of this node with the volume mounted.
type tenure struct {
	term  *cluster.Term
	coord *coordinator.Coordinator
	ctx   context.Context //nolint:containedctx // of the tasks: it ends with the term
	end   context.CancelFunc
	tasks sync.WaitGroup

	// Guarded by seat.mu.
	why      string          // it must end at once
	finished bool            // no task begins any more
	absent   map[string]bool // members that are being fenced

	withhold   bool // holds want all layouts back
	withheld   bool // they are back
	unsure     bool // some may be, some not
	regranting bool // a task brings withheld to withhold
}

// owed is the end of a term that is to be recorded.
type owed struct {
	term *cluster.Term
	next string
	why  error // nil: the mount is gone; else the next coordinator fences this node
}

// departure asks for the end of a term.
type departure struct {
	term         *cluster.Term
	next, reason string
}

func (n *Node) newSeat(v *volumeState) *seat {
	return &seat{node: n, v: v, log: n.log.With("volume", v.name()), wake: make(chan struct{}, 1), ended: make(chan struct{})}
}

// start begins; the volume is on line until end has returned.
func (s *seat) start() {
	ctx, cancel := context.WithCancel(context.Background())
	s.stop = cancel
	go s.run(ctx)
}

// end waits until this node takes no part any more; the caller has handed the volume over.
func (s *seat) end() {
	s.stop()
	<-s.ended
}

func (s *seat) run(ctx context.Context) {
	defer close(s.ended)
	again := time.NewTimer(0)
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			s.unfollow()
			return
		case <-s.wake:
		case <-again.C:
		}
		err := s.settle(ctx)
		s.mu.Lock()
		s.fault = err
		s.mu.Unlock()
		if err != nil && ctx.Err() == nil {
			s.log.Warn("the volume's coordination", "error", err)
			again.Reset(settleAgain)
		}
	}
}

func (s *seat) kick() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// The news. None of these blocks.

func (s *seat) elected(t *cluster.Term) {
	s.mu.Lock()
	s.won = t
	s.mu.Unlock()
	s.kick()
}

func (s *seat) leave(t *cluster.Term, next, reason string) {
	s.mu.Lock()
	s.order = &departure{t, next, reason}
	s.mu.Unlock()
	s.kick()
}

func (s *seat) saw(seat cluster.Seat) {
	s.mu.Lock()
	was := s.seen
	s.seen = seat
	if !sameTerm(was, seat) && s.interrupt != nil {
		s.interrupt()
	}
	s.mu.Unlock()
	if !sameTerm(was, seat) {
		s.kick()
	}
}

// sameTerm tells that nothing has changed that a follower acts on: Mounted and Open are one to it.
func sameTerm(a, b cluster.Seat) bool {
	if a.Coordinator == nil || b.Coordinator == nil {
		return a.Coordinator == b.Coordinator
	}
	return a.Coordinator.Epoch == b.Coordinator.Epoch && mounted(a.Coordinator.State) == mounted(b.Coordinator.State)
}

// failure is why this node could not take the volume over.
func (s *seat) failure() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tried
}

// complain says why the volume follows no coordinator.
func (v *volumeState) complain(err error) error {
	s := v.seat.Load()
	if s == nil {
		return errors.New(v.why())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.fault != nil:
		return fmt.Errorf("volume %s has no coordinator: %w", s.v.name(), s.fault)
	case s.seen.Coordinator != nil:
		return fmt.Errorf("volume %s: its coordinator %s is %s since its election: %w", s.v.name(), s.seen.Coordinator.Node, s.seen.Coordinator.State, err)
	}
	return fmt.Errorf("volume %s: no node was elected its coordinator: %w", s.v.name(), err)
}

// resign ends this node's own term, and waits until it has ended.
func (s *seat) resign(ctx context.Context, reason string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*handOverLimit)
	defer cancel()
	for tick := time.NewTicker(2 * time.Millisecond); ; {
		s.mu.Lock()
		here := s.here
		if here != nil && s.order == nil {
			s.order = &departure{here.term, "", reason}
		}
		s.won = nil // its seat ends with the session
		if s.overhauling && s.abort != nil {
			s.abort()
		}
		idle := here == nil && !s.busy
		s.mu.Unlock()
		if idle {
			tick.Stop()
			return nil
		}
		s.kick()
		select {
		case <-tick.C:
		case <-ctx.Done():
			tick.Stop()
			return fmt.Errorf("volume %s was not handed over: %w", s.v.name(), ctx.Err())
		}
	}
}

// over says that others ended the term: nothing more may reach the LUN through the mount.
func (s *seat) over(t *cluster.Term, reason string) {
	s.mu.Lock()
	if s.won == t {
		s.won = nil
	}
	if s.abort != nil {
		s.abort()
	}
	here := s.here
	if here != nil && here.term == t {
		here.why = reason
	}
	s.mu.Unlock()
	if here != nil && here.term == t {
		s.shutDown(here)
	}
	s.kick()
}

// lose ends a term of this node that cannot go on.
func (s *seat) lose(reason string) {
	s.mu.Lock()
	if s.abort != nil {
		s.abort()
	}
	here := s.here
	if here != nil && here.why == "" {
		here.why = reason
	}
	s.mu.Unlock()
	if here != nil {
		s.shutDown(here)
	}
	s.kick()
}

func (s *seat) shutDown(t *tenure) {
	if err := t.coord.Shutdown(); err != nil {
		s.log.Error("the file system was not shut down", "epoch", t.coord.Epoch(), "error", err)
	}
}

// coordinator is this node's own, if it has the epoch; 0 means any.
func (s *seat) coordinator(epoch uint64) *coordinator.Coordinator {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.here == nil || s.here.why != "" || epoch != 0 && s.here.coord.Epoch() != epoch {
		return nil
	}
	return s.here.coord
}

// mounting tells that a term of this node is about to be there.
func (s *seat) mounting() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.here == nil && (s.won != nil || s.busy)
}

// knownEpoch is the latest that was heard of.
func (s *seat) knownEpoch() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.seen.Coordinator != nil {
		return s.seen.Coordinator.Epoch
	}
	return s.seen.Epoch
}

// settle does one step; the last one is to follow.
func (s *seat) settle(ctx context.Context) error {
	if err := s.payOff(ctx); err != nil {
		return err
	}
	s.mu.Lock()
	won, order, here := s.won, s.order, s.here
	failed := here != nil && here.why != ""
	s.won, s.order, s.busy = nil, nil, true
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.busy = false
		s.mu.Unlock()
	}()
	switch {
	case failed:
		return s.giveUp(ctx, here)
	case here != nil && order == nil && won == nil && s.regard.Swap(false):
		return s.guardAnew(here)
	case order != nil && here != nil && here.term == order.term:
		return s.handOver(ctx, here, order)
	case won != nil && here == nil:
		return s.takeOver(ctx, won)
	case won != nil:
		return s.release(ctx, won, "")
	}
	return s.follow(ctx)
}

// takeOver makes this node the coordinator: fence, mount, follow, in this order, each step recorded. A
// failure gives the term up.
func (s *seat) takeOver(ctx context.Context, t *cluster.Term) (err error) {
	p, release := s.v.borrow()
	if p == nil {
		return s.release(ctx, t, "")
	}
	defer release()
	began := time.Now()
	step, cancel := context.WithCancel(ctx)
	defer cancel()
	s.mu.Lock()
	s.abort = cancel
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.tried, s.abort = err, nil
		s.mu.Unlock()
		s.overhauled(err)
		if err != nil {
			s.note(ctx, "coordinator.failed", t.Epoch, fmt.Sprintf("volume %s: node %s could not take over: %v", s.name(), s.node.name, err))
			err = errors.Join(err, s.abandon(ctx, t, err))
		}
	}()
	if err := s.fencePrevious(step, p, t); err != nil {
		return err
	}
	if err := s.record(step, t.Fenced); err != nil {
		return err
	}
	if err := s.claimMount(step, p, t); err != nil {
		return err
	}
	if err := s.overhaulIfDue(step, p, t); err != nil {
		return err
	}
	here, err := s.mount(step, p, t)
	if err != nil {
		return s.advise(err)
	}
	s.note(ctx, "coordinator.chosen", t.Epoch, fmt.Sprintf("node %s coordinates volume %s (epoch %d), %v after it was chosen",
		s.node.name, s.name(), t.Epoch, time.Since(began).Round(time.Millisecond)))
	limited, cancel := context.WithTimeout(ctx, followLimit)
	defer cancel()
	if err := p.vol.Follow(limited, here.coord); err != nil {
		s.lose(err.Error())
		return nil // giveUp comes next
	}
	s.unfollow()
	return s.record(ctx, t.Open)
}

// mount opens the coordinator. From here on the term ends by giveUp or handOver only.
func (s *seat) mount(ctx context.Context, p *parts, t *cluster.Term) (*tenure, error) {
	here := &tenure{term: t, absent: map[string]bool{}}
	here.ctx, here.end = context.WithCancel(context.Background())
	here.withhold = redirects(s.node.holdsOf(s.v.id)) != 0
	here.withheld = here.withhold
	var err error
	here.coord, err = coordinator.Open(ctx, p.dev, coordinator.Options{
		Epoch: t.Epoch, Cluster: s.node.db.InCluster(), TakeOver: s.v.takeOver.Load(), Log: s.log, Members: s.node.holders(), Twin: s.node.sharesKernel, Engine: s.node.engine,
		Withheld: here.withheld,
		Fence:    func(ctx context.Context, node protocol.NodeID) error { return s.fence(ctx, p, string(node)) },
		Failed:   func(err error) { s.lose("the coordinator cannot go on: " + err.Error()) },
	})
	if err != nil {
		here.end()
		return nil, errors.Join(err, s.disclaimMount(p))
	}
	if gone, ok := outgoing(t, s.node.name); ok {
		here.coord.Expel(gone)
	}
	if err = s.guard(here.coord); err == nil {
		err = here.coord.Hello(ctx, protocol.NodeID(s.node.name), t.Incarnation)
	}
	if err == nil {
		err = s.record(ctx, t.Mounted)
	}
	if err == nil {
		err = s.node.saw(ctx, s.v, p, here.coord)
	}
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return nil, errors.Join(err, s.close(context.WithoutCancel(ctx), here))
	}
	s.mu.Lock()
	s.here = here
	s.mu.Unlock()
	view := s.node.membership.Load().view.Load()
	s.attend(view)
	s.heed(view.Holds[s.v.id])
	return here, nil
}

// guard hands the mount to the guard process.
func (s *seat) guard(c *coordinator.Coordinator) error {
	g := s.node.guardProcess()
	if g == nil {
		return nil
	}
	root, err := c.MountFD()
	if err != nil {
		return err
	}
	return errors.Join(g.Add(s.v.id, root), root.Close())
}

// guardAnew hands the mount to a guard that took the place of another one.
func (s *seat) guardAnew(here *tenure) error {
	if g := s.node.guardProcess(); g != nil {
		_ = g.Remove(s.v.id) // it has the mount if that was made meanwhile
	}
	if err := s.guard(here.coord); err != nil {
		s.lose("the new guard process did not take the mount: " + err.Error())
	}
	s.kick()
	return nil
}

func (s *seat) unguard() error {
	g := s.node.guardProcess()
	if g == nil {
		return nil
	}
	err := g.Remove(s.v.id)
	if s.regard.Swap(false) && errors.Is(err, guard.ErrRefused) {
		return nil // a new guard that had not heard of the mount yet
	}
	return err
}

// handOver ends the term in plan.
func (s *seat) handOver(ctx context.Context, here *tenure, order *departure) error {
	began := time.Now()
	s.ioWaits(began)
	said := make(chan error, 1) // unmounting is safe whether or not others know of it
	go func() { said <- s.record(ctx, here.term.Closing) }()
	if p, release := s.v.borrow(); p != nil {
		p.vol.Orphan()
		release()
	}
	s.finish(here)
	var disowned error
	if order.reason == ejected {
		disowned = here.coord.Disown()
	}
	limited, cancel := context.WithTimeout(ctx, handOverLimit)
	defer cancel()
	err := s.unmount(limited, here.coord.Handover)
	s.mu.Lock()
	s.here = nil
	s.mu.Unlock()
	s.node.endServing(s.v.id, here.term.Epoch)
	closing := <-said
	if err != nil {
		return errors.Join(closing, err, s.close(context.WithoutCancel(ctx), here), s.abandon(ctx, here.term, err))
	}
	err = errors.Join(closing, disowned, s.release(ctx, here.term, order.next))
	s.note(ctx, "coordinator.moved", here.term.Epoch, fmt.Sprintf("node %s handed volume %s over (epoch %d), %s, within %v",
		s.node.name, s.name(), here.term.Epoch, order.reason, time.Since(began).Round(time.Millisecond)))
	return err
}

// giveUp ends a term whose file system was shut down: its mount is gone after it, and so the next
// coordinator has nobody to fence, unless that cannot be said.
func (s *seat) giveUp(ctx context.Context, here *tenure) error {
	s.shutDown(here)
	if p, release := s.v.borrow(); p != nil {
		p.vol.Orphan()
		release()
	}
	s.mu.Lock()
	s.here = nil
	s.mu.Unlock()
	s.note(ctx, "coordinator.lost", here.term.Epoch, fmt.Sprintf("node %s ends its term as coordinator of volume %s (epoch %d): %s",
		s.node.name, s.name(), here.term.Epoch, here.why))
	s.node.noPath(s.v)
	s.node.endServing(s.v.id, here.term.Epoch)
	if err := s.close(context.WithoutCancel(ctx), here); err != nil {
		return errors.Join(err, s.abandon(ctx, here.term, err))
	}
	return s.release(ctx, here.term, "")
}

// finish ends the term's tasks; none begins any more.
func (s *seat) finish(t *tenure) {
	s.mu.Lock()
	t.finished = true
	s.mu.Unlock()
	t.end()
	t.tasks.Wait()
}

func (s *seat) close(ctx context.Context, here *tenure) error {
	s.finish(here)
	ctx, cancel := context.WithTimeout(ctx, handOverLimit)
	defer cancel()
	err := s.unmount(ctx, here.coord.Close)
	if errors.Is(err, coordinator.ErrInUse) {
		err = s.unmount(ctx, here.coord.Handover)
	}
	return err
}

func (s *seat) record(ctx context.Context, step func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, recordLimit)
	defer cancel()
	return step(ctx)
}

// release gives the seat back: the mount is gone.
func (s *seat) release(ctx context.Context, t *cluster.Term, next string) error {
	s.owed = &owed{term: t, next: next}
	return s.payOff(ctx)
}

// abandon gives the seat up: the next coordinator has to fence this node.
func (s *seat) abandon(ctx context.Context, t *cluster.Term, why error) error {
	s.owed = &owed{term: t, why: why}
	return s.payOff(context.WithoutCancel(ctx))
}

// payOff records the end of a term; a database that does not answer is asked again by the next step. It is no
// error when others have ended the term already.
func (s *seat) payOff(ctx context.Context) error {
	o := s.owed
	if o == nil {
		return nil
	}
	err := s.record(ctx, func(ctx context.Context) error {
		if o.why != nil {
			return o.term.Abandon(ctx, o.why.Error())
		}
		return s.releaseNow(ctx, o)
	})
	if !errors.Is(err, cluster.ErrUnavailable) {
		s.owed = nil
	}
	if errors.Is(err, cluster.ErrTermOver) {
		return nil
	}
	return err
}

// releaseNow takes the step before, if the database has not heard of it either.
func (s *seat) releaseNow(ctx context.Context, o *owed) error {
	err := o.term.Release(ctx, o.next)
	if errors.Is(err, cluster.ErrTermState) {
		if err = o.term.Closing(ctx); err == nil {
			err = o.term.Release(ctx, o.next)
		}
	}
	return err
}

func (s *seat) name() string { return s.v.name() }

func (s *seat) note(ctx context.Context, kind string, epoch uint64, text string) {
	s.node.noteSoon(ctx, cluster.Event{Kind: kind, Volume: s.name(), Epoch: epoch, Text: text})
}
