package uring

import (
	"fmt"
	"math/rand/v2"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"lunar/datapath/uring/internal/sys"
)

// FaultKind is something that can go wrong with an operation.
type FaultKind uint8

// Kinds of faults.
const (
	FaultFail      FaultKind = iota // fails with Plan.Errno, not executed
	FaultLateFail                   // executed, then reported as failed with Plan.Errno
	FaultShort                      // moved in pieces
	FaultDelay                      // executed after up to Plan.MaxDelay
	FaultTransient                  // answers EAGAIN or EINTR a few times first
	FaultDrop                       // never executed; comes back when it is cancelled
	FaultLose                       // never executed; does not come back before Faulty.Release
	numFaults
)

var faultNames = [numFaults]string{"fail", "late fail", "short", "delay", "transient", "drop", "lose"}

// String names the kind.
func (k FaultKind) String() string { return faultNames[k] }

// Plan says how often what goes wrong.
type Plan struct {
	Seed     uint64
	Rate     [numFaults]float64 // probability of each kind, 0 to 1, together at most 1
	Errno    syscall.Errno      // of failures; default EIO
	MaxDelay time.Duration      // default 10 ms
}

// Faulty is the engine's fault-injecting twin: a Submitter in front of a Ring that lets operations go
// wrong by a seeded plan. The faults happen below the engine, as requests to the kernel
// that fail, fall short or do not end, so that deadlines, cancellation and continuation are the real
// ones. Like the Ring's, its methods are for the ring's thread.
type Faulty struct {
	next     Submitter
	plan     Plan
	random   *rand.Rand
	lost     []*fault
	injected [numFaults]int
}

// NewFaulty wraps next, which must be a Ring or lead to one.
func NewFaulty(next Submitter, plan Plan) (*Faulty, error) {
	sum := 0.0
	for k, p := range plan.Rate {
		if p < 0 || p > 1 {
			return nil, fmt.Errorf("uring: Plan.Rate of %s is %v: give 0 to 1: %w", FaultKind(k), p, ErrInvalid)
		}
		sum += p
	}
	if sum > 1 {
		return nil, fmt.Errorf("uring: Plan.Rate sums up to %v: give at most 1: %w", sum, ErrInvalid)
	}
	if plan.Errno == 0 {
		plan.Errno = unix.EIO
	}
	plan.MaxDelay = orInt(plan.MaxDelay, 10*time.Millisecond)
	return &Faulty{next: next, plan: plan, random: rand.New(rand.NewPCG(plan.Seed, 0))}, nil
}

// Submit passes op on, perhaps with a fault.
func (f *Faulty) Submit(op *Op) {
	op.fault = f.draw()
	f.next.Submit(op)
}

// Injected counts the faults of a kind so far.
func (f *Faulty) Injected(k FaultKind) int { return f.injected[k] }

// Release lets every lost operation come back.
func (f *Faulty) Release() {
	for _, x := range f.lost {
		if x.ring != nil {
			x.ring.cancelTag(x.tag)
		}
	}
	f.lost = nil
}

// maxTransients is below maxTries: a transient fault never fails the operation.
const maxTransients = 3

func (f *Faulty) draw() *fault {
	dice := f.random.Float64()
	for k, p := range f.plan.Rate {
		if dice -= p; dice < 0 {
			f.injected[k]++
			return f.make(FaultKind(k))
		}
	}
	return nil
}

func (f *Faulty) make(k FaultKind) *fault {
	x := &fault{kind: k, errno: f.plan.Errno}
	switch k {
	case FaultTransient:
		x.left = 1 + f.random.IntN(maxTransients)
		x.errno = [...]syscall.Errno{unix.EAGAIN, unix.EINTR}[f.random.IntN(2)]
	case FaultDelay:
		x.left = 1
		x.wait = sys.NewTimespec(time.Duration(f.random.Int64N(int64(f.plan.MaxDelay))) + 1)
	case FaultDrop, FaultLose:
		x.wait = sys.NewTimespec(endless)
	}
	if k == FaultLose {
		f.lost = append(f.lost, x)
	}
	return x
}

// endless outlives every test; a dropped operation is a timer of that length.
const endless = 1000 * time.Hour

// fault is what happens to one operation.
type fault struct {
	kind  FaultKind
	errno syscall.Errno
	left  int // requests that are still to go wrong
	wait  sys.Timespec
	ring  *Ring
	tag   uint64
}

// clip shortens what one request moves, for short transfers; to whole sectors, as a device would.
func (x *fault) clip(p []byte) []byte {
	if x.kind != FaultShort || len(p) <= 512 {
		return p
	}
	return p[:max(len(p)/3&^511, 512)]
}

// alter puts another request in place of the operation's.
func (x *fault) alter(r *Ring, op *Op, e *sys.SQE) {
	switch x.kind {
	case FaultFail:
		e.Nop()
	case FaultTransient:
		if x.left > 0 {
			e.Nop()
		}
	case FaultDelay:
		if x.left > 0 {
			e.Timeout(&x.wait)
		}
	case FaultDrop, FaultLose:
		x.ring, x.tag = r, r.tag(op.slot)
		e.Timeout(&x.wait)
	}
}

// result turns the kernel's answer into the fault's.
func (x *fault) result(res int32) int32 {
	switch x.kind {
	case FaultFail, FaultLateFail:
		return -int32(x.errno)
	case FaultTransient:
		if x.left--; x.left >= 0 {
			return -int32(x.errno)
		}
	case FaultDelay:
		if x.left--; x.left >= 0 && res == -int32(unix.ETIME) {
			return -int32(unix.EAGAIN)
		}
	}
	return res
}

// ignoresCancel says that a cancel request would not reach the operation. x may be nil.
func (x *fault) ignoresCancel() bool { return x != nil && x.kind == FaultLose }
