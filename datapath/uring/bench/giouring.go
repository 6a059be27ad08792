//go:build giouring

package main

import (
	"errors"
	"runtime"
	"syscall"
	"time"
	"unsafe"

	g "github.com/pawelgaczynski/giouring"
	"golang.org/x/sys/unix"
)

func init() { more = append(more, newGiouring) }

// giouring is the public binding, used as it comes: registered buffer, plain descriptor (its
// RegisterFiles is broken), one enter that submits and waits.
type giouring struct {
	dev  *device
	ring *g.Ring
	mem  []byte
}

const giouringMemory = 16 << 20

func newGiouring(dev *device) (peer, error) {
	mem, err := unix.Mmap(-1, 0, giouringMemory, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE|unix.MAP_POPULATE)
	if err != nil {
		return nil, err
	}
	return &giouring{dev: dev, mem: mem}, nil
}

func (*giouring) name() string { return "giouring" }
func (p *giouring) close()     { _ = unix.Munmap(p.mem) }

func (p *giouring) run(w workload, d time.Duration) (result, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	ring, err := g.CreateRing(256)
	if err != nil {
		return result{}, err
	}
	defer ring.QueueExit()
	if _, err := ring.RegisterBuffers([]syscall.Iovec{{Base: &p.mem[0], Len: giouringMemory}}); err != nil {
		return result{}, err
	}
	p.ring = ring
	return p.loop(w, d)
}

func (p *giouring) loop(w workload, d time.Duration) (result, error) {
	where, hist, began := newOffsets(w, p.dev.size), new(latencies), make([]time.Duration, w.depth)
	start, cpu := time.Now(), cpuTime()
	for i := range w.depth {
		p.prepare(w, i, where.take())
	}
	for live := w.depth; live > 0; {
		if _, err := p.ring.SubmitAndWait(1); err != nil && !errors.Is(err, unix.EINTR) {
			return result{}, err
		}
		var failed error
		n := uint32(0)
		p.ring.ForEachCQE(func(c *g.CompletionQueueEvent) {
			n++
			i, now := int(c.UserData), time.Since(start)
			if c.Res < 0 {
				failed = unix.Errno(-c.Res)
			}
			hist.add(now - began[i])
			if now >= d {
				live--
				return
			}
			began[i] = now
			p.prepare(w, i, where.take())
		})
		p.ring.CQAdvance(n)
		if failed != nil {
			return result{}, failed
		}
	}
	return summary(hist, start, cpu), nil
}

func (p *giouring) prepare(w workload, i int, off int64) {
	e, at := p.ring.GetSQE(), uintptr(unsafe.Pointer(&p.mem[i*w.block]))
	if w.write {
		e.PrepareWriteFixed(int(p.dev.file.Fd()), at, uint32(w.block), uint64(off), 0)
	} else {
		e.PrepareReadFixed(int(p.dev.file.Fd()), at, uint32(w.block), uint64(off), 0)
	}
	e.OpcodeFlags = 0 // PrepareWriteFixed leaves the slot's previous value
	e.UserData = uint64(i)
}
