package volume

import (
	"context"
	"fmt"

	"golang.org/x/sys/unix"

	"lunar/datapath/layout"
	"lunar/datapath/layout/protocol"
)

// ErrElsewhere means that two images do not lie on one volume.
var ErrElsewhere = fmt.Errorf("the other image is not on this volume: %w", unix.EXDEV)

// CopyFrom makes the n bytes at dstOff equal to those that src, an Image, has at srcOff, by sharing
// the blocks. It implements scsi.Copier. ErrElsewhere when src is no Image of this volume; an error
// that wraps EOPNOTSUPP or EINVAL says that the blocks cannot be shared. Nothing was changed then.
func (im *Image) CopyFrom(lane int, src any, srcOff, dstOff, n int64, done func(error)) {
	from, ok := src.(*Image)
	if !ok || from.v != im.v {
		done(fmt.Errorf("image %s: copy: %w", im.path, ErrElsewhere))
		return
	}
	source, target := layout.Range{Off: srcOff, Len: n}, layout.Range{Off: dstOff, Len: n}
	err := from.check(from.view.Load(), source)
	if err == nil {
		err = im.check(im.view.Load(), target)
	}
	if err != nil {
		done(err)
		return
	}
	// The source is not closed meanwhile.
	trip, away := &protocol.Flight{}, &from.lanes[lane].away
	away.Begin(trip, protocol.Everywhere)
	im.send(lane, func(ctx context.Context, c Coordinator, call protocol.Call) error {
		_, a, err := from.reach()
		if err == nil && (a == nil || a.epoch != call.Epoch) {
			err = fmt.Errorf("image %s: not attached yet: %w", from.path, protocol.ErrUnreachable)
		}
		if err != nil {
			return err
		}
		err = c.Copy(ctx, call, dstOff, a.call, source)
		if err == nil {
			im.v.metadata(n)
		}
		im.v.heard(err)
		return err
	}, func(err error) {
		away.End(trip)
		done(err)
	})
}
