package device

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// BlockIO is blocking I/O on a device; *Device has it.
type BlockIO interface {
	ReadAt(p []byte, off int64) (int, error)
	WriteAt(p []byte, off int64) (int, error)
	Sync() error
}

// ErrInjected marks an error that a Faults made.
var ErrInjected = fmt.Errorf("injected fault: %w", unix.EIO)

// FaultOptions says how often what goes wrong.
type FaultOptions struct {
	Seed         uint64
	ReadError    float64 // share of reads that fail with EIO, 0 to 1
	WriteError   float64
	SyncError    float64
	DelayShare   float64       // share of operations that are late
	Delay        time.Duration // by how much at most
	AfterTheFact float64       // share of failed writes that were done all the same
}

// Validate tells what is wrong with o.
func (o FaultOptions) Validate() error {
	for name, p := range map[string]float64{"ReadError": o.ReadError, "WriteError": o.WriteError,
		"SyncError": o.SyncError, "DelayShare": o.DelayShare, "AfterTheFact": o.AfterTheFact} {
		if p < 0 || p > 1 {
			return fmt.Errorf("device: FaultOptions.%s is %v: give 0 to 1: %w", name, p, unix.EINVAL)
		}
	}
	if o.Delay < 0 {
		return fmt.Errorf("device: FaultOptions.Delay is %v: give 0 or more: %w", o.Delay, unix.EINVAL)
	}
	return nil
}

// Faults decides what happens to each operation, by seed and order: the same for the same seed. It
// is for wrappers of any I/O seam, and safe from any goroutine.
type Faults struct {
	opts  FaultOptions
	cut   atomic.Bool
	count atomic.Int64
	mu    sync.Mutex // guards rng
	rng   *rand.Rand
}

// NewFaults starts a sequence of decisions.
func NewFaults(o FaultOptions) (*Faults, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	return &Faults{opts: o, rng: rand.New(rand.NewPCG(o.Seed, 0x6c756e61))}, nil
}

// Cut takes the path away: every operation fails until Mend.
func (f *Faults) Cut() { f.cut.Store(true) }

// Mend brings the path back.
func (f *Faults) Mend() { f.cut.Store(false) }

// Injected is how many operations were failed.
func (f *Faults) Injected() int64 { return f.count.Load() }

// Kind is the kind of an operation.
type Kind uint8

// Kinds of operations.
const (
	ReadIO Kind = iota
	WriteIO
	SyncIO
)

// Verdict is what is to happen to one operation.
type Verdict struct {
	Delay time.Duration // before it
	Err   error         // nil, or what it fails with
	Done  bool          // with Err: it takes effect all the same
}

// Next decides the next operation's fate.
func (f *Faults) Next(k Kind) (v Verdict) {
	f.mu.Lock()
	fails, late, done := f.rng.Float64(), f.rng.Float64(), f.rng.Float64()
	delay := time.Duration(f.rng.Int64N(int64(f.opts.Delay) + 1))
	f.mu.Unlock()
	if late < f.opts.DelayShare {
		v.Delay = delay
	}
	share := [...]float64{ReadIO: f.opts.ReadError, WriteIO: f.opts.WriteError, SyncIO: f.opts.SyncError}[k]
	cut := f.cut.Load()
	if cut || fails < share {
		f.count.Add(1)
		v.Err, v.Done = ErrInjected, !cut && k == WriteIO && done < f.opts.AfterTheFact
	}
	return v
}

// Faulty is the fault-injecting twin of a device.
type Faulty struct {
	under BlockIO
	*Faults
}

// NewFaulty wraps a device; the caller closes what it wraps.
func NewFaulty(under BlockIO, f *Faults) *Faulty { return &Faulty{under, f} }

func (f *Faulty) do(k Kind, io func() (int, error)) (int, error) {
	v := f.Next(k)
	time.Sleep(v.Delay)
	switch {
	case v.Err == nil:
		return io()
	case v.Done:
		_, _ = io()
	}
	return 0, v.Err
}

// ReadAt reads, or fails.
func (f *Faulty) ReadAt(p []byte, off int64) (int, error) {
	return f.do(ReadIO, func() (int, error) { return f.under.ReadAt(p, off) })
}

// WriteAt writes, or fails, or both.
func (f *Faulty) WriteAt(p []byte, off int64) (int, error) {
	return f.do(WriteIO, func() (int, error) { return f.under.WriteAt(p, off) })
}

// Sync empties the write cache, or fails.
func (f *Faulty) Sync() error {
	_, err := f.do(SyncIO, func() (int, error) { return 0, f.under.Sync() })
	return err
}
