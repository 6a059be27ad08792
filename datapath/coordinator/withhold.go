package coordinator

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"lunar/datapath/layout"
	"lunar/datapath/layout/protocol"
)

// Withhold takes every image's blocks back from all holders, and grants none until Grant: when it returns
// nil, nothing is direct on any node, and nothing will be. All I/O then comes to the coordinator. What
// has no blocks still is granted as a Hole. An error leaves the volume withheld in part: repeat it, or Grant.
func (c *Coordinator) Withhold(ctx context.Context) (err error) {
	if err := c.enter(); err != nil {
		return err
	}
	defer c.exit(&err)
	c.withheld.Store(true) // before the images are listed: one that is opened later is not granted either
	if err := c.renew(ctx, (*image).takeBack); err != nil {
		return fmt.Errorf("withhold the layouts of %s: %w", c.dev.Path, err)
	}
	return nil
}

// Grant ends Withhold: every holder is granted anew what it may have.
func (c *Coordinator) Grant(ctx context.Context) (err error) {
	if err := c.enter(); err != nil {
		return err
	}
	defer c.exit(&err)
	c.withheld.Store(false)
	if err := c.renew(ctx, (*image).giveBack); err != nil {
		return fmt.Errorf("grant the layouts of %s: %w", c.dev.Path, err)
	}
	return nil
}

// renew does what changes the grants of each open image, some side by side.
func (c *Coordinator) renew(ctx context.Context, one func(*image, context.Context) error) error {
	const atOnce = 16
	all := c.all()
	errs := make([]error, len(all))
	room := make(chan struct{}, atOnce)
	var work sync.WaitGroup
	for i, im := range all {
		room <- struct{}{}
		work.Go(func() {
			defer func() { <-room }()
			if err := one(im, ctx); err != nil && !errors.Is(err, ErrNotFound) { // closed meanwhile
				errs[i] = explain(im.name(), "grant", err)
			}
		})
	}
	work.Wait()
	return errors.Join(errs...)
}

// takeBack recalls all of the image; what is granted after it is withheld.
func (im *image) takeBack(ctx context.Context) error {
	return im.change(ctx, protocol.Everywhere, func() (effect, error) { return none, nil })
}

// giveBack grants all of the image anew, between changes.
func (im *image) giveBack(ctx context.Context) error {
	return im.share(ctx, protocol.Everywhere, func() error {
		im.publish(protocol.Everywhere, 0)
		return nil
	})
}

// withoutBlocks is extents with what lies on the device withheld. extents are the caller's own.
func withoutBlocks(extents []layout.Extent) []layout.Extent {
	out := slices.Clone(extents)
	for i, e := range out {
		if e.State.Readable() {
			out[i] = layout.Extent{FileOff: e.FileOff, Len: e.Len, State: layout.Withheld}
		}
	}
	return out
}

// Followed returns when every node has acknowledged this term, or was expelled: nobody's I/O waits for it any more.
func (c *Coordinator) Followed(ctx context.Context) (err error) {
	if err := c.enter(); err != nil {
		return err
	}
	defer c.exit(&err)
	return c.changeable(ctx)
}
