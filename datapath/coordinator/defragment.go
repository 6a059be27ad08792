package coordinator

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"

	"lunar/datapath/layout"
	"lunar/datapath/layout/protocol"
)

// Bounds of Defragment. A window is what is allocated anew at a time; a piece of it is what I/O waits for.
const (
	defragWindow = 1 << 30
	defragPiece  = 8 << 20
)

// Moved tells how far Defragment has come with an image.
type Moved struct {
	Before, Now int   // extents
	Looked      int64 // bytes of the image
	Moved       int64 // bytes that have another place
}

// Defragment gives an image that lies in many extents fewer ones, while it is in use. A piece after the
// other is recalled from its holders, copied to blocks that were allocated in one run, mapped there by the
// file system, and granted anew. All that a crash can leave is some pieces moved and some not. Blocks that
// a snapshot shares stay, as moving them would copy them; so do those that were never written.
func (c *Coordinator) Defragment(ctx context.Context, node protocol.NodeID, path string, reached func(Moved)) (m Moved, err error) {
	g, id, err := c.Attach(ctx, node, path, bystander{})
	if err != nil {
		return m, err
	}
	defer func() { err = errors.Join(err, c.Detach(context.WithoutCancel(ctx), g.Call, id)) }()
	im, err := c.image(g.Call)
	if err != nil {
		return m, err
	}
	defer c.exit(&err)
	d := &defragment{im: im, reached: reached, move: movers[c.fs.fs]}
	err = d.run(ctx)
	return d.Moved, explain(path, "defragment", err)
}

// bystander has an image open and does no I/O.
type bystander struct{}

// Recall implements protocol.Holder.
func (bystander) Recall(context.Context, protocol.Recall) error { return nil }

// Publish implements protocol.Holder.
func (bystander) Publish(protocol.Grant) {}

// movers make a range of the image lie where the spare file has its blocks, with the same content. The caller has
// the range to itself.
var movers = map[FSType]func(d *defragment, r layout.Range) error{XFS: (*defragment).remap, Ext4: (*defragment).swap}

type defragment struct {
	Moved
	im      *image
	spare   *os.File // has blocks for the window, at the same offsets
	reached func(Moved)
	move    func(*defragment, layout.Range) error
	buf     []byte
}

// count is how many runs of blocks the image has.
func (d *defragment) count() (n int) {
	for e := range d.im.current().All() {
		if e.State.Allocated() {
			n++
		}
	}
	return n
}

func (d *defragment) run(ctx context.Context) (err error) {
	d.Before = d.count()
	d.Now = d.Before
	d.buf = alignedBuffer(minChunk)
	if d.spare, err = d.im.c.fs.open(".", unix.O_TMPFILE|unix.O_RDWR|unix.O_DIRECT, 0o600); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.spare.Close()) }()
	size := d.im.current().Size() &^ (d.im.c.fs.block - 1) // a last block in part stays
	for at := int64(0); at < size; at += defragWindow {
		if err := d.window(ctx, layout.Range{Off: at, Len: min(defragWindow, size-at)}); err != nil {
			return err
		}
	}
	return nil
}

// window moves what is in too many extents, unless the volume has no better place.
func (d *defragment) window(ctx context.Context, w layout.Range) error {
	parts := d.movable(w)
	defer func() {
		d.Now = d.count()
		d.saw(w.End())
	}()
	if len(parts) <= len(runs(parts)) {
		return nil
	}
	better, err := d.allocate(w, parts)
	if err != nil {
		return errors.Join(err, d.drop(w))
	}
	if better {
		for _, run := range runs(parts) {
			if err = d.pieces(ctx, run); err != nil {
				break
			}
		}
	}
	return errors.Join(err, d.drop(w))
}

// movable is the extents of r that the image has for itself.
func (d *defragment) movable(r layout.Range) (out []layout.Extent) {
	for e := range d.im.current().In(r) {
		if e.State == layout.Written && (e.FileOff|e.Len)&(d.im.c.fs.block-1) == 0 {
			out = append(out, e)
		}
	}
	return out
}

// runs joins extents that follow each other in the file.
func runs(parts []layout.Extent) (out []layout.Range) {
	for _, e := range parts {
		if n := len(out); n > 0 && out[n-1].End() == e.FileOff {
			out[n-1].Len += e.Len
		} else {
			out = append(out, layout.Range{Off: e.FileOff, Len: e.Len})
		}
	}
	return out
}

