package coordinator

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"lunar/datapath/layout"
	"lunar/datapath/layout/protocol"
)

// Errors of Copy that say that nothing was changed.
var (
	errUnaligned = fmt.Errorf("a range that is not made of whole file system blocks: %w", unix.EINVAL)
	errOverlap   = fmt.Errorf("ranges that overlap: %w", unix.EINVAL)
)

// Copy makes r.Len bytes at off of the image to equal to r of the image from, by sharing the blocks;
// from and to may be one image. It is durable on return. An error that wraps EOPNOTSUPP or EINVAL
// says that such a range cannot be shared here and that nothing was changed.
func (c *Coordinator) Copy(ctx context.Context, to protocol.Call, off int64, from protocol.Call, r layout.Range) (err error) {
	target, err := c.image(to)
	if err != nil {
		return err
	}
	defer c.exit(&err)
	source, err := c.image(from)
	if err != nil {
		return err
	}
	defer c.calls.Done()
	s := sharing{target: target, source: source, r: r, at: layout.Range{Off: off, Len: r.Len}}
	if err = s.check(); err == nil && r.Len > 0 {
		err = s.run(ctx)
	}
	return target.explain(err, "copy from "+source.name(), off, int(r.Len))
}

// sharing is a range of one image on its way into another.
type sharing struct {
	source, target *image
	r              layout.Range // of the source
	at             layout.Range // of the target
}

// check refuses what cannot be shared before anything is recalled for it.
func (s *sharing) check() error {
	c := s.source.c
	switch {
	case c.unshareable.Load():
		return fmt.Errorf("%w: %s cannot share blocks here", ErrUnsupported, c.fs.fs)
	case (s.r.Off|s.at.Off|s.r.Len)&(c.fs.block-1) != 0:
		return errUnaligned
	case s.source == s.target && s.r.Overlaps(s.at):
		return errOverlap
	}
	return errors.Join(s.target.writable(), s.source.inside(s.r), s.target.inside(s.at))
}

// run has both ranges to itself meanwhile. It takes images in the order of their IDs, so that
// copies cannot wait for each other in a circle; in one image it takes all between the two ranges
// too, since a change of that image could wait between the first and the second.
func (s *sharing) run(ctx context.Context) error {
	if s.source == s.target {
		from, to := min(s.r.Off, s.at.Off), max(s.r.End(), s.at.End())
		return s.target.change(ctx, layout.Range{Off: from, Len: to - from}, s.share)
	}
	s.source.c.pairs.RLock()
	defer s.source.c.pairs.RUnlock()
	first, second := span{s.source, s.r}, span{s.target, s.at}
	if first.im.id > second.im.id {
		first, second = second, first
	}
	return first.im.change(ctx, first.r, func() (effect, error) {
		return moved, second.im.change(ctx, second.r, s.share)
	})
}

// span is a range of an image.
type span struct {
	im *image
	r  layout.Range
}

// share makes the blocks common to both files.
func (s *sharing) share() (effect, error) {
	source, target := s.source.fd(), s.target.fd()
	_ = unix.Fadvise(source, s.r.Off, s.r.Len, unix.FADV_DONTNEED)
	_ = unix.Fadvise(target, s.at.Off, s.at.Len, unix.FADV_DONTNEED)
	err := unix.IoctlFileCloneRange(target, &unix.FileCloneRange{
		Src_fd: int64(source), Src_offset: uint64(s.r.Off), Src_length: uint64(s.r.Len), Dest_offset: uint64(s.at.Off),
	})
	if errors.Is(err, unix.EOPNOTSUPP) {
		s.source.c.unshareable.Store(true)
		return none, fmt.Errorf("%w: %s cannot share blocks here", ErrUnsupported, s.source.c.fs.fs)
	}
	return moved, err
}
