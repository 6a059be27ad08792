package volume

import (
	"context"
	"sync/atomic"
	"time"

	"lunar/datapath/uring"
)

// keeper is the volume's one goroutine besides the workers: it probes the disk path, ends waits that
// last too long, and has tried again what waits for a coordinator.
type keeper struct {
	v        *Volume
	size     int64 // of the device, when it was opened
	began    time.Time
	path     path
	probing  bool
	again    bool          // a failure came while a probe was under way
	spot     int64         // where the last direct I/O failed
	looked   time.Duration // when the last probe began
	busy     atomic.Bool
	suspects chan failure
	probes   chan probed
	fences   chan error
	waiting  chan struct{} // something waits for a coordinator
	quit     chan struct{}
	ended    chan struct{}
}

// failure is an I/O that failed, at a place of the device; missed: by its deadline.
type failure struct {
	err    error
	at     int64
	missed bool
}

// somewhere is where an I/O failed that has no place of its own.
const somewhere = -1

// probed is what a probe found.
type probed struct {
	ends, spot bool
	err        error
}

// look is how often the keeper looks for I/O that has waited too long.
const look = 250 * time.Millisecond

// startKeeper begins its work; ctx does not end.
func startKeeper(ctx context.Context, v *Volume, size int64) *keeper {
	k := &keeper{v: v, size: size, began: time.Now(), suspects: make(chan failure, 1), probes: make(chan probed, 1),
		fences: make(chan error, 1), waiting: make(chan struct{}, 1), quit: make(chan struct{}), ended: make(chan struct{})}
	go k.run(ctx)
	return k
}

func (k *keeper) stop() {
	close(k.quit)
	<-k.ended
}

// suspect has the disk path probed. It never blocks.
func (k *keeper) suspect(f failure) { offer(k.suspects, f) }

// fencedBy has Options.Fenced called. It never blocks.
func (k *keeper) fencedBy(err error) { offer(k.fences, err) }

// soon has what waits for a coordinator tried again, images that are astray too. It never blocks.
func (k *keeper) soon() { offer(k.waiting, struct{}{}) }

// offer hands x over unless something waits there already.
func offer[T any](to chan T, x T) {
	select {
	case to <- x:
	default:
	}
}

func (k *keeper) run(ctx context.Context) {
	defer close(k.ended)
	parked, probe, retry := time.NewTicker(look), time.NewTicker(k.v.opts.Probe), time.NewTimer(tryAgain)
	defer parked.Stop()
	defer probe.Stop()
	defer retry.Stop()
	for {
		select {
		case <-k.quit:
			if k.probing {
				<-k.probes
			}
			return
		case f := <-k.suspects:
			k.suspected(f)
		case p := <-k.probes:
			k.judge(p)
		case <-probe.C:
			if k.path.down || k.now()-k.looked >= idleProbe {
				k.probe()
			}
		case err := <-k.fences:
			k.v.opts.Log.Error("the device keeps this node out", "volume", k.v.opts.Name, "err", err)
			k.v.opts.Fenced(err)
		case now := <-parked.C:
			k.expire(now)
		case <-k.waiting:
			retry.Reset(tryAgain)
		case now := <-retry.C:
			if k.tryAgain(ctx, now) {
				retry.Reset(tryAgain)
			}
		}
	}
}

// tryAgain tries what waits for a coordinator, and tells whether something still does.
func (k *keeper) tryAgain(ctx context.Context, now time.Time) (more bool) {
	left := k.v.retryStranded(now)
	astray := len(k.v.astray()) > 0
	if astray && k.v.pausing.Load() == 0 && k.busy.CompareAndSwap(false, true) {
		k.v.work.run(func() {
			defer k.busy.Store(false)
			k.v.reattach(ctx)
		})
	}
	return left > 0 || astray && k.v.pausing.Load() == 0
}

func (k *keeper) now() time.Duration { return time.Since(k.began) }

// suspected probes because of a failure.
func (k *keeper) suspected(f failure) {
	if faultOf(f.err) == ofMedium {
		return // the path brought that answer
	}
	if f.at != somewhere {
		k.spot = f.at
	}
	k.path.failed(k.now(), f.missed)
	k.show(nil)
	k.probe()
}

// judge sets the volume's state by what a probe found.
func (k *keeper) judge(p probed) {
	k.probing = false
	was := k.v.mute.Load()
	k.path.wrote(was)
	k.path.probed(k.now(), p.ends, p.spot)
	if was && !k.path.mute {
		k.v.mute.Store(false)
	}
	k.show(p.err)
	if k.again {
		k.again = false
		k.probe()
	}
}

// show makes the path's state the volume's.
func (k *keeper) show(cause error) {
	if k.v.setReason(NoDiskConnectivity, k.path.down) {
		k.v.opts.Log.Warn("disk path", "volume", k.v.opts.Name, "up", !k.path.down, "probe", cause)
	}
}

// probeSize is what a probe reads at each place.
const probeSize = 4096

// idleProbe is how often the path is probed that no I/O showed to be cut: perhaps there is none.
const idleProbe = 2 * time.Second

// probeDeadline bounds each read of a probe.
const probeDeadline = 5 * time.Second

// probe reads from the device as a direct I/O would: at its begin and its end, since a path is also cut
// when the device is smaller there, and where an I/O failed. One at a time.
func (k *keeper) probe() {
	if k.probing {
		k.again = true
		return
	}
	pool := k.v.opts.Engine.Pool()
	buf := pool.Get(probeSize)
	if buf == nil {
		return // a busy pool says nothing about the path
	}
	places := []int64{0, max(0, (k.size-probeSize)&^(probeSize-1)), min(k.spot&^(probeSize-1), max(0, k.size-probeSize))}
	lane := k.v.opts.Lanes[0]
	op := &uring.Op{Code: uring.Read, File: k.v.file, Buf: buf, Deadline: probeDeadline}
	next := 0
	end := func(p probed) {
		pool.Put(buf)
		k.probes <- p
	}
	op.Done = func(op *uring.Op) {
		next++
		switch {
		case op.Err != nil:
			end(probed{ends: next == len(places) || faultOf(op.Err) == ofMedium, err: op.Err}) // the path brought that answer
		case next == len(places):
			end(probed{ends: true, spot: true})
		default:
			op.Offset = places[next]
			lane.Submit(op)
		}
	}
	k.probing, k.looked = true, k.now()
	if err := lane.Post(func() { lane.Submit(op) }); err != nil {
		end(probed{err: err})
	}
}

// expire ends waits that are over the limit of redirected operations.
func (k *keeper) expire(now time.Time) {
	if k.v.parked.Load() == 0 {
		return
	}
	for _, im := range k.v.openImages() {
		if im.waiting.Load() > 0 {
			im.lookAgain(now.Add(-k.v.opts.Redirected))
		}
	}
}
