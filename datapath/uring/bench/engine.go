package main

import (
	"context"
	"time"

	"lunar/datapath/uring"
)

// engine is ours: one ring, every I/O issued by the completion of another on the ring's thread.
type engine struct {
	dev  *device
	eng  *uring.Engine
	file *uring.File
}

func newEngine(dev *device, o options) (*engine, error) {
	eng, err := uring.Open(uring.Options{Spin: o.spin})
	if err != nil {
		return nil, err
	}
	file, err := eng.Register(int(dev.file.Fd()))
	if err != nil {
		_ = eng.Close(context.Background())
		return nil, err
	}
	return &engine{dev: dev, eng: eng, file: file}, nil
}

func (*engine) name() string { return "uring" }

func (e *engine) close() {
	_ = e.file.Close()
	_ = e.eng.Close(context.Background())
}

// load is one run; all of it lives on the ring's thread between start and finish.
type load struct {
	ring  *uring.Ring
	ops   []loadOp
	where offsets
	hist  latencies
	end   time.Duration
	epoch time.Time
	live  int
	err   error
	ended chan struct{}
}

type loadOp struct {
	uring.Op
	began time.Duration
}

func (e *engine) run(w workload, d time.Duration) (result, error) {
	l := &load{ring: e.eng.Ring(0), ops: make([]loadOp, w.depth), where: newOffsets(w, e.dev.size),
		end: d, epoch: time.Now(), ended: make(chan struct{})}
	code := uring.Read
	if w.write {
		code = uring.Write
	}
	for i := range l.ops {
		op := &l.ops[i]
		op.Code, op.File, op.Buf = code, e.file, e.eng.Pool().Get(w.block)
		op.Done = func(*uring.Op) { l.done(op) }
	}
	defer l.putBuffers(e.eng.Pool())
	cpu := cpuTime()
	if err := l.ring.Post(l.start); err != nil {
		return result{}, err
	}
	<-l.ended
	return summary(&l.hist, l.epoch, cpu), l.err
}

func (l *load) putBuffers(p *uring.Pool) {
	for i := range l.ops {
		p.Put(l.ops[i].Buf)
	}
}

func (l *load) start() {
	now := time.Since(l.epoch)
	for i := range l.ops {
		l.live++
		l.submit(&l.ops[i], now)
	}
}

func (l *load) submit(op *loadOp, now time.Duration) {
	op.began, op.Offset = now, l.where.take()
	l.ring.Submit(&op.Op)
}

func (l *load) done(op *loadOp) {
	now := time.Since(l.epoch)
	l.hist.add(now - op.began)
	if op.Err != nil {
		l.err = op.Err
	}
	if now < l.end && l.err == nil {
		l.submit(op, now)
		return
	}
	if l.live--; l.live == 0 {
		close(l.ended)
	}
}
