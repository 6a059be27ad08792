package wire

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"lunar/datapath/layout/protocol"
	"lunar/datapath/wire/wirepb"
)

// Why turns and holders end.
var (
	errSuperseded = fmt.Errorf("another stream of this node came after: %w", protocol.ErrUnreachable)
	errSilent     = fmt.Errorf("no sign of life: %w", protocol.ErrUnreachable)
	errLeft       = fmt.Errorf("the node's process was replaced: %w", protocol.ErrUnreachable)
	errEnded      = fmt.Errorf("the term has ended here: %w: %w", protocol.ErrStale, unix.ESTALE)
	errStopped    = fmt.Errorf("the server has stopped: %w", protocol.ErrUnreachable)
	errBroken     = fmt.Errorf("the stream broke: %w", protocol.ErrUnreachable)
)

// sessionKey names a session.
type sessionKey struct {
	volume string
	epoch  uint64
	node   protocol.NodeID
}

// session is a node at a coordinator for one term, over as many streams as that takes.
type session struct {
	key      sessionKey
	id       uint64 // random
	coord    Coordinator
	limits   Limits
	gate     chan struct{} // of one: who has it changes turns
	calls    chan struct{} // a slot per call under way
	attaches chan struct{}
	recalls  chan struct{}

	mu          sync.Mutex // guards what follows
	incarnation uint64
	turn        *turn // whose calls are executed; nil before the first
	out         outbox
	holders     map[uint32]*holder
	over        error // why it has ended, or nil
}

func newSession(key sessionKey, c Coordinator, l Limits) *session {
	return &session{
		key: key, id: random(), coord: c, limits: l,
		gate: make(chan struct{}, 1), calls: make(chan struct{}, l.Calls),
		attaches: make(chan struct{}, l.Attaches), recalls: make(chan struct{}, l.Recalls),
		out: newOutbox(l.Window), holders: map[uint32]*holder{},
	}
}

// takeOver gives the session to t, after every call of the turn before has returned. What the node does
// not hold any more is detached. It returns when calls of t may begin.
func (s *session) takeOver(ctx context.Context, t *turn, hello *wirepb.Hello, received uint64) error {
	if err := acquire(ctx, s.gate); err != nil {
		return err
	}
	defer func() { <-s.gate }()
	if err := s.endCalls(ctx, hello.GetIncarnation()); err != nil {
		return err
	}
	if err := s.coord.Hello(ctx, s.key.node, hello.GetIncarnation()); err != nil {
		return err
	}
	s.forget(ctx, hello)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over != nil {
		return s.over
	}
	if hello.GetSession() != s.id {
		received = 0
	}
	s.out.resume(received)
	s.turn, s.incarnation = t, hello.GetIncarnation()
	t.welcome()
	return nil
}