// allocate gives the spare file blocks for all runs; false when they lie no better. A volume that is too full is no error.
func (d *defragment) allocate(w layout.Range, parts []layout.Extent) (better bool, err error) {
	for _, r := range runs(parts) {
		err := unix.Fallocate(int(d.spare.Fd()), 0, r.Off, r.Len)
		if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
			return false, nil
		}
		if err != nil {
			return false, fmt.Errorf("allocate %d bytes: %w", r.Len, err)
		}
	}
	got, err := fiemap(d.spare, w)
	if err != nil {
		return false, err
	}
	tiled, err := layout.Tile(w, got)
	tiled = slices.DeleteFunc(tiled, func(e layout.Extent) bool { return !e.State.Allocated() })
	return len(tiled) < len(parts), err
}

// drop frees what the spare file has.
func (d *defragment) drop(r layout.Range) error {
	return unix.Fallocate(int(d.spare.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, r.Off, r.Len)
}

func (d *defragment) pieces(ctx context.Context, run layout.Range) error {
	for at := run.Off; at < run.End(); at += defragPiece {
		if err := d.im.c.stillOn(ctx); err != nil {
			return err
		}
		piece := layout.Range{Off: at, Len: min(defragPiece, run.End()-at)}
		if err := d.im.change(ctx, piece, func() (effect, error) { return moved, d.piece(piece) }); err != nil {
			return err
		}
		d.saw(piece.End())
	}
	return nil
}

// piece moves what is still the image's alone in r, now that nobody else touches it.
func (d *defragment) piece(r layout.Range) error {
	for _, part := range runs(d.movable(r)) {
		if err := d.move(d, part); err != nil {
			return err
		}
		d.Moved.Moved += part.Len
	}
	return nil
}

func (d *defragment) saw(off int64) {
	d.Looked = off
	d.reached(d.Moved)
}

// remap copies r to the spare file and has the image share those blocks instead of its own; then the spare file lets
// go of them. The image's content is the same at every moment.
func (d *defragment) remap(r layout.Range) error {
	for at := r.Off; at < r.End(); {
		p := d.buf[:min(int64(len(d.buf)), r.End()-at)]
		if err := d.im.pread(p, at); err != nil {
			return err
		}
		if err := writeFull(int(d.spare.Fd()), p, at, false); err != nil {
			return err
		}
		at += int64(len(p))
	}
	_ = unix.Fadvise(d.im.fd(), r.Off, r.Len, unix.FADV_DONTNEED)
	err := unix.IoctlFileCloneRange(d.im.fd(), &unix.FileCloneRange{
		Src_fd: int64(d.spare.Fd()), Src_offset: uint64(r.Off), Src_length: uint64(r.Len), Dest_offset: uint64(r.Off),
	})
	if errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("%w: an XFS without reflink cannot be defragmented while it is in use", ErrUnsupported)
	}
	return errors.Join(err, d.drop(r))
}

// iocMoveExt is EXT4_IOC_MOVE_EXT, with struct move_extent; offsets and lengths in blocks.
const iocMoveExt = 0xc028660f

type moveExtent struct {
	_, donor                    uint32
	from, donorFrom, len, moved uint64
}

// swap has ext4 copy r to the spare file's blocks through the page cache, which must not have anything of before, and
// swap the two.
func (d *defragment) swap(r layout.Range) error {
	block := uint64(d.im.c.fs.block)
	_ = unix.Fadvise(d.im.fd(), r.Off, r.Len, unix.FADV_DONTNEED)
	m := moveExtent{donor: uint32(d.spare.Fd()), from: uint64(r.Off) / block, donorFrom: uint64(r.Off) / block, len: uint64(r.Len) / block}
	for m.len > 0 {
		m.moved = 0
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, d.im.file.Fd(), iocMoveExt, uintptr(unsafe.Pointer(&m)))
		if errno != 0 && errno != unix.EINTR {
			return fmt.Errorf("move extents: %w", errno)
		}
		if errno == 0 && m.moved == 0 {
			break
		}
		m.from, m.donorFrom, m.len = m.from+m.moved, m.donorFrom+m.moved, m.len-min(m.len, m.moved)
	}
	err := durableData(d.im.file)
	_ = unix.Fadvise(d.im.fd(), r.Off, r.Len, unix.FADV_DONTNEED)
	return err
}
