package uring

import (
	"fmt"
	"log/slog"
	"math"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"lunar/datapath/uring/internal/sys"
)

// Submitter takes operations: a Ring, or a wrapper around one such as Faulty.
type Submitter interface {
	// Submit starts op; see Ring.Submit.
	Submit(op *Op)
}

// Ring is one thread with one io_uring. Unless said otherwise its methods are called on that
// thread: in callbacks, and in functions given to Post.
type Ring struct {
	engine *Engine
	opts   Options
	index  int
	log    *slog.Logger
	clock  Clock
	sys    *sys.Ring
	mail   mailbox
	pipe   pipe
	pages  []*Pages // of sockets
	places []uint16 // of the buffer table, for them
	fixes  bool     // the pool is registered

	slots    []slot
	free     []uint32
	inKernel int // operations with a slot, held ones included
	fresh    int // of these, started since the last enter
	heldOps  int
	sockets  map[*Socket]struct{}
	watches  int
	queue    opList  // behind Options.InFlight
	crowded  []*File // operations of theirs wait for room
	finished opList  // Done is due
	later    []func()
	ready    []sys.CQE

	now      time.Duration // the engine's clock at the start of this batch
	due      time.Duration // no deadline is earlier
	nextTick time.Duration
	period   sys.Timespec
	cancels  int // cancel requests in the kernel
	onBatch  []func()
	onTick   []func(time.Time)

	quiet    int  // sleeps that a signal ended since an operation or socket made progress
	keeps    bool // the thread may keep its P while it sleeps
	closing  bool
	aborted  bool
	stopped  chan struct{}
	closeErr error
}

const (
	tickPeriod = 250 * time.Millisecond
	// cqReserve are completion queue places that no operation or socket may fill: for the wake-up, the
	// tick and cancel requests.
	cqReserve  = 64
	maxCancels = cqReserve - 8
	never      = time.Duration(math.MaxInt64)
	// maxQuiet is for how many signals, which the Go scheduler sends each 10 ms, a ring without work
	// holds on to its P.
	maxQuiet = 2
)

// startRing starts a ring's thread and waits until it is ready.
func startRing(e *Engine, index int) (*Ring, error) {
	r := &Ring{
		engine: e, opts: e.opts, index: index, log: e.opts.Log.With("ring", index),
		sockets: make(map[*Socket]struct{}), due: never, stopped: make(chan struct{}),
		period: sys.NewTimespec(tickPeriod), clock: clockOf(&e.opts, index),
	}
	r.makeSlots(r.opts.InFlight + 2*r.opts.Sockets + MaxWatches)
	if err := r.mail.open(); err != nil {
		return nil, err
	}
	ready := make(chan error)
	go r.thread(ready)
	if err := <-ready; err != nil {
		<-r.stopped
		return nil, err
	}
	return r, nil
}

// setupFlags are tried in turn, the best first: Linux 6.6, 6.1, older.
var setupFlags = [...]uint32{
	sys.SetupSubmitAll | sys.SetupSingleIssuer | sys.SetupDeferTaskrun | sys.SetupTaskrunFlag | sys.SetupNoSQArray,
	sys.SetupSubmitAll | sys.SetupSingleIssuer | sys.SetupDeferTaskrun | sys.SetupTaskrunFlag,
	0,
}

