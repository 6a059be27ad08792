package coordinator

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"lunar/datapath/layout"
	"lunar/datapath/layout/protocol"
)

// inName runs fn with the name space to itself, and explains its error.
func (c *Coordinator) inName(p, operation string, fn func() error) (err error) {
	if err := checkPath(p); err != nil {
		return err
	}
	if err := c.enter(); err != nil {
		return explain(p, operation, err)
	}
	defer c.exit(&err)
	c.names.Lock()
	defer c.names.Unlock()
	return explain(p, operation, fn())
}

// changeName is inName for a change of this term. It waits for the barrier first: nodes attach meanwhile.
func (c *Coordinator) changeName(ctx context.Context, m protocol.Meta, p, operation string, fn func() error) error {
	if err := checkPath(p); err != nil {
		return err
	}
	if err := c.unsuspended(ctx, ""); err != nil {
		return explain(p, operation, err)
	}
	return c.changeOf(ctx, m, "image "+p, operation, fn)
}

// changeOf is changeName for what is named in words.
func (c *Coordinator) changeOf(ctx context.Context, m protocol.Meta, what, operation string, fn func() error) (err error) {
	if err := c.enterFor(m.Epoch); err != nil {
		return explainOf(what, operation, err)
	}
	defer c.exit(&err)
	if err := c.changeable(ctx); err != nil {
		return explainOf(what, operation, err)
	}
	c.names.Lock()
	defer c.names.Unlock()
	return explainOf(what, operation, fn())
}

// Create makes an image, and the folders above it. It appears whole or not at all, also after a
// crash, and is durable on return.
func (c *Coordinator) Create(ctx context.Context, m protocol.Meta, p string, o protocol.CreateOptions) (err error) {
	if unit := max(512, int64(c.dev.LogicalBlock)); o.Size < 0 || o.Size%unit != 0 || o.Size > layout.MaxSize {
		return explain(p, "create", fmt.Errorf("%w: %d: give a multiple of %d", ErrSize, o.Size, unit))
	}
	if err := checkPath(p); err != nil {
		return err
	}
	if err := c.unsuspended(ctx, ""); err != nil {
		return explain(p, "create", err)
	}
	if err := c.enterFor(m.Epoch); err != nil {
		return explain(p, "create", err)
	}
	defer c.exit(&err)
	// The name space is not locked: writing zeroes may take minutes, and the file has no name before.
	return explain(p, "create", c.build(m, p, func(f *os.File) error { return c.shape(ctx, f, o) }))
}

// build makes a nameless file, lets fn shape it, and gives it its name, at once or not at all; once per
// key of m.
func (c *Coordinator) build(m protocol.Meta, p string, fn func(*os.File) error) error {
	folder, err := c.fs.openFolder(p, true)
	if err != nil {
		return err
	}
	defer func() { _ = folder.Close() }()
	if done, err := c.made(m, p); done || err != nil {
		return err
	}
	c.step("folder made")
	f, err := c.fs.open(path.Dir(p), unix.O_TMPFILE|unix.O_RDWR|unix.O_DIRECT, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if err := errors.Join(fn(f), setKey(f, m.Key), durable(f)); err != nil {
		return err
	}
	c.step("file made")
	self := fmt.Sprintf("/proc/self/fd/%d", f.Fd())
	if err := unix.Linkat(unix.AT_FDCWD, self, int(folder.Fd()), path.Base(p), unix.AT_SYMLINK_FOLLOW); errors.Is(err, unix.EEXIST) {
		_, err := c.made(m, p) // by another try of this call, if not by someone else
		return err
	} else if err != nil {
		return err
	}
	c.step("linked")
	return errors.Join(durable(f), durable(folder))
}

func (c *Coordinator) shape(ctx context.Context, f *os.File, o protocol.CreateOptions) error {
	if err := f.Truncate(o.Size); err != nil {
		return err
	}
	if !o.Thick && !o.Eager {
		return nil
	}
	if err := unix.Fallocate(int(f.Fd()), 0, 0, o.Size); err != nil {
		return fmt.Errorf("reserve %d bytes: %w", o.Size, err)
	}
	if !o.Eager {
		return nil
	}
	im := &image{c: c, file: f}
	for off := int64(0); off < o.Size; off += maxChunk {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := min(maxChunk, o.Size-off)
		if err := im.zero(layout.Range{Off: off, Len: n}); err != nil {
			return err
		}
		if o.Progress != nil {
			o.Progress(off + n)
		}
	}
	return nil
}

// Delete removes an image for good; ErrInUse while it is open.
func (c *Coordinator) Delete(ctx context.Context, m protocol.Meta, p string) error {
	return c.changeName(ctx, m, p, "delete", func() error { return c.unlink(m, p) })
}

// folderOfUnused checks that an image exists and is not open, and opens its folder.
func (c *Coordinator) folderOfUnused(p string) (*os.File, error) {
	f, st, err := c.fs.openImage(p)
	if err != nil {
		return nil, err
	}
	if err := f.Close(); err != nil {
		return nil, err
	}
	if c.opened(st.ID) != nil {
		return nil, fmt.Errorf("%w: unmap it from its targets first", ErrInUse)
	}
	return c.fs.openFolder(p, false)
}

// Rename gives an image another path on the same volume; ErrInUse while it is open, ErrExists when
// the new path is taken.
func (c *Coordinator) Rename(ctx context.Context, m protocol.Meta, from, to string) error {
	if err := checkPath(to); err != nil {
		return err
	}
	return c.changeName(ctx, m, from, "rename to "+to, func() error { return c.rename(m, from, to) })
}

// Resize changes an image's size. It may grow while it is open. It shrinks only while it is not
// (ErrInUse), and with force only when data lies beyond the new end (ErrHoldsData).
func (c *Coordinator) Resize(ctx context.Context, m protocol.Meta, p string, size int64, force bool) error {
	if unit := max(512, int64(c.dev.LogicalBlock)); size < 0 || size%unit != 0 || size > layout.MaxSize {
		return explain(p, "resize", fmt.Errorf("%w: %d: give a multiple of %d", ErrSize, size, unit))
	}
	return c.changeName(ctx, m, p, "resize", func() error {
		f, st, err := c.fs.openImage(p)
		if err != nil {
			return err
		}
		defer func() { _ = f.Close() }()
		im := c.opened(st.ID)
		switch {
		case size < st.Size && im != nil:
			return fmt.Errorf("shrink: %w: unmap it from its targets first", ErrInUse)
		case size < st.Size:
			return c.shrink(f, st.Size, size, force)
		case im == nil:
			return c.grow(f, size)
		}
		return im.grow(ctx, size)
	})
}

func (c *Coordinator) shrink(f *os.File, from, to int64, force bool) error {
	extents, err := fiemap(f, layout.Range{Off: to, Len: from - to})
	if err != nil {
		return err
	}
	if !force && slices.ContainsFunc(extents, func(e layout.Extent) bool { return !e.State.Zero() }) {
		return fmt.Errorf("shrink to %d bytes: %w: force it to lose what lies beyond", to, ErrHoldsData)
	}
	return c.grow(f, to)
}

// grow sets a size, durably. The page with the old end goes through the page cache, which must not
// keep it.
func (c *Coordinator) grow(f *os.File, size int64) error {
	fd := int(f.Fd())
	_ = unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED)
	if err := f.Truncate(size); err != nil {
		return err
	}
	c.step("resized")
	err := durable(f)
	_ = unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED)
	return err
}

