package volume

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"lunar/datapath/layout/protocol"
)

// attachment is an image's place with one coordinator. It is what that coordinator recalls from and
// publishes to: what an older one still says does not reach the image.
type attachment struct {
	im     *Image
	epoch  uint64
	by     Coordinator   // that numbered the holder: another connection numbers anew, in the same epoch too
	pauses uint64        // of the volume, when it was asked for
	call   protocol.Call // set with holder, before it counts
	holder protocol.HolderID

	// Guarded by im.mu.
	state state
	early []change // heard before it counted
	ended [64]uint64
	last  int // of ended: numbers of recalls whose grant has come
}

type state uint8

const (
	pending state = iota // asked for; I/O goes on by the view of the one before
	current              // the image's view is by its grants
	left                 // given up: there is nothing here to recall from
)

// change makes the next view from the present one.
type change func(*protocol.View) (*protocol.View, error)

// Recall is the coordinator's: it takes a range back before a change.
func (a *attachment) Recall(ctx context.Context, r protocol.Recall) error {
	heard, err := a.recall(ctx, r)
	if err != nil || !heard {
		return err
	}
	return a.im.drain(ctx, r.Range, direct)
}

// recall keeps new I/O out of the range; false when there is nothing to drain. The recall of an
// attachment that does not count yet holds for the view of the one before too: I/O goes on by that.
func (a *attachment) recall(ctx context.Context, r protocol.Recall) (heard bool, err error) {
	im := a.im
	im.mu.Lock()
	defer im.mu.Unlock()
	switch {
	case a.state == left || slices.Contains(a.ended[:], r.Number):
		return false, nil
	case ctx.Err() != nil: // its grant may have come
		return false, ctx.Err()
	case im.v.knowsLaterThan(a.epoch):
		return false, fmt.Errorf("image %s: recall of epoch %d: %w", im.path, a.epoch, protocol.ErrStale)
	}
	take := func(v *protocol.View) (*protocol.View, error) { return v.Recalled(r) }
	if a.state == pending {
		a.early = append(a.early, take)
	}
	return true, im.set(take)
}

// Publish is the coordinator's: it grants a range, and so ends a recall.
func (a *attachment) Publish(g protocol.Grant) {
	im := a.im
	if err := a.publish(g); err != nil {
		im.v.opts.Log.Warn("grant refused", "image", im.path, "epoch", g.Epoch, "generation", g.Generation, "err", err)
		return
	}
	im.v.free.Store(g.Free)
	im.resume()
}

func (a *attachment) publish(g protocol.Grant) error {
	im := a.im
	im.mu.Lock()
	defer im.mu.Unlock()
	switch {
	case a.state == left:
		return nil
	case im.v.knowsLaterThan(a.epoch):
		return fmt.Errorf("grant of epoch %d: %w", a.epoch, protocol.ErrStale)
	}
	if g.Ends > 0 {
		a.ended[a.last%len(a.ended)] = g.Ends
		a.last++
	}
	take := func(v *protocol.View) (*protocol.View, error) { return v.Granted(g) }
	if a.state == pending {
		a.early = append(a.early, take)
		return nil
	}
	return im.set(take)
}

// leave gives a up.
func (a *attachment) leave() {
	if a == nil {
		return
	}
	a.im.mu.Lock()
	defer a.im.mu.Unlock()
	a.state, a.early = left, nil
}

// begin makes a the image's attachment, by its first grant and what was heard since that was made.
// I/O that began by the view before goes on; a recall finds it all the same, since lanes count by range.
func (a *attachment) begin(g protocol.Grant, holder protocol.HolderID) error {
	im := a.im
	first, err := protocol.NewView(g)
	if err != nil {
		return fmt.Errorf("image %s: %w", im.path, err)
	}
	im.mu.Lock()
	defer im.mu.Unlock()
	for _, heard := range a.early {
		if next, err := heard(first); err == nil {
			first = next
		}
	}
	if before := im.at.Load(); before != nil {
		before.state, before.early = left, nil
	}
	a.call, a.holder, a.state, a.early = protocol.Call{Image: g.Image, Epoch: g.Epoch}, holder, current, nil
	im.at.Store(a)
	im.v.free.Store(g.Free)
	// Granted while the volume was paused, or before: this node may have been counted out meanwhile.
	astray := im.v.pausing.Load() != 0 || im.v.pauses.Load() != a.pauses
	im.astray.Store(astray)
	im.view.Store(first.After(im.view.Load()).Pause(astray))
	return nil
}

func (im *Image) attachment(t *term) *attachment {
	return &attachment{im: im, epoch: t.epoch, by: t.c, pauses: im.v.pauses.Load()}
}

// attachLimit bounds one try to attach an open image to a new coordinator: the others wait for it.
const attachLimit = 5 * time.Second

// attach attaches an open image under t, once. I/O goes on by the old view until it is done.
func (im *Image) attach(ctx context.Context, t *term) error {
	if err := im.take(ctx); err != nil {
		return err
	}
	defer im.give()
	before := im.at.Load()
	if before == nil || before.epoch == t.epoch && before.by == t.c && !im.astray.Load() {
		return nil // closed, or gone, or done
	}
	limited, cancel := context.WithTimeout(ctx, attachLimit)
	defer cancel()
	limited, done := t.begin(limited)
	defer done()
	a := im.attachment(t)
	g, holder, err := t.c.Attach(limited, im.v.opts.Node, im.path, a)
	switch {
	case err != nil:
	case g.Epoch != t.epoch:
		err = fmt.Errorf("image %s: granted in epoch %d, not %d: %w", im.path, g.Epoch, t.epoch, protocol.ErrStale)
	case g.Image != im.id:
		err = fmt.Errorf("image %s: another file has this name now: %w", im.path, unix.ENOENT)
	default:
		err = a.begin(g, holder)
	}
	if err != nil {
		a.leave()
		return errors.Join(err, detach(limited, t, g, holder))
	}
	if before.epoch == t.epoch && before.by == t.c { // what the coordinator still thinks that this node holds
		_ = t.c.Detach(limited, before.call, before.holder)
	}
	im.arrived()
	return nil
}

// detach takes back an Attach that led to nothing.
func detach(ctx context.Context, t *term, g protocol.Grant, holder protocol.HolderID) error {
	if holder == 0 {
		return nil
	}
	return t.c.Detach(ctx, g.Call, holder)
}

// arrived lets go on what waited for the attachment.
func (im *Image) arrived() {
	im.resume()
	im.v.wake(im)
}

// stray makes I/O wait until the image is attached anew, and returns when no direct I/O is under way.
// The view is not to be relied on any more: its ranges may be changed without a recall.
func (im *Image) stray(ctx context.Context) error {
	im.pause()
	im.v.keep.soon()
	return im.drain(ctx, protocol.Everywhere, direct)
}

// lose ends an image whose file is gone: its I/O fails from now on.
func (im *Image) lose(ctx context.Context, why error) error {
	if err := im.take(ctx); err != nil {
		return err
	}
	defer im.give()
	a := im.at.Swap(nil)
	if a == nil {
		return nil // closed meanwhile
	}
	a.leave()
	err := fmt.Errorf("image %s: %w: %w", im.path, ErrGone, why)
	im.v.opts.Log.Error("image is gone", "image", im.path, "err", why)
	im.gone.Store(&err)
	im.mu.Lock()
	im.view.Store(nil)
	im.mu.Unlock()
	im.arrived()
	return im.drain(ctx, protocol.Everywhere, direct)
}

// isGone tells whether err means that the image's file is not there any more.
func isGone(err error) bool { return errors.Is(err, unix.ENOENT) }
