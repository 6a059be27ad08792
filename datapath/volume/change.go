package volume

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"lunar/datapath/layout"
	"lunar/datapath/layout/protocol"
	"lunar/datapath/uring"
)

// Flush makes every write that was acknowledged before it durable: in the device's cache, and in
// the file system where redirected operations went.
func (im *Image) Flush(lane int, done func(error)) {
	view := im.view.Load()
	switch {
	case view == nil:
		done(im.closed())
	case view.Paused:
		im.park(lane, parked{flush: true, again: func() { im.Flush(lane, done) }, fail: done})
	case view.Redirected || im.journal.behind():
		im.flushByCoordinator(lane, done)
	default:
		im.flushDevice(lane, done)
	}
}

// journal knows whether operations that the coordinator executed may lack durable metadata. A flush
// vouches for those that it found begun, and only once it has ended: one that comes meanwhile must
// not rely on it.
type journal struct {
	executed atomic.Uint64 // operations, counted before each is acknowledged
	durable  atomic.Uint64 // of these, as of the flushes that ended
}

func (j *journal) add() { j.executed.Add(1) }

func (j *journal) behind() bool { return j.durable.Load() < j.executed.Load() }

// settle notes that a flush which began when executed was n has succeeded.
func (j *journal) settle(n uint64) {
	for was := j.durable.Load(); was < n && !j.durable.CompareAndSwap(was, n); was = j.durable.Load() {
	}
}

// flushByCoordinator is enough for direct writes too: a file system's fdatasync flushes the device.
func (im *Image) flushByCoordinator(lane int, done func(error)) {
	im.send(lane, func(ctx context.Context, c Coordinator, call protocol.Call) error {
		executed := im.journal.executed.Load()
		err := c.Flush(ctx, call)
		if err == nil {
			im.journal.settle(executed)
		}
		im.v.heard(err)
		return err
	}, done)
}

// flushDevice counts as away, so that Close waits for it and for what may follow from it.
func (im *Image) flushDevice(lane int, done func(error)) {
	trip := &protocol.Flight{}
	away := &im.lanes[lane].away
	away.Begin(trip, protocol.Everywhere)
	end := func(err error) {
		away.End(trip)
		done(err)
	}
	op := &uring.Op{Code: uring.Flush, File: im.v.file, Deadline: im.v.opts.Deadline, Mark: im.v.desks[lane].clock.Take()}
	op.Done = func(op *uring.Op) {
		switch im.v.judge(op.Err) {
		case redirectIt:
			im.v.keep.suspect(failure{err: op.Err, at: somewhere})
			im.flushByCoordinator(lane, end)
		case keepIt:
			im.Flush(lane, end) // waits: the volume is paused
		default:
			end(op.Err)
		}
	}
	im.v.opts.Lanes[lane].Submit(op)
}

// checkChange is check for what needs a recall of r; one that cannot succeed would only keep a worker.
func (im *Image) checkChange(view *protocol.View, r layout.Range) error {
	if err := im.check(view, r); err != nil {
		return err
	}
	if view.Holds(r) {
		return fmt.Errorf("image %s: an earlier I/O at %d is still with the device: %w", im.path, r.Off, ErrWaited)
	}
	return nil
}

// CompareAndWrite writes data at off if the present content equals expect, atomically against every
// other command: the coordinator takes the range back from everyone for it.
func (im *Image) CompareAndWrite(lane int, expect, data []byte, off int64, fua bool, done func(miscompare int, err error)) {
	err := im.checkChange(im.view.Load(), layout.Range{Off: off, Len: int64(len(data))})
	if err == nil && len(expect) != len(data) {
		err = fmt.Errorf("image %s: compare %d bytes, write %d: %w", im.path, len(expect), len(data), ErrRange)
	}
	if err != nil {
		done(-1, err)
		return
	}
	s, err := im.v.swaps.begin(im.v.opts.Node)
	if err != nil {
		done(-1, fmt.Errorf("image %s: compare and write: %w", im.path, err))
		return
	}
	miscompare := -1
	im.send(lane, func(ctx context.Context, c Coordinator, call protocol.Call) error {
		err := s.try(call, func(call protocol.Call) (err error) {
			miscompare, err = c.CompareAndWrite(ctx, call, expect, data, off, fua)
			return err
		})
		im.journal.add()
		im.v.counters[len(im.v.desks)].add(redirectedWrite, int64(len(data)))
		return err
	}, func(err error) {
		im.v.swaps.end(s)
		done(miscompare, err)
	})
}

// maxUnmaps bounds the unmaps of an image that wait on one lane while others are executed.
const maxUnmaps = 4096

// unmaps gathers an image's unmaps of one lane: those that come while some are executed go together.
// Only the lane's thread touches it.
type unmaps struct {
	waiting []unmap
	running bool
}

type unmap struct {
	layout.Range
	since time.Time
	done  func(error)
}