// grow changes an open image's size; the page with the old end is taken back meanwhile, because
// the file system zeroes the rest of its block in the page cache, and may write back all of the page.
func (im *image) grow(ctx context.Context, size int64) error {
	unit := max(im.c.fs.block, int64(os.Getpagesize()))
	last := im.current().Size() / unit * unit
	return im.change(ctx, layout.Range{Off: last, Len: layout.MaxSize - last}, func() (effect, error) {
		return moved, im.c.grow(im.file, size)
	})
}

// Clone makes a new image that shares the blocks of another, as they are at this moment; the other
// may be open. ErrUnsupported where the file system cannot (ext4).
func (c *Coordinator) Clone(ctx context.Context, m protocol.Meta, from, to string) error {
	if err := checkPath(to); err != nil {
		return err
	}
	return c.changeName(ctx, m, from, "clone to "+to, func() error {
		f, st, err := c.fs.openImage(from)
		if err != nil {
			return err
		}
		defer func() { _ = f.Close() }()
		if done, err := c.made(m, to); done || err != nil {
			return err
		}
		im := c.opened(st.ID)
		if im == nil {
			return c.reflink(m, f, to)
		}
		return im.change(ctx, protocol.Everywhere, func() (effect, error) { return moved, c.reflink(m, f, to) })
	})
}

func (c *Coordinator) reflink(m protocol.Meta, f *os.File, to string) error {
	return c.build(m, to, func(t *os.File) error { return c.cloneFile(t, f) })
}

// cloneFile makes an empty file equal to another by sharing all its blocks.
func (c *Coordinator) cloneFile(to, from *os.File) error {
	_ = unix.Fadvise(int(from.Fd()), 0, 0, unix.FADV_DONTNEED)
	err := unix.IoctlFileClone(int(to.Fd()), int(from.Fd()))
	if errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("%w: %s cannot share blocks: use a volume with XFS, made with reflink", ErrUnsupported, c.fs.fs)
	}
	return err
}

// List describes every image on the volume: each regular file, in the order of their paths.
func (c *Coordinator) List(_ context.Context) (_ []protocol.Stat, err error) {
	if err := c.enter(); err != nil {
		return nil, err
	}
	defer c.exit(&err)
	found, err := c.fs.walk(".", 0, nil)
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	slices.SortFunc(found, func(a, b protocol.Stat) int { return strings.Compare(a.Path, b.Path) })
	for i := range found {
		c.addOpen(&found[i])
	}
	return found, nil
}

// Stat describes one image.
func (c *Coordinator) Stat(_ context.Context, p string) (s protocol.Stat, err error) {
	err = c.inName(p, "show", func() error {
		f, st, err := c.fs.openImage(p)
		if err != nil {
			return err
		}
		s = st
		c.addOpen(&s)
		return f.Close()
	})
	return s, err
}

func (c *Coordinator) addOpen(s *protocol.Stat) {
	if im := c.opened(s.ID); im != nil {
		s.Opens, s.Extents = im.holderCount(), im.current().Len()
	}
}
