package coordinator

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"lunar/datapath/layout"
)

// struct fiemap and struct fiemap_extent of linux/fiemap.h.
type fiemapHeader struct {
	start, length  uint64
	flags, mapped  uint32
	count, reserve uint32
}

type fiemapExtent struct {
	logical, physical, length uint64
	_                         [2]uint64
	flags                     uint32
	_                         [3]uint32
}

const (
	iocFiemap = 0xc020660b // FS_IOC_FIEMAP
	pageLen   = 512        // extents per call

	flagSync = 1 // FIEMAP_FLAG_SYNC

	extentLast      = 0x1
	extentUnwritten = 0x800
	extentShared    = 0x2000
	// Unknown, delalloc, encoded, encrypted, not aligned, inline, tail: no plain blocks behind them.
	extentOpaque = 0x2 | 0x4 | 0x8 | 0x80 | 0x100 | 0x200 | 0x400
)

type fiemapPage struct {
	fiemapHeader
	extents [pageLen]fiemapExtent
}

// fiemap reads the extents of r, after the file's dirty pages were written. Extents are whole, so
// the first and the last may reach beyond r; holes are left out.
func fiemap(f *os.File, r layout.Range) (out []layout.Extent, err error) {
	page := new(fiemapPage)
	for at := r.Off; at < r.End(); {
		page.fiemapHeader = fiemapHeader{start: uint64(at), length: uint64(r.End() - at), flags: flagSync, count: pageLen}
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), iocFiemap, uintptr(unsafe.Pointer(page)))
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return nil, fmt.Errorf("read extents: %w", errno)
		}
		if page.mapped == 0 {
			return out, nil
		}
		for _, e := range page.extents[:page.mapped] {
			out = append(out, extentOf(e))
		}
		last := page.extents[page.mapped-1]
		if last.flags&extentLast != 0 {
			return out, nil
		}
		at = int64(last.logical + last.length)
	}
	return out, nil
}

func extentOf(e fiemapExtent) layout.Extent {
	out := layout.Extent{FileOff: int64(e.logical), DevOff: int64(e.physical), Len: int64(e.length), State: layout.Written}
	switch {
	case e.flags&extentOpaque != 0:
		out.State, out.DevOff = layout.Withheld, 0
	case e.flags&extentUnwritten != 0:
		out.State = layout.Unwritten
	case e.flags&extentShared != 0:
		out.State = layout.Shared
	}
	return out
}
