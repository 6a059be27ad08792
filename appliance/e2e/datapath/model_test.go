package datapath

import (
	"bytes"
	"flag"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"lunar/datapath/coordinator"
	"lunar/datapath/volume"
)

var modelSeed = flag.Uint64("seed", 1, "of TestAgainstModel")

// Slots are no multiple of a file system's block, so that neighbours share blocks; each belongs to
// one worker, which knows what it must hold.
const (
	slotSize    = 7 * 512
	slotCount   = 6000
	modelWorker = 6
	modelSteps  = 250
)

// TestAgainstModel has several workers write, read, unmap and compare-and-write their own slots on all
// lanes, while the image grows, is cloned, and is sent through the coordinator and back.
func TestAgainstModel(t *testing.T) {
	each(t, func(t *testing.T, fs coordinator.FSType) {
		loop := scratchDevice(t, fs, 500*mib)
		n := start(t, loop.Path, 1)
		im := n.create("a", slotSize*slotCount)
		m := make([]byte, slotSize*slotCount)
		var workers sync.WaitGroup
		for w := range modelWorker {
			workers.Go(func() {
				if err := (&modelRun{im: im, n: n, m: m, w: w, rng: rand.New(rand.NewPCG(*modelSeed, uint64(w)))}).run(); err != nil {
					t.Errorf("seed %d, worker %d: %v", *modelSeed, w, err)
				}
			})
		}
		stop := make(chan struct{})
		var disturber sync.WaitGroup
		disturber.Go(func() { disturb(t, n, fs, stop) })
		workers.Wait()
		close(stop)
		disturber.Wait()
		if !bytes.Equal(read(t, im, 0, len(m)), m) {
			t.Errorf("seed %d: the image differs from the model", *modelSeed)
		}
		if err := im.Close(ctx); err != nil {
			t.Error(err)
		}
		n.stop()
		checkFileSystem(t, loop.Path, fs)
	})
}

// disturb changes what the workers do not see.
func disturb(t *testing.T, n *node, fs coordinator.FSType, stop chan struct{}) {
	for i := int64(1); ; i++ {
		select {
		case <-stop:
			return
		case <-time.After(15 * time.Millisecond):
		}
		err := n.vol.Resize(ctx, "a", slotSize*slotCount+i*512*9, false)
		if fs == coordinator.XFS && err == nil && i < 10 {
			err = n.vol.Clone(ctx, "a", fmt.Sprintf("snap%d", i))
		}
		if err == nil {
			err = n.vol.Redirect(ctx, volume.Backup, i%4 == 0)
		}
		if err != nil {
			t.Error(err)
		}
	}
}

type modelRun struct {
	im  *volume.Image
	n   *node
	m   []byte // only the worker's slots are touched
	w   int
	rng *rand.Rand
}

func (r *modelRun) run() error {
	for step := range modelSteps {
		off := int64(r.rng.IntN(slotCount/modelWorker)*modelWorker+r.w) * slotSize
		from := r.rng.Int64N(7)
		off, n := off+from*512, (1+r.rng.Int64N(7-from))*512
		if err := r.step(off, n); err != nil {
			return fmt.Errorf("step %d, %d bytes at %d: %w", step, n, off, err)
		}
	}
	return nil
}

func (r *modelRun) step(off, n int64) error {
	switch r.rng.IntN(10) {
	case 0:
		clear(r.m[off : off+n])
		return r.im.Discard(off, n)
	case 1:
		return r.compareAndWrite(off, n)
	case 2:
		return r.im.Sync()
	case 3, 4, 5:
		return r.check(off, n)
	default:
		p := r.random(n)
		copy(r.m[off:], p)
		_, err := r.im.WriteAt(p, off)
		return err
	}
}

func (r *modelRun) random(n int64) []byte {
	p := bytes.Repeat([]byte{byte(r.w)}, int(n))
	for i := range p {
		p[i] ^= byte(r.rng.Uint32())
	}
	return p
}

func (r *modelRun) check(off, n int64) error {
	p := make([]byte, n)
	if _, err := r.im.ReadAt(p, off); err != nil {
		return err
	}
	if !bytes.Equal(p, r.m[off:off+n]) {
		return fmt.Errorf("ReadAfterWrite: wrong content")
	}
	return nil
}

func (r *modelRun) compareAndWrite(off, n int64) error {
	expect, data := bytes.Clone(r.m[off:off+n]), r.random(n)
	wrong := r.rng.IntN(3) == 0
	if wrong {
		expect[n-1] ^= 1
	}
	lane := r.rng.IntN(r.n.engine.Rings())
	result := make(chan error, 1)
	err := r.n.engine.Ring(lane).Post(func() {
		r.im.CompareAndWrite(lane, expect, data, off, false, func(at int, err error) {
			if err == nil && (at >= 0) != wrong {
				err = fmt.Errorf("miscompare at %d, want one: %v", at, wrong)
			}
			result <- err
		})
	})
	if err != nil {
		return err
	}
	if err := <-result; err != nil {
		return err
	}
	if !wrong {
		copy(r.m[off:], data)
	}
	return nil
}