// setup makes the io_uring, on the ring's thread.
func (r *Ring) setup() (err error) {
	c := sys.Config{Entries: uint32(r.opts.Entries), CQEntries: uint32(max(len(r.slots)+cqReserve, 2*r.opts.Entries))}
	for _, c.Flags = range setupFlags {
		if r.sys, err = sys.Setup(c); err == nil {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("%w (needs a kernel with io_uring, sysctl kernel.io_uring_disabled=0)", err)
	}
	if _, cq := r.sys.Entries(); cq < len(r.slots)+cqReserve {
		return fmt.Errorf("a completion queue of %d is too small; lower Options.InFlight or Sockets: %w", cq, ErrInvalid)
	}
	if err := r.sys.RegisterFiles(r.opts.Files); err != nil {
		return err
	}
	r.places = newPlaces(len(r.engine.pool.regions()))
	if err := r.sys.RegisterBuffers(append(r.engine.pool.regions(), make([][]byte, len(r.places))...)); err != nil {
		r.log.Warn("buffer pool not registered, I/O costs more; raise RLIMIT_MEMLOCK", "err", err)
	} else {
		r.fixes = true
	}
	if err := r.sys.RegisterRingFD(); err != nil {
		r.log.Debug("ring descriptor not registered", "err", err)
	}
	return nil
}

// thread is the ring's goroutine. It stays locked to its thread to the end, so the thread, and with
// it the kernel's per-thread state, ends too.
func (r *Ring) thread(ready chan<- error) {
	runtime.LockOSThread()
	defer close(r.stopped)
	defer r.mail.close()
	defer r.pipe.close()
	err := r.setup()
	if err == nil {
		r.armWake()
		r.armTick()
	}
	ready <- err
	if err == nil {
		for r.step() {
		}
		r.abandon()
	} else {
		r.mail.kill()
	}
	if r.sys != nil {
		_ = r.sys.Close()
	}
}

// step handles one batch: completions, posts, deadlines, hooks, then one enter that submits and
// waits. It reports whether the ring goes on.
func (r *Ring) step() bool {
	r.ready = r.sys.Reap(r.ready)
	r.now = r.engine.now()
	ran := len(r.ready) > 0
	if ran {
		r.clock.Reaped()
	}
	r.dispatch()
	ran = r.takePosts() || ran
	ran = r.runLater() || ran
	r.refill()
	r.expire()
	r.tick()
	if ran {
		for _, fn := range r.onBatch {
			fn()
		}
	}
	if r.closing && r.drained() {
		return false
	}
	r.enter()
	return true
}

// dispatch hands every completion of the batch to its owner.
func (r *Ring) dispatch() {
	for i := 0; i < len(r.ready); i++ { // grows if sqe reaps
		r.complete(r.ready[i])
		if r.starves(len(r.ready) - i - 1) {
			r.submit(false)
		}
	}
	r.ready = r.ready[:0]
}

// earlySubmit is how many new operations are worth an enter of their own while completions wait to be handled.
const earlySubmit = 4

// starves says that the devices have no more to do than what this batch has built for them so far, while left
// completions are still to be handled: they would run dry until the end of the batch.
func (r *Ring) starves(left int) bool {
	return left > 0 && r.fresh >= earlySubmit && r.fresh >= r.inKernel-r.fresh-left
}

// runLater calls what became due without a completion of the kernel: Done of operations that failed early, closed
// of sockets. What these calls add waits for the next step.
func (r *Ring) runLater() bool {
	ops, fns := r.finished.takeAll(), r.later
	r.later = nil
	for op := ops; op != nil; {
		next := op.next
		r.done(op)
		op = next
	}
	for _, fn := range fns {
		fn()
	}
	return ops != nil || len(fns) > 0
}

// enter submits what was built, and sleeps if there is nothing else to do.
func (r *Ring) enter() {
	if !r.finished.empty() || len(r.later) > 0 || len(r.ready) > 0 || r.spin() {
		r.submit(true)
		return
	}
	r.startAlone()
	if !r.mail.sleep() {
		r.submit(true)
		return
	}
	r.fresh = 0
	r.clock.Entered()
	e := r.sys.Wait(r.sleepLimit(), !r.keeps || r.quiet >= maxQuiet)
	r.mail.awake()
	if e == unix.EINTR {
		r.quiet++
	}
	r.check(e)
}

// startAlone submits an operation that is the only one under way before the enter that waits for it. A device whose
// work is done by a thread of the kernel can then run that thread on this CPU when the submission returns, while the
// ring is still runnable: the completion is there when the ring asks, and nobody has to wake it.
func (r *Ring) startAlone() {
	if r.fresh == 1 && r.inKernel == 1 {
		r.submit(false)
	}
}

// sleepLimit bounds a sleep by the next deadline, unless the tick comes first: then it is 0.
func (r *Ring) sleepLimit() time.Duration {
	if r.due >= r.nextTick {
		return 0
	}
	return max(r.due-r.engine.now(), time.Microsecond)
}

// spin waits for a completion for Options.Spin without sleeping; true if there is work.
func (r *Ring) spin() bool {
	if r.opts.Spin == 0 || r.inKernel == 0 {
		return false
	}
	r.submit(false)
	for end := r.engine.now() + r.opts.Spin; r.engine.now() < end; {
		if r.sys.Ready() > 0 || r.sys.NeedsEnter() || r.mail.waiting.Load() {
			return true
		}
	}
	return false
}

// submit hands SQEs over without waiting.
func (r *Ring) submit(events bool) {
	r.fresh = 0
	r.clock.Entered()
	r.check(r.sys.Submit(events))
}

// check judges the result of an enter. Everything but a programming error is cured by reaping
// and entering again.
func (r *Ring) check(e syscall.Errno) {
	switch e {
	case 0, unix.EINTR, unix.ETIME:
	case unix.EAGAIN, unix.EBUSY: // no memory for a request, or the completion queue overflowed
		r.log.Warn("io_uring_enter", "err", e, "overflows", r.sys.Overflows())
		time.Sleep(100 * time.Microsecond)
	default:
		panic(fmt.Sprintf("uring: io_uring_enter: %v", e))
	}
}

// sqe returns a free SQE. While the submission queue is full it submits, and reaps
// what came, so the kernel can always go on.
func (r *Ring) sqe() *sys.SQE {
	for {
		if e := r.sys.Next(); e != nil {
			return e
		}
		r.submit(false)
		if r.sys.Pending() > 0 {
			r.ready = r.sys.Reap(r.ready)
		}
	}
}

// fixed tells the registered buffer that p lies in.
func (r *Ring) fixed(p []byte) (uint16, bool) {
	if !r.fixes {
		return 0, false
	}
	if i, ok := r.engine.pool.region(p); ok {
		return i, true
	}
	for _, l := range r.pages {
		if _, ok := l.region(p); ok {
			return l.place, l.place != noPlace
		}
	}
	return 0, false
}

// Index is the ring's number, from 0.
func (r *Ring) Index() int { return r.index }

// OnBatch has fn called on the thread after each batch of completions, before the thread sleeps.
func (r *Ring) OnBatch(fn func()) { r.onBatch = append(r.onBatch, fn) }

// OnTick has fn called on the thread about four times a second.
func (r *Ring) OnTick(fn func(now time.Time)) { r.onTick = append(r.onTick, fn) }
