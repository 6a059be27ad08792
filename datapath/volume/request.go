package volume

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"lunar/datapath/layout"
	"lunar/datapath/layout/protocol"
	"lunar/datapath/uring"
)

// desk has a lane's free requests and pieces; only the lane's thread touches it.
type desk struct {
	requests *request
	pieces   *piece
	_        [48]byte
}

// request is one Read or Write of an initiator. It goes back to its lane's desk before done is called.
type request struct {
	im    *Image
	lane  int
	write bool
	fua   bool
	buf   []byte
	off   int64
	done  func(error)
	left  int // pieces under way, and one while pieces are still being made
	err   error
	next  *request
}

// piece is a part of a request that is one direct I/O.
type piece struct {
	op     uring.Op
	flight protocol.Flight
	im     *Image
	lane   int
	req    *request
	hold   uint64 // number of the hold, when the kernel may still do this write
	next   *piece
}

// Read fills p from off. A range that was never written, or was unmapped, reads as zeroes.
func (im *Image) Read(lane int, p []byte, off int64, done func(error)) {
	im.begin(lane, p, off, false, false, done)
}

// Write stores p at off; with fua it is durable, its metadata too, before done.
func (im *Image) Write(lane int, p []byte, off int64, fua bool, done func(error)) {
	im.begin(lane, p, off, true, fua, done)
}

func (im *Image) begin(lane int, p []byte, off int64, write, fua bool, done func(error)) {
	view := im.view.Load()
	r := layout.Range{Off: off, Len: int64(len(p))}
	if err := im.check(view, r); err != nil {
		done(err)
		return
	}
	if view.Waits(r) {
		im.park(lane, parked{buf: p, off: off, write: write, fua: fua, done: done})
		return
	}
	req := im.v.desks[lane].request()
	req.im, req.lane, req.write, req.fua, req.buf, req.off, req.done = im, lane, write, fua, p, off, done
	req.issue(view)
}

// check refuses what lies outside the image or is not made of sectors of 512 bytes.
func (im *Image) check(view *protocol.View, r layout.Range) error {
	if view == nil {
		return fmt.Errorf("image %s: %w", im.path, ErrClosed)
	}
	if size := view.Layout.Size(); r.Off < 0 || r.Len < 0 || r.Off > size || r.Len > size-r.Off || (r.Off|r.Len)&511 != 0 {
		return fmt.Errorf("image %s: %d bytes at %d of %d: %w", im.path, r.Len, r.Off, size, ErrRange)
	}
	return nil
}

func (d *desk) request() *request {
	req := d.requests
	if req == nil {
		return &request{}
	}
	d.requests, req.next = req.next, nil
	return req
}

func (d *desk) piece() *piece {
	p := d.pieces
	if p == nil {
		p = &piece{}
		p.op.Done, p.op.Released = p.landed, p.released
		return p
	}
	d.pieces, p.next = p.next, nil
	return p
}

func (d *desk) free(p *piece) {
	p.im, p.req, p.op.Buf, p.op.Err = nil, nil, nil, nil
	p.next, d.pieces = d.pieces, p
}

// issue splits the request by the extents of view, and joins what goes to the coordinator.
func (req *request) issue(view *protocol.View) {
	req.left, req.err = 1, nil
	unit := int64(req.im.v.opts.Device.LogicalBlock)
	whole := (req.off|int64(len(req.buf)))&(unit-1) == 0
	end := req.off + int64(len(req.buf))
	redirect := req.off // begin of what was not dispatched yet
	for off := req.off; off < end; {
		e, direct := view.Direct(off, req.write)
		e = e.Clip(off, end)
		if direct && (whole || e.State.Zero()) {
			req.redirect(redirect, off)
			req.direct(e)
			redirect = e.End()
		}
		off = e.End()
	}
	req.redirect(redirect, end)
	req.release(nil)
}

func (req *request) part(off, end int64) []byte { return req.buf[off-req.off : end-req.off] }