// endCalls returns when nothing of an earlier turn is executed.
func (s *session) endCalls(ctx context.Context, incarnation uint64) error {
	s.mu.Lock()
	before, known := s.turn, s.incarnation
	s.mu.Unlock()
	if incarnation < known {
		return fmt.Errorf("incarnation %d of node %s after %d: %w", incarnation, s.key.node, known, protocol.ErrStale)
	}
	if before == nil {
		return nil
	}
	before.end(errSuperseded)
	select {
	case <-before.quiet():
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// forget ends the holders that a Hello does not list; of an earlier process, all.
func (s *session) forget(ctx context.Context, hello *wirepb.Hello) {
	held := map[uint32]bool{}
	for _, h := range hello.GetHolders() {
		held[h] = true
	}
	s.mu.Lock()
	replaced := s.incarnation != 0 && hello.GetIncarnation() > s.incarnation
	var gone []*holder
	for number, h := range s.holders {
		switch {
		case replaced:
			s.drop(h, errLeft)
			delete(s.holders, number) // the coordinator's Hello has ended it
		case !held[number]:
			s.drop(h, nil)
			gone = append(gone, h)
		}
	}
	s.mu.Unlock()
	for _, h := range gone {
		_ = s.detach(ctx, h) // what fails is tried again at the next Hello
	}
}

// drop ends the talk to a holder: it has nothing any more. mu is locked.
func (s *session) drop(h *holder, answer error) {
	if !h.gone {
		h.gone, h.answer = true, answer
		h.release()
		s.out.remove(h.number, answer)
	}
}

// detach ends a holder at the coordinator.
func (s *session) detach(ctx context.Context, h *holder) error {
	s.mu.Lock()
	s.drop(h, nil)
	call, id := h.call, h.id
	s.mu.Unlock()
	if err := s.coord.Detach(ctx, call, id); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.holders, h.number)
	return nil
}

// finish ends the session for good.
func (s *session) finish(why error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over != nil {
		return
	}
	s.over = why
	for _, h := range s.holders {
		s.drop(h, why)
	}
	if s.turn != nil {
		s.turn.end(why)
	}
}

func (s *session) wake() {
	if s.turn != nil {
		s.turn.wake()
	}
}

// holder is an image that the node has attached. It is the coordinator's protocol.Holder.
type holder struct {
	s      *session
	number uint32

	// Guarded by s.mu:
	call    protocol.Call     // once attached
	id      protocol.HolderID // once attached
	started bool              // its first grant is in the outbox
	gone    bool              // it has nothing any more
	answer  error             // to recalls when gone
	early   *publication
	waiting []chan struct{} // recalls, until started
}

// start passes on what the coordinator granted, and then what it said meanwhile.
func (h *holder) start(g protocol.Grant, id protocol.HolderID) (sent <-chan struct{}) {
	s := h.s
	s.mu.Lock()
	defer s.mu.Unlock()
	h.call, h.id, h.started = g.Call, id, true
	sent = s.out.add(h.number, g)
	if h.early != nil {
		for _, g := range h.early.grants() {
			s.out.publish(h.number, g)
		}
		h.early = nil
	}
	h.release()
	s.wake()
	return sent
}

func (h *holder) release() {
	for _, w := range h.waiting {
		close(w)
	}
	h.waiting = nil
}

// Recall implements protocol.Holder: the node returns the range, over whatever stream it has until ctx
// ends.
func (h *holder) Recall(ctx context.Context, r protocol.Recall) error {
	s := h.s
	if err := acquire(ctx, s.recalls); err != nil {
		return err
	}
	defer func() { <-s.recalls }()
	l, err := h.tell(ctx, r)
	if l == nil {
		return err
	}
	select {
	case err := <-l.answer:
		return err
	case <-ctx.Done():
		s.mu.Lock()
		defer s.mu.Unlock()
		s.out.cancel(l)
		return fmt.Errorf("node %s has not returned %d bytes at %d: %w: %w", s.key.node, r.Range.Len, r.Range.Off, unix.ETIMEDOUT, ctx.Err())
	}
}

// tell queues a recall; no letter: it is answered already.
func (h *holder) tell(ctx context.Context, r protocol.Recall) (*letter, error) {
	s := h.s
	s.mu.Lock()
	defer s.mu.Unlock()
	for !h.started && !h.gone {
		w := make(chan struct{})
		h.waiting = append(h.waiting, w)
		s.mu.Unlock()
		select {
		case <-w:
		case <-ctx.Done():
		}
		s.mu.Lock()
		if err := ctx.Err(); err != nil {
			return nil, err
		}
	}
	if h.gone {
		return nil, h.answer
	}
	until, _ := ctx.Deadline()
	l := s.out.recall(h.number, r, until)
	s.wake()
	return l, nil
}

// Publish implements protocol.Holder.
func (h *holder) Publish(g protocol.Grant) {
	s := h.s
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case h.gone:
	case h.started:
		s.out.publish(h.number, g)
		s.wake()
	case h.early != nil:
		h.early.add(g)
	default:
		h.early = newPublication(g)
	}
}

// random is a number that nobody guesses.
func random() uint64 {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return binary.NativeEndian.Uint64(b[:])
}

// acquire takes a slot.
func acquire(ctx context.Context, slots chan struct{}) error {
	select {
	case slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for a slot: %w", context.Cause(ctx))
	}
}

// turn is one stream of a session, from its Hello to its end, and the calls that belong to it.
type turn struct {
	id    uint64
	s     *session
	ctx   context.Context // ends with the stream
	abort context.CancelCauseFunc
	alert chan struct{} // of one: there is something to send
	alive *time.Timer   // ends the turn when nothing is heard

	mu       sync.Mutex // guards what follows
	welcomed bool
	pong     bool // a ping was not answered yet
	calls    int
	ended    bool
	silence  chan struct{} // closed when ended and no call is executed
}

func (t *turn) wake() {
	select {
	case t.alert <- struct{}{}:
	default:
	}
}

func (t *turn) welcome() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.welcomed = true
	t.wake()
}

// begin counts a call in; its context ends with the turn. The caller calls done.
func (t *turn) begin(ctx context.Context) (in context.Context, done func(), err error) {
	if err := acquire(ctx, t.s.calls); err != nil {
		return nil, nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ended || !t.welcomed {
		<-t.s.calls
		return nil, nil, errSuperseded
	}
	t.calls++
	in, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(t.ctx, func() { cancel(context.Cause(t.ctx)) })
	return in, func() {
		stop()
		cancel(nil)
		<-t.s.calls
		t.left()
	}, nil
}

func (t *turn) left() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.calls--
	t.settle()
}

// end cancels the turn's calls and lets none begin.
func (t *turn) end(why error) {
	t.abort(why)
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.ended {
		t.ended = true
		t.settle()
	}
}

func (t *turn) settle() {
	if t.ended && t.calls == 0 {
		close(t.silence)
	}
}

// quiet is closed when the turn has ended and no call of it is executed.
func (t *turn) quiet() <-chan struct{} { return t.silence }
