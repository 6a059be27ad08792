package volume

import (
	"context"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"lunar/datapath/layout/protocol"
)

// Follow begins the term of another coordinator, or goes on with one after Orphan. It attaches every
// open image there, and then acknowledges the term. Direct I/O goes on meanwhile, by the layouts of the
// term before. What waits for a coordinator goes on as soon as its image is attached.
//
// An image that cannot be attached waits, and is tried again in the background; its I/O fails with
// ErrGone when its file is not there any more. ErrStale: a later term is known, or has come meanwhile.
// After any other error, which is ctx's or the coordinator's, call Follow again: the coordinator changes
// nothing before it has the acknowledgement.
func (v *Volume) Follow(ctx context.Context, c Coordinator) error {
	began := time.Now()
	t, images, err := v.succeed(c)
	if err != nil {
		return err
	}
	errs := make([]error, len(images))
	eachOf(len(images), func(i int) { errs[i] = images[i].follow(ctx, t) })
	for _, err := range errs {
		if err != nil {
			return fmt.Errorf("volume %s: follow epoch %d: %w", v.opts.Name, t.epoch, err)
		}
	}
	if err := v.acknowledge(ctx, t); err != nil {
		return fmt.Errorf("volume %s: acknowledge epoch %d: %w", v.opts.Name, t.epoch, err)
	}
	v.departed(ctx, t)
	v.opts.Log.Info("coordinator followed", "volume", v.opts.Name, "epoch", t.epoch, "images", len(images), "took", time.Since(began))
	return nil
}

// Orphan says that there is no coordinator now. Direct I/O goes on; what needs a coordinator waits for
// the next Follow, Options.Redirected at most.
func (v *Volume) Orphan() {
	v.mu.Lock()
	defer v.mu.Unlock()
	if was := v.term.Load(); was.c != nil {
		v.term.Store(newTerm(nil, was.epoch))
		was.end()
		v.opts.Log.Info("no coordinator", "volume", v.opts.Name, "epoch", was.epoch)
	}
}

// succeed makes c the coordinator, and returns the images that were open then: one that is opened
// later is attached to it, or finds that it is not the one any more.
func (v *Volume) succeed(c Coordinator) (*term, []*Image, error) {
	t := newTerm(c, c.Epoch())
	v.mu.Lock()
	defer v.mu.Unlock()
	was := v.term.Load()
	switch {
	case v.closed:
		return nil, nil, fmt.Errorf("volume %s: %w", v.opts.Name, ErrClosed)
	case t.epoch < was.epoch:
		return nil, nil, fmt.Errorf("volume %s: epoch %d after %d: %w", v.opts.Name, t.epoch, was.epoch, protocol.ErrStale)
	case t.epoch == 0:
		return nil, nil, fmt.Errorf("volume %s: a coordinator of epoch 0: %w", v.opts.Name, unix.EINVAL)
	}
	v.term.Store(t)
	was.end()
	images := make([]*Image, 0, len(v.images))
	for _, im := range v.images {
		images = append(images, im)
	}
	return t, images, nil
}

// departed tells the coordinator, when it is the same again, what was closed without it.
func (v *Volume) departed(ctx context.Context, t *term) {
	v.mu.Lock()
	all := v.departs
	v.departs = nil
	v.mu.Unlock()
	for _, a := range all {
		if a.epoch != t.epoch || a.by != t.c {
			continue
		}
		if err := t.c.Detach(ctx, a.call, a.holder); err != nil {
			v.opts.Log.Warn("image not closed at the coordinator", "image", a.im.path, "err", err)
		}
	}
}

// follow attaches an image under t. nil means that nothing goes by an older view any more.
func (im *Image) follow(ctx context.Context, t *term) error {
	for {
		err := im.attach(ctx, t)
		switch {
		case err == nil:
			return nil
		case t.over():
			return fmt.Errorf("image %s: another term came: %w", im.path, protocol.ErrStale)
		case ctx.Err() != nil:
			return err
		case isGone(err):
			return im.lose(ctx, err)
		case !t.again(err):
			im.v.opts.Log.Warn("image waits to be attached", "image", im.path, "epoch", t.epoch, "err", err)
			return im.stray(ctx)
		}
		wait := waiting{left: time.Hour}
		if err := wait.forTerm(ctx, t, tryAgain); err != nil {
			return err
		}
	}
}