// direct does what e says by the device, or at once.
func (req *request) direct(e layout.Extent) {
	buf := req.part(e.FileOff, e.End())
	if e.State.Zero() {
		clear(buf)
		return
	}
	v := req.im.v
	p := v.desks[req.lane].piece()
	p.im, p.lane, p.req = req.im, req.lane, req
	p.op.Code, p.op.FUA = uring.Read, false
	if req.write {
		p.op.Code, p.op.FUA = uring.Write, req.fua
	}
	p.op.File, p.op.Buf, p.op.Offset, p.op.Deadline = v.file, buf, e.DevOff, v.opts.Deadline
	req.left++
	req.im.lanes[req.lane].flights.Begin(&p.flight, layout.Range{Off: e.FileOff, Len: e.Len})
	v.opts.Lanes[req.lane].Submit(&p.op)
}

// landed is the Done of a piece's Op.
func (p *piece) landed(op *uring.Op) {
	req, im, lane, err, r := p.req, p.im, p.lane, op.Err, p.flight.Range
	if op.Held {
		p.keepOut()
		im.v.keep.suspect(err)
		req.release(err)
		return
	}
	im.lanes[lane].flights.End(&p.flight)
	im.v.desks[lane].free(p)
	switch {
	case err == nil:
		im.v.counters[lane].add(req.class(), r.Len)
	case ofPath(err) || req.write && errors.Is(err, unix.ENOSPC): // a device that has shrunk, or is thin itself
		im.v.keep.suspect(err)
		req.redirect(r.Off, r.End())
		err = nil
	}
	req.release(err)
}

func (req *request) class() class {
	if req.write {
		return directWrite
	}
	return directRead
}

// keepOut lets nothing into the range of an I/O that the kernel may still do, until released.
// NoLateWrite: the flight goes on until then, so no recall of the range succeeds.
func (p *piece) keepOut() {
	im, number, r := p.im, p.im.holds.Add(1), p.flight.Range
	p.hold = number
	_ = im.change(func(v *protocol.View) (*protocol.View, error) { return v.Held(number, r), nil })
	im.v.opts.Log.Error("an I/O cannot be cancelled", "image", im.path, "off", r.Off, "err", p.op.Err)
}

// released is called when the kernel has let go of an operation that it had held.
func (p *piece) released() {
	im, lane, number := p.im, p.lane, p.hold
	_ = im.change(func(v *protocol.View) (*protocol.View, error) { return v.LetGo(number), nil })
	im.lanes[lane].flights.End(&p.flight)
	im.v.desks[lane].free(p)
	im.resume()
}

// release counts one piece out, and ends the request with the last.
func (req *request) release(err error) {
	if err != nil && req.err == nil {
		req.err = err
	}
	if req.left--; req.left > 0 {
		return
	}
	done, failed, im := req.done, req.err, req.im
	d := &im.v.desks[req.lane]
	req.im, req.buf, req.done, req.err = nil, nil, nil, nil
	req.next, d.requests = d.requests, req
	if failed != nil {
		failed = fmt.Errorf("image %s: %w", im.path, failed)
	}
	done(failed)
}

// redirect sends [off, end) to the coordinator.
func (req *request) redirect(off, end int64) {
	if off >= end {
		return
	}
	req.left++
	im, buf, write, fua := req.im, req.part(off, end), req.write, req.fua
	im.send(req.lane, func(ctx context.Context) error {
		k := redirectedRead
		var err error
		if write {
			k = redirectedWrite
			err = im.v.opts.Coordinator.Write(ctx, im.call, buf, off, fua)
			im.journal.add() // before it is acknowledged, so that no flush after that misses it
		} else {
			err = im.v.opts.Coordinator.Read(ctx, im.call, buf, off)
		}
		if err == nil {
			im.v.counters[len(im.v.desks)].add(k, end-off)
		}
		im.v.heard(err)
		if write {
			im.v.heardWrite(err)
		}
		return err
	}, req.release)
}