// Unmap gives the range back to the volume; afterwards it reads as zeroes, all of it.
func (im *Image) Unmap(lane int, off, n int64, done func(error)) {
	r := layout.Range{Off: off, Len: n}
	view := im.view.Load()
	if err := im.checkChange(view, r); err != nil {
		done(err)
		return
	}
	if n == 0 || !view.Waits(r) && view.Layout.Is(r, func(s layout.State) bool { return s == layout.Hole }) {
		done(nil)
		return
	}
	q := &im.lanes[lane].unmaps
	if err := q.add(unmap{r, time.Now(), done}); err != nil {
		done(fmt.Errorf("image %s: unmap: %w", im.path, err))
		return
	}
	im.unmapNext(lane)
}

func (q *unmaps) add(u unmap) error {
	if len(q.waiting) >= maxUnmaps {
		return ErrBusy
	}
	q.waiting = append(q.waiting, u)
	return nil
}

// take is everything that waits, unless some are executed.
func (q *unmaps) take() []unmap {
	if q.running || len(q.waiting) == 0 {
		return nil
	}
	all := q.waiting
	q.waiting, q.running = nil, true
	return all
}

// unmapNext has everything that waits executed, unless some are: then their end calls it. Called on the lane.
func (im *Image) unmapNext(lane int) {
	q := &im.lanes[lane].unmaps
	all := q.take()
	if len(all) == 0 {
		return
	}
	ranges := merge(all)
	im.sendSince(all[0].since, lane, func(ctx context.Context, c Coordinator, call protocol.Call) error {
		err := c.Unmap(ctx, call, ranges)
		im.journal.add()
		for _, r := range ranges {
			im.v.metadata(r.Len)
		}
		return err
	}, func(err error) {
		answerAll(all, err) // while running: what they begin waits
		q.running = false
		im.unmapNext(lane)
	})
}

func answerAll(all []unmap, err error) {
	for _, u := range all {
		u.done(err)
	}
}

// merge joins ranges that touch.
func merge(all []unmap) (out []layout.Range) {
	sorted := make([]layout.Range, len(all))
	for i, u := range all {
		sorted[i] = u.Range
	}
	slices.SortFunc(sorted, func(a, b layout.Range) int { return int(min(1, max(-1, a.Off-b.Off))) })
	for _, r := range sorted {
		if n := len(out); n > 0 && r.Off <= out[n-1].End() {
			out[n-1].Len = max(out[n-1].End(), r.End()) - out[n-1].Off
			continue
		}
		out = append(out, r)
	}
	return out
}

// Calls for callers off the lanes.

// maxBlocking is the most that one step of ReadAt and WriteAt moves.
const maxBlocking = 1 << 20

// ReadAt fills p from off; the range lies inside the image, in sectors of 512 bytes.
func (im *Image) ReadAt(p []byte, off int64) (int, error) {
	return im.steps(p, off, func(lane int, buf, part []byte, off int64, done func(error)) {
		im.Read(lane, buf, off, func(err error) {
			copy(part, buf)
			done(err)
		})
	})
}

// WriteAt stores p at off; the range lies inside the image, in sectors of 512 bytes.
func (im *Image) WriteAt(p []byte, off int64) (int, error) {
	return im.steps(p, off, func(lane int, buf, part []byte, off int64, done func(error)) {
		copy(buf, part)
		im.Write(lane, buf, off, false, done)
	})
}

// Sync makes what was written durable.
func (im *Image) Sync() error { return im.wait(im.Flush) }

// Discard gives a range back to the volume.
func (im *Image) Discard(off, n int64) error {
	return im.wait(func(lane int, done func(error)) { im.Unmap(lane, off, n, done) })
}

// wait runs one operation on a lane, each call on the next one.
func (im *Image) wait(operation func(lane int, done func(error))) error {
	v := im.v
	lane := int(v.next.Add(1)) % len(v.opts.Lanes)
	result := make(chan error, 1)
	if err := v.opts.Lanes[lane].Post(func() { operation(lane, func(err error) { result <- err }) }); err != nil {
		return fmt.Errorf("image %s: %w", im.path, err)
	}
	return <-result
}

// steps moves p through aligned buffers.
func (im *Image) steps(p []byte, off int64, step func(lane int, buf, part []byte, off int64, done func(error))) (n int, err error) {
	pool := im.v.opts.Engine.Pool()
	buf := pool.Get(min(len(p), maxBlocking))
	if buf == nil && len(p) > 0 {
		return 0, fmt.Errorf("image %s: no buffer: %w", im.path, unix.EAGAIN)
	}
	if buf != nil {
		defer pool.Put(buf)
	}
	for n < len(p) {
		part := p[n:min(len(p), n+maxBlocking)]
		err := im.wait(func(lane int, done func(error)) {
			step(lane, buf[:len(part)], part, off+int64(n), done)
		})
		if err != nil {
			return n, err
		}
		n += len(part)
	}
	return n, nil
}
