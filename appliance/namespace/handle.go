package namespace

import (
	"context"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// handle is an open file description.
type handle struct {
	ns   *Namespace
	file *file
}

func (ns *Namespace) open(ctx context.Context, p place) (fs.FileHandle, uint32, syscall.Errno) {
	f, err := ns.files.acquire(ctx, p)
	if err != nil {
		return nil, 0, ns.refuse("open", p, err)
	}
	h := &handle{ns, f}
	if ns.express != nil {
		ns.express.note(ctx, h)
	}
	return h, fuse.FOPEN_DIRECT_IO | fuse.FOPEN_PARALLEL_DIRECT_WRITES, 0
}

// Read implements fs.FileReader.
func (h *handle) Read(_ context.Context, dest []byte, off int64) (res fuse.ReadResult, bad syscall.Errno) {
	err := h.file.with(func(im Image) (err error) {
		n := min(int64(len(dest)), max(0, im.Size()-off))
		if (off|n)%sector != 0 {
			res, err = h.readAround(im, dest[:n], off)
			return err
		}
		if n == 0 {
			res = fuse.ReadResultData(nil)
			return h.lives(im)
		}
		p, err := h.ns.bridge.read(im, off, int(n))
		res = &pooled{h.ns.bridge, p}
		return err
	})
	if err != nil {
		return nil, h.ns.refuse("read", h.file.place, err)
	}
	return res, 0
}

// lives tells why an image without a size has none: it may be gone, which is no end of a file.
func (h *handle) lives(im Image) error {
	if im.Size() > 0 {
		return nil
	}
	return h.ns.bridge.do(func(lane int, done func(error)) { im.Read(lane, nil, 0, done) })
}

// readAround reads what is not made of sectors.
func (h *handle) readAround(im Image, dest []byte, off int64) (fuse.ReadResult, error) {
	for done := 0; done < len(dest); {
		from := off + int64(done)
		low := from / sector * sector
		high := min((off+int64(len(dest))+sector-1)/sector*sector, low+MaxIO)
		p, err := h.ns.bridge.read(im, low, int(high-low))
		if err != nil {
			return nil, err
		}
		done += copy(dest[done:], p[from-low:])
		h.ns.bridge.buffers.Put(p)
	}
	return fuse.ReadResultData(dest), nil
}

// pooled is a result in a buffer of the pool, from which the kernel takes it. It has Slices because go-fuse
// calls Done of one without before it has written the bytes, when splicing is off.
type pooled struct {
	bridge *bridge
	p      []byte
}

// Slices is what go-fuse asks for to write from the buffer itself.
func (r *pooled) Slices() ([][]byte, fuse.Status) { return [][]byte{r.p}, fuse.OK }

// Bytes implements fuse.ReadResult.
func (r *pooled) Bytes([]byte) ([]byte, fuse.Status) { return r.p, fuse.OK }

// Size implements fuse.ReadResult.
func (r *pooled) Size() int { return len(r.p) }

// Done implements fuse.ReadResult.
func (r *pooled) Done() { r.bridge.buffers.Put(r.p) }

// Write implements fs.FileWriter: whole sectors, as a disk's. The image grows when they lie beyond its end.
func (h *handle) Write(ctx context.Context, data []byte, off int64) (uint32, syscall.Errno) {
	if (off|int64(len(data)))%sector != 0 {
		return 0, syscall.EINVAL
	}
	err := h.ns.files.grow(ctx, h.file, off+int64(len(data)))
	if err == nil {
		err = h.file.with(func(im Image) error { return h.ns.bridge.write(im, data, off) })
	}
	if err != nil {
		return 0, h.ns.refuse("write", h.file.place, err)
	}
	return uint32(len(data)), 0
}

// Fsync implements fs.FileFsyncer.
func (h *handle) Fsync(context.Context, uint32) syscall.Errno {
	return h.ns.refuse("sync", h.file.place, h.file.with(h.ns.bridge.flush))
}

// Flush implements fs.FileFlusher: there is nothing that a close(2) has to write.
func (h *handle) Flush(context.Context) syscall.Errno { return 0 }

// Release implements fs.FileReleaser.
func (h *handle) Release(ctx context.Context) syscall.Errno {
	return h.ns.refuse("close", h.file.place, h.ns.files.release(ctx, h.file))
}

// Allocate implements fs.FileAllocater: a range is given back, and reads as zeroes.
func (h *handle) Allocate(_ context.Context, off, n uint64, mode uint32) syscall.Errno {
	switch mode {
	case unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE:
	default:
		return syscall.EOPNOTSUPP
	}
	if (off|n)%sector != 0 {
		return syscall.EOPNOTSUPP // zeroes have to be written there
	}
	return h.ns.refuse("discard", h.file.place, h.file.with(func(im Image) error {
		size := uint64(im.Size())
		if off >= size {
			return nil
		}
		return h.ns.bridge.unmap(im, int64(off), int64(min(n, size-off)))
	}))
}

// Lseek implements fs.FileLseeker: SEEK_DATA and SEEK_HOLE by the layout.
func (h *handle) Lseek(_ context.Context, off uint64, whence uint32) (at uint64, bad syscall.Errno) {
	data := whence == unix.SEEK_DATA
	if !data && whence != unix.SEEK_HOLE {
		return 0, syscall.EINVAL
	}
	err := h.file.with(func(im Image) error {
		size := uint64(im.Size())
		if off >= size {
			return syscall.ENXIO
		}
		for off < size {
			mapped, n := im.Mapped(int64(off))
			if mapped == data {
				at = off
				return nil
			}
			off += uint64(max(1, n))
		}
		if at = size; data {
			return syscall.ENXIO
		}
		return nil
	})
	return at, errno(err)
}