// send lets a worker do what blocks, and brings the result back to the lane. Called on the lane.
func (im *Image) send(lane int, do func(context.Context) error, done func(error)) {
	v := im.v
	trip := &protocol.Flight{}
	away := &im.lanes[lane].away
	away.Begin(trip, protocol.Everywhere)
	accepted := v.work.try(func() {
		ctx, cancel := context.WithTimeout(context.Background(), v.opts.Redirected)
		err := do(ctx)
		cancel()
		v.answer(context.Background(), lane, func() {
			away.End(trip)
			done(err)
		})
	})
	if !accepted {
		away.End(trip)
		done(ErrBusy)
	}
}

// answer runs fn on the lane's thread; on the caller's only when that thread is gone. ctx
// does not end. Called by workers.
func (v *Volume) answer(ctx context.Context, lane int, fn func()) {
	if v.post(ctx, lane, fn) != nil {
		fn()
	}
}

// postRetry is how soon a post to a lane whose mailbox is full is tried again.
const postRetry = time.Millisecond

// post runs fn on the lane's thread, and waits while its mailbox is full. Not called on lanes.
func (v *Volume) post(ctx context.Context, lane int, fn func()) error {
	err := v.opts.Lanes[lane].Post(fn)
	for ; errors.Is(err, uring.ErrQueueFull) && ctx.Err() == nil; err = v.opts.Lanes[lane].Post(fn) {
		time.Sleep(postRetry)
	}
	return err
}

// heard notes how the coordinator fared with the disk.
func (v *Volume) heard(err error) {
	if deaf := err != nil && ofPath(err); deaf != v.deaf.Load() {
		v.deaf.Store(deaf)
	}
}

// heardWrite notes that the device takes no writes by any path, or does again: a probe only reads.
func (v *Volume) heardWrite(err error) {
	mute := err != nil && ofPath(err) && !errors.Is(err, unix.ETIMEDOUT) && !errors.Is(err, unix.ESTALE)
	if v.mute.Swap(mute) != mute && mute {
		v.keep.suspect(err)
	}
}

// parked is an I/O that waits for the grant that ends a recall.
type parked struct {
	buf        []byte
	off        int64
	write, fua bool
	done       func(error)
	since      time.Time
}

func (p *parked) span() layout.Range { return layout.Range{Off: p.off, Len: int64(len(p.buf))} }

// MaxParked bounds the I/O of an image that waits on one lane.
const MaxParked = 4096

// park lets an I/O wait. Called on the lane.
func (im *Image) park(lane int, p parked) {
	if len(im.lanes[lane].parked) >= MaxParked {
		p.done(fmt.Errorf("image %s: %w", im.path, ErrBusy))
		return
	}
	p.since = time.Now()
	im.lanes[lane].parked = append(im.lanes[lane].parked, p)
	im.v.parked.Add(1)
	im.waiting.Add(1)
	// The grant may have come between the look at the view and the count.
	if view := im.view.Load(); view == nil || !view.Waits(p.span()) {
		im.unpark(lane, time.Time{})
	}
}

// resume lets parked I/O look again.
func (im *Image) resume() {
	if im.waiting.Load() > 0 {
		im.lookAgain(time.Time{})
	}
}

// lookAgain has every lane unpark.
func (im *Image) lookAgain(expired time.Time) {
	for i, lane := range im.v.opts.Lanes {
		_ = lane.Post(func() { im.unpark(i, expired) })
	}
}

// unpark begins what need not wait any more, and fails what waits since before expired.
func (im *Image) unpark(lane int, expired time.Time) {
	st := &im.lanes[lane]
	waiting := st.parked
	st.parked = nil
	for i := range waiting {
		p := waiting[i]
		view := im.view.Load()
		late := p.since.Before(expired)
		if view != nil && view.Waits(p.span()) && !late {
			st.parked = append(st.parked, p)
			continue
		}
		im.v.parked.Add(-1)
		im.waiting.Add(-1)
		if late {
			p.done(fmt.Errorf("image %s: %d bytes at %d: %w", im.path, len(p.buf), p.off, ErrWaited))
			continue
		}
		im.begin(lane, p.buf, p.off, p.write, p.fua, p.done)
	}
}
