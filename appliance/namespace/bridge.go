package namespace

import (
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const sector = 512

// bridge brings the kernel's requests, which block a goroutine each, to the lanes and back.
type bridge struct {
	lanes   int
	post    func(int, func()) error
	buffers Buffers
	slots   chan struct{} // one is held per I/O on a lane
	next    atomic.Uint32
	idle    sync.Pool // of *errand, by take
}

func newBridge(o *Options) *bridge {
	return &bridge{lanes: o.Lanes, post: o.Post, buffers: o.Buffers, slots: make(chan struct{}, MaxInFlight)}
}

func (b *bridge) take() *errand {
	if e, ok := b.idle.Get().(*errand); ok {
		return e
	}
	return newErrand()
}

// errand is one operation on a lane; its callbacks are bound once.
type errand struct {
	begin  func(lane int, done func(error))
	lane   int
	run    func()
	finish func(error)
	result chan error
}

func newErrand() *errand {
	e := &errand{result: make(chan error, 1)}
	e.finish = func(err error) { e.result <- err }
	e.run = func() { e.begin(e.lane, e.finish) }
	return e
}

// do has begin called on a lane, and waits for its end. It does not end early: the operation has the buffer,
// and a bound of its own.
func (b *bridge) do(begin func(lane int, done func(error))) error {
	b.slots <- struct{}{}
	defer func() { <-b.slots }()
	e := b.take()
	defer b.idle.Put(e)
	e.begin, e.lane = begin, int(b.next.Add(1)%uint32(b.lanes))
	defer func() { e.begin = nil }()
	if err := b.post(e.lane, e.run); err != nil {
		return fmt.Errorf("lane %d: %w", e.lane, err)
	}
	return <-e.result
}

// How long an I/O waits for a buffer while other users have the whole pool, and how often it looks.
const (
	bufferPatience = 30 * time.Second
	bufferPeriod   = time.Millisecond
)

// buffer is one of the pool, which put gives back.
func (b *bridge) buffer(n int) ([]byte, error) {
	p := b.buffers.Get(n)
	for until := time.Now().Add(bufferPatience); p == nil; p = b.buffers.Get(n) {
		if time.Now().After(until) {
			return nil, fmt.Errorf("no buffer of %d bytes within %v: %w", n, bufferPatience, syscall.ENOMEM)
		}
		time.Sleep(bufferPeriod)
	}
	return p, nil
}

// read returns a buffer of the pool with what im has at off, in sectors.
func (b *bridge) read(im Image, off int64, n int) ([]byte, error) {
	p, err := b.buffer(n)
	if err != nil {
		return nil, err
	}
	if err := b.do(func(lane int, done func(error)) { im.Read(lane, p, off, done) }); err != nil {
		b.buffers.Put(p)
		return nil, err
	}
	return p, nil
}

// write stores data, which is copied: the disk wants it aligned and registered.
func (b *bridge) write(im Image, data []byte, off int64) error {
	p, err := b.buffer(len(data))
	if err != nil {
		return err
	}
	defer b.buffers.Put(p)
	copy(p, data)
	return b.do(func(lane int, done func(error)) { im.Write(lane, p, off, false, done) })
}

func (b *bridge) flush(im Image) error { return b.do(im.Flush) }

func (b *bridge) unmap(im Image, off, n int64) error {
	return b.do(func(lane int, done func(error)) { im.Unmap(lane, off, n, done) })
}
