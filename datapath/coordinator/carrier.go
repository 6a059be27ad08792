package coordinator

import (
	"sync"
	"sync/atomic"

	"lunar/datapath/layout"
	"lunar/datapath/layout/protocol"
	"lunar/datapath/uring"
)

// Lane is one of an engine's I/O threads; *uring.Ring is one, and what injects faults before it.
type Lane interface {
	// Submit is called on the lane's thread; the operation's Done runs there.
	Submit(op *uring.Op)
	// Post runs fn on the lane's thread; any goroutine may call it.
	Post(fn func()) error
}

// lanes are what transfers go by.
type lanes struct {
	file *uring.File // the device; nil without an engine
	all  []Lane
	next atomic.Uint32
}

func (c *Coordinator) openLanes() (err error) {
	engine := c.opts.Engine
	if engine == nil {
		return nil
	}
	c.lanes.all = c.opts.Lanes
	for i := 0; i < engine.Rings() && len(c.opts.Lanes) == 0; i++ {
		c.lanes.all = append(c.lanes.all, engine.Ring(i))
	}
	c.lanes.file, err = engine.Register(c.dev.Fd())
	return err
}

// close waits for what the kernel still does; there is nothing when every call has ended.
func (l *lanes) close() error {
	if l.file == nil {
		return nil
	}
	return l.file.Close()
}

// Carrier executes redirected reads and writes of one image on a lane, many at once without a goroutine
// each. It takes what a blocking Read or Write would do by the device alone, under the same rules:
//
//   - A transfer is a call of the Coordinator, counted from before it has its range until the kernel has
//     let go of it. So it is refused after the term's end, and Handover, Close and the end of a failed term
//     wait for it: none is executed beside a later term (EpochOrder, NoLateWrite).
//   - It shares its range in the image's table while it is under way, and finds its blocks in the layout
//     then. A change, and so COMPARE AND WRITE, waits for its end, and it does not begin beside one
//     (RecallBeforeChange, Atomic).
//   - It writes what is Written and the image's own, as image.place does (ExclusiveWrite): no metadata
//     changes. FUA is the device's, and a Flush empties the same cache.
//
// What has to wait or to allocate, lies in several extents, or fails, is left to the blocking call, which
// alone judges errors.
type Carrier struct {
	c    *Coordinator
	call protocol.Call
	lane Lane
	done func([]*protocol.Transfer)

	mu     sync.Mutex // guards what follows
	queue  []*carried // not with the lane yet
	posted bool       // depart is

	// The lane's.
	going           []*carried
	landed, spare   []*protocol.Transfer
	reporting       bool
	toDepart, toRep func()
}

// carried is a transfer under way.
type carried struct {
	k     *Carrier
	t     *protocol.Transfer
	im    *image
	share protocol.Op
	io    uring.Op
}

// Carrier makes one for an image; nil when the Coordinator has no engine. done gets the transfers that
// have ended, on the lane's thread: it does not block, and does not keep the slice. A Carrier needs no end;
// what it began is over when done has got it.
func (c *Coordinator) Carrier(call protocol.Call, done func([]*protocol.Transfer)) *Carrier {
	if len(c.lanes.all) == 0 {
		return nil
	}
	lane := c.lanes.all[int(c.lanes.next.Add(1)%uint32(len(c.lanes.all)))]
	k := &Carrier{c: c, call: call, lane: lane, done: done}
	k.toDepart, k.toRep = k.depart, k.report
	return k
}

// Start begins what it can, and returns the rest for the blocking way, in batch's memory. It does not
// block. One goroutine at a time calls it.
func (k *Carrier) Start(batch []*protocol.Transfer) (rest []*protocol.Transfer) {
	im, err := k.c.image(k.call)
	if err != nil {
		return batch
	}
	defer k.c.calls.Done()
	if k.c.down.Load() {
		return batch
	}
	k.mu.Lock()
	before := len(k.queue)
	rest = k.load(im, batch)
	post := !k.posted && len(k.queue) > before
	k.posted = k.posted || post
	k.mu.Unlock()
	if post && k.lane.Post(k.toDepart) != nil {
		return append(rest, k.unload()...)
	}
	return rest
}