// acknowledge says that nothing goes by an older view, until it is heard.
func (v *Volume) acknowledge(ctx context.Context, t *term) error {
	for {
		limited, done := t.begin(ctx)
		err := t.c.Acknowledge(limited, v.opts.Node, t.epoch)
		done()
		if t.over() && err != nil {
			return fmt.Errorf("another term came: %w", protocol.ErrStale)
		}
		if !t.again(err) || ctx.Err() != nil {
			return err
		}
		wait := waiting{left: time.Hour}
		if err := wait.forTerm(ctx, t, tryAgain); err != nil {
			return err
		}
	}
}

// atOnce bounds the images that are attached at the same time.
const atOnce = 16

// eachOf calls fn for 0 to n-1, some side by side, and waits.
func eachOf(n int, fn func(i int)) {
	next := make(chan int)
	var all sync.WaitGroup
	for range min(n, atOnce) {
		all.Go(func() {
			for i := range next {
				fn(i)
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	all.Wait()
}

// knowsLaterThan tells whether a later term than epoch has begun here.
func (v *Volume) knowsLaterThan(epoch uint64) bool { return v.term.Load().epoch > epoch }

// Suspend makes all I/O wait, State Paused, and returns when no direct I/O is under way: nil means
// that this node does nothing to the disk until Resume. When ctx ends first, nothing new is begun,
// but what is under way, or in an engine's queue, is not over. Operations that the coordinator executes
// go on: it knows whether it still takes them from this node.
func (v *Volume) Suspend(ctx context.Context, why Reason) error {
	v.pause(why)
	for _, im := range v.openImages() {
		if err := im.drain(ctx, protocol.Everywhere, direct); err != nil {
			return fmt.Errorf("volume %s: suspend: %w", v.opts.Name, err)
		}
	}
	return nil
}

// pause makes all I/O wait. It does not block.
func (v *Volume) pause(why Reason) {
	v.mu.Lock()
	defer v.mu.Unlock()
	before := Reason(v.pausing.Load())
	v.pausing.Store(uint32(before | why))
	v.pauses.Add(1)
	for _, im := range v.images {
		im.pause()
	}
	if before|why != before {
		v.opts.Log.Warn("volume paused", "volume", v.opts.Name, "reasons", (before | why).String(), "were", before.String())
	}
}

// pause marks the image astray: while it is paused the coordinator may count this node out.
func (im *Image) pause() {
	im.mu.Lock()
	defer im.mu.Unlock()
	im.astray.Store(true)
	_ = im.set(func(v *protocol.View) (*protocol.View, error) { return v.Pause(true), nil })
}

// Resume ends a Suspend for the same reason. With the last reason gone each image is attached anew, if
// need be to the next coordinator, before its I/O goes on: what it held may have been taken meanwhile.
func (v *Volume) Resume(why Reason) {
	v.mu.Lock()
	before := Reason(v.pausing.Load())
	v.pauses.Add(1)
	v.pausing.Store(uint32(before &^ why))
	v.mu.Unlock()
	if before&why != 0 {
		v.opts.Log.Info("volume resumed", "volume", v.opts.Name, "reasons", (before &^ why).String(), "were", before.String())
	}
	v.keep.soon()
}

// reattach tries to attach the images that are astray. It runs on a worker.
func (v *Volume) reattach(ctx context.Context) {
	t := v.term.Load()
	if t.c == nil || v.pausing.Load() != 0 {
		return
	}
	astray := v.astray()
	eachOf(len(astray), func(i int) {
		ctx, cancel := context.WithTimeout(ctx, attachLimit)
		defer cancel()
		im := astray[i]
		if err := im.attach(ctx, t); isGone(err) && !t.over() {
			_ = im.lose(ctx, err)
		}
	})
}

// astray lists the images that have to be attached anew.
func (v *Volume) astray() (all []*Image) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, im := range v.images {
		if im.astray.Load() && im.at.Load() != nil {
			all = append(all, im)
		}
	}
	return all
}
