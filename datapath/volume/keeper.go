package volume

import (
	"time"

	"lunar/datapath/uring"
)

// keeper is the volume's one goroutine besides the workers: it probes the disk path, and ends waits
// that last too long.
type keeper struct {
	v        *Volume
	suspects chan error
	quit     chan struct{}
	ended    chan struct{}
}

// look is how often the keeper looks for I/O that has waited too long.
const look = 250 * time.Millisecond

func startKeeper(v *Volume) *keeper {
	k := &keeper{v: v, suspects: make(chan error, 1), quit: make(chan struct{}), ended: make(chan struct{})}
	go k.run()
	return k
}

func (k *keeper) stop() {
	close(k.quit)
	<-k.ended
}

// suspect has the disk path probed. It never blocks.
func (k *keeper) suspect(err error) {
	select {
	case k.suspects <- err:
	default: // it is being probed already
	}
}

func (k *keeper) run() {
	defer close(k.ended)
	parked, probe := time.NewTicker(look), time.NewTicker(k.v.opts.Probe)
	defer parked.Stop()
	defer probe.Stop()
	for down := false; ; {
		select {
		case <-k.quit:
			return
		case err := <-k.suspects:
			down = k.judge(down, err)
		case <-probe.C:
			if down {
				down = k.judge(down, nil)
			}
		case now := <-parked.C:
			k.expire(now)
		}
	}
}

// judge probes the path and sets the volume's state by what it finds; cause is what raised suspicion.
func (k *keeper) judge(wasDown bool, cause error) (down bool) {
	err := k.probe()
	down = err != nil || k.v.mute.Load()
	if down != wasDown {
		k.v.opts.Log.Warn("disk path", "volume", k.v.opts.Name, "up", !down, "probe", err, "cause", cause)
		k.v.setReason(NoDiskConnectivity, down)
	}
	return down
}

// probeSize is what a probe reads, at the device's begin.
const probeSize = 4096

// probeDeadline bounds a probe.
const probeDeadline = 5 * time.Second

// probe reads from the device as a direct I/O would.
func (k *keeper) probe() error {
	pool := k.v.opts.Engine.Pool()
	buf := pool.Get(probeSize)
	if buf == nil {
		return nil // a busy pool says nothing about the path
	}
	defer pool.Put(buf)
	done := make(chan error, 1)
	op := &uring.Op{Code: uring.Read, File: k.v.file, Buf: buf, Deadline: probeDeadline,
		Done: func(op *uring.Op) { done <- op.Err }}
	lane := k.v.opts.Lanes[0]
	if err := lane.Post(func() { lane.Submit(op) }); err != nil {
		return err
	}
	return <-done
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
