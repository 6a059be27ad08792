package volume

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var (
	pathSeed  = flag.Uint64("pathseed", 0, "replay this seed of TestPathSimulation alone")
	pathSeeds = flag.Uint64("pathseeds", 300, "seeds that TestPathSimulation runs")
)

// TestPathSimulation runs the path's state machine over a disk path that comes and goes, bad blocks, and
// a device that takes no writes, with probes that take their time; one seed decides all.
func TestPathSimulation(t *testing.T) {
	if *pathSeed != 0 {
		if err := simulatePath(*pathSeed); err != nil {
			t.Fatal(err)
		}
		return
	}
	for seed := uint64(1); seed <= *pathSeeds; seed++ {
		if err := simulatePath(seed); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
}

// pathWorld is a disk, its path, and the keeper's rules, in steps of a millisecond.
type pathWorld struct {
	rng      *rand.Rand
	now      time.Duration
	up       bool
	hangs    bool // while down I/O does not fail but miss its deadline
	since    time.Duration
	badSpot  bool // some blocks fail by EIO, whatever the path
	readOnly bool // writes fail on every path
	idle     bool // nothing is written while the path is down

	p       path
	ends    time.Duration // of the probe under way; 0: none
	again   bool
	spotBad bool // the last failure was at a bad block
	failed  time.Duration
	direct  int // I/Os that failed directly while the path was down
}

const (
	simProbe    = 500 * time.Millisecond // between probes
	simDeadline = 200 * time.Millisecond
)

func simulatePath(seed uint64) error {
	w := &pathWorld{rng: rand.New(rand.NewPCG(seed, 0x9a)), up: true, failed: -1}
	w.badSpot, w.readOnly, w.idle = w.rng.IntN(3) == 0, w.rng.IntN(8) == 0, w.rng.IntN(2) == 0
	for w.now < 30*time.Second {
		w.now += time.Millisecond
		if err := w.step(); err != nil {
			return fmt.Errorf("at %v: %w", w.now, err)
		}
	}
	return nil
}

func (w *pathWorld) step() error {
	if w.rng.IntN(3000) == 0 && w.now-w.since > time.Second {
		w.up, w.hangs, w.since = !w.up, w.rng.IntN(2) == 0, w.now
		w.failed = -1
	}
	if w.rng.IntN(20) == 0 && !w.p.down {
		w.io()
	}
	if w.p.down && !w.idle && w.rng.IntN(20) == 0 { // a redirected write
		w.p.wrote(w.readOnly || w.badSpot && w.rng.IntN(50) == 0)
	}
	if w.ends > 0 && w.now >= w.ends {
		w.probed()
	}
	if w.now%simProbe == 0 && w.p.down {
		w.probe()
	}
	return w.check()
}

// io is a direct I/O, and what follows from its end.
func (w *pathWorld) io() {
	write, bad := w.rng.IntN(2) == 0, w.badSpot && w.rng.IntN(50) == 0
	fails := !w.up || bad || write && w.readOnly
	if !fails {
		return
	}
	w.spotBad = bad
	w.p.failed(w.now, !w.up && w.hangs)
	if !w.up {
		w.direct++
		if w.failed < 0 {
			w.failed = w.now
		}
	}
	if write { // redirected: the coordinator's own path is up
		w.p.wrote(bad || w.readOnly)
	}
	w.probe()
}

func (w *pathWorld) probe() {
	if w.ends > 0 {
		w.again = true
		return
	}
	took := time.Duration(1+w.rng.IntN(20)) * time.Millisecond
	if !w.up && w.hangs {
		took = simDeadline
	}
	w.ends = w.now + took
}

func (w *pathWorld) probed() {
	w.ends = 0
	w.p.probed(w.now, w.up, w.up && !w.spotBad)
	if w.again {
		w.again = false
		w.probe()
	}
}

// check: a lost path is found soon after the first I/O that failed, and a returned one used again within
// 2 s; bad blocks do not count as a lost path; a device that takes no writes does not flap.
func (w *pathWorld) check() error {
	calm := w.now - w.since
	switch {
	case !w.up && w.failed >= 0 && w.now-w.failed > 2*simDeadline+50*time.Millisecond && !w.p.down:
		return errors.New("NoDiskConnectivity: a lost path was not found")
	case w.up && calm > 2*time.Second && w.p.down && !w.readOnly:
		return errors.New("direct again within 2 s: a path that is back is not used")
	}
	return nil
}

func TestWhatErrorsMean(t *testing.T) {
	for err, want := range map[error]verdict{
		nil: answerIt, unix.EINVAL: answerIt, unix.EIO: redirectIt, unix.ETIMEDOUT: redirectIt,
		unix.ENODATA: redirectIt, unix.EBADE: keepIt,
	} {
		v := testVolume(1)
		v.keep = &keeper{v: v, fences: make(chan error, 1)}
		v.opts.Fenced = func(error) {}
		if got := v.judge(err); got != want {
			t.Errorf("%v: verdict %d, want %d", err, got, want)
		}
		if fenced := v.pausing.Load() != 0; fenced != errors.Is(err, unix.EBADE) {
			t.Errorf("%v: fenced %v", err, fenced)
		}
	}
	if v := testVolume(1); v.judge(unix.EBADE) != redirectIt || v.pausing.Load() != 0 {
		t.Error("without a callback a reservation conflict is a lost path")
	}
	if v := testVolume(1); v.judgeIO(unix.ENOSPC, true) != redirectIt || v.judgeIO(unix.ENOSPC, false) != answerIt {
		t.Error("ENOSPC")
	}
}
