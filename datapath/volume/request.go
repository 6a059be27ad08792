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
	clock    Clock
	_        [32]byte
}

// request is one Read or Write of an initiator. It goes back to its lane's desk before done is called.
type request struct {
	im    *Image
	lane  int
	write bool
	fua   bool
	mark  uint32 // of the command that it does; 0: not timed
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
	im.begin(lane, im.v.desks[lane].clock.Take(), p, off, false, false, done)
}

// Write stores p at off; with fua it is durable, its metadata too, before done.
func (im *Image) Write(lane int, p []byte, off int64, fua bool, done func(error)) {
	im.begin(lane, im.v.desks[lane].clock.Take(), p, off, true, fua, done)
}

func (im *Image) begin(lane int, mark uint32, p []byte, off int64, write, fua bool, done func(error)) {
	view := im.view.Load()
	r := layout.Range{Off: off, Len: int64(len(p))}
	if err := im.check(view, r); err != nil {
		done(err)
		return
	}
	if view.Waits(r) {
		im.park(lane, parked{span: r, again: func() { im.begin(lane, mark, p, off, write, fua, done) }, fail: done})
		return
	}
	req := im.v.desks[lane].request()
	req.im, req.lane, req.mark, req.write, req.fua, req.buf, req.off, req.done = im, lane, mark, write, fua, p, off, done
	req.issue(view)
}

// check refuses what lies outside the image or is not made of sectors of 512 bytes.
func (im *Image) check(view *protocol.View, r layout.Range) error {
	if view == nil {
		return im.closed()
	}
	if size := view.Layout.Size(); r.Off < 0 || r.Len < 0 || r.Off > size || r.Len > size-r.Off || (r.Off|r.Len)&511 != 0 {
		return fmt.Errorf("image %s: %d bytes at %d of %d: %w", im.path, r.Len, r.Off, size, ErrRange)
	}
	return nil
}

// closed says why there is no view.
func (im *Image) closed() error {
	if gone := im.gone.Load(); gone != nil {
		return *gone
	}
	return fmt.Errorf("image %s: %w", im.path, ErrClosed)
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
	p.op.Code, p.op.FUA, p.op.Mark = uring.Read, false, req.mark
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
		im.v.keep.suspect(failure{err: err, at: op.Offset, missed: true})
		req.release(err)
		return
	}
	at := op.Offset
	im.lanes[lane].flights.End(&p.flight)
	im.v.desks[lane].free(p)
	if err == nil {
		im.v.counters[lane].add(req.class(), r.Len)
		req.release(nil)
		return
	}
	switch im.v.judgeIO(err, req.write) {
	case redirectIt:
		im.v.keep.suspect(failure{err: err, at: at, missed: errors.Is(err, unix.ETIMEDOUT)})
		req.redirect(r.Off, r.End())
		err = nil
	case keepIt:
		req.keep(r)
		err = nil
	}
	req.release(err)
}

// keep begins a part of the request anew, which will wait: the volume is paused.
func (req *request) keep(r layout.Range) {
	req.left++
	req.im.begin(req.lane, req.mark, req.part(r.Off, r.End()), r.Off, req.write, req.fua, req.release)
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
	im.v.desks[req.lane].clock.Redirected(req.mark)
	im.send(req.lane, func(ctx context.Context, c Coordinator, call protocol.Call) error {
		k := redirectedRead
		var err error
		if write {
			k = redirectedWrite
			err = c.Write(ctx, call, buf, off, fua)
			im.journal.add() // before it is acknowledged, so that no flush after that misses it
		} else {
			err = c.Read(ctx, call, buf, off)
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

// parked is an I/O that waits for the grant that ends a recall, or for the end of a pause.
type parked struct {
	span  layout.Range
	flush bool // waits for the end of a pause alone
	again func()
	fail  func(error)
	since time.Time
}

func (p *parked) waits(view *protocol.View) bool {
	return view != nil && (view.Paused || !p.flush && view.Waits(p.span))
}

// MaxParked bounds the I/O of an image that waits on one lane.
const MaxParked = 4096

// park lets an I/O wait. Called on the lane.
func (im *Image) park(lane int, p parked) {
	if len(im.lanes[lane].parked) >= MaxParked {
		p.fail(fmt.Errorf("image %s: %w", im.path, ErrBusy))
		return
	}
	p.since = time.Now()
	im.lanes[lane].parked = append(im.lanes[lane].parked, p)
	im.v.parked.Add(1)
	im.waiting.Add(1)
	// The grant may have come between the look at the view and the count.
	if !p.waits(im.view.Load()) {
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
		late := p.since.Before(expired)
		if p.waits(im.view.Load()) && !late {
			st.parked = append(st.parked, p)
			continue
		}
		im.v.parked.Add(-1)
		im.waiting.Add(-1)
		if late {
			p.fail(fmt.Errorf("image %s: %d bytes at %d: %w", im.path, p.span.Len, p.span.Off, ErrWaited))
			continue
		}
		p.again()
	}
}