// load queues what can begin, and returns the rest; mu is locked.
func (k *Carrier) load(im *image, batch []*protocol.Transfer) (rest []*protocol.Transfer) {
	rest = batch[:0]
	im.mu.Lock()
	defer im.mu.Unlock()
	for _, t := range batch {
		if f := im.carry(t); f != nil {
			f.k = k
			k.c.calls.Add(1) // beside Start's own, so the count is not 0
			k.queue = append(k.queue, f)
		} else {
			rest = append(rest, t)
		}
	}
	return rest
}

// unload takes back what the lane did not take: the engine is closing.
func (k *Carrier) unload() (rest []*protocol.Transfer) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, f := range k.queue {
		rest = append(rest, f.free(false))
	}
	k.queue, k.posted = k.queue[:0], false
	return rest
}

// carry gives a transfer its range, if it has it at once and the range is one extent for direct I/O; else
// nil. mu is locked.
func (im *image) carry(t *protocol.Transfer) *carried {
	r := layout.Range{Off: t.Off, Len: int64(len(t.Buf))}
	e, ok := im.layout.At(r.Off)
	fits := e.State.Readable() && (!t.Write || e.State.Writable()) && r.Len <= e.End()-r.Off
	if !ok || im.gone || !fits || r.Len == 0 || !im.whole(r) || !isAligned(t.Buf) {
		return nil
	}
	f, ok := t.Executor.(*carried)
	if !ok {
		f = &carried{t: t}
		f.io.Done, f.io.Released = f.land, f.released
		t.Executor = f
	}
	f.share = protocol.Op{Range: r}
	if im.table.Begin(&f.share); !f.share.Runnable() { // a change has it: nobody waits for this one
		im.wake(im.table.End(&f.share))
		return nil
	}
	f.im = im
	f.io.Code, f.io.FUA = uring.Read, false
	if t.Write {
		f.io.Code, f.io.FUA = uring.Write, t.FUA
	}
	f.io.File, f.io.Buf, f.io.Offset = im.c.lanes.file, t.Buf, e.DevOff+r.Off-e.FileOff
	return f
}

// depart submits what is queued. Called on the lane.
func (k *Carrier) depart() {
	k.mu.Lock()
	k.going, k.queue = k.queue, k.going[:0]
	k.posted = false
	k.mu.Unlock()
	for i, f := range k.going {
		k.going[i] = nil
		if k.c.down.Load() { // Shutdown: nothing more is to reach the device
			k.arrive(f.free(false))
			continue
		}
		k.lane.Submit(&f.io)
	}
}

// land is the Done of a transfer's I/O. NoLateWrite: what the kernel may still do is under way.
func (f *carried) land(op *uring.Op) {
	if k := f.k; !op.Held {
		k.arrive(f.free(op.Err == nil))
	}
}

// released is called when the kernel has let go of an I/O that it had held.
func (f *carried) released() {
	k := f.k
	k.arrive(f.free(false))
}

// free ends the transfer's use of its range, and the call.
func (f *carried) free(done bool) *protocol.Transfer {
	c := f.k.c
	f.im.end(&f.share)
	f.im, f.k, f.io.Buf, f.io.File = nil, nil, nil, nil
	f.t.Done = done
	c.calls.Done()
	return f.t
}

// arrive has a transfer reported, with the others of this batch. Called on the lane.
func (k *Carrier) arrive(t *protocol.Transfer) {
	k.landed = append(k.landed, t)
	if k.reporting {
		return
	}
	k.reporting = true
	if k.lane.Post(k.toRep) != nil {
		k.report()
	}
}

func (k *Carrier) report() {
	batch := k.landed
	k.landed, k.spare, k.reporting = k.spare[:0], batch, false
	k.done(batch)
	clear(batch)
}
