package coordinator

import (
	"context"
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// iocTrim is FITRIM, with struct fstrim_range.
const iocTrim = 0xc0185879

type trimRange struct{ start, length, minimum uint64 }

// trimPiece is how much of the volume one call looks at: what it discards is bounded by that, and with it how
// long I/O waits behind it in the device.
const trimPiece = 1 << 30

// Trim tells the device which blocks the file system does not use, so that a thin one can give them to
// others, and returns how many bytes that are, as far as the file system says: XFS does not, and then it is what
// is free. reached is told how much of all was looked at. It goes on beside all other work: the file system
// discards only what it holds as free, under its own locks, and nothing that is free is in any layout
// (RecallBeforeChange).
func (c *Coordinator) Trim(ctx context.Context, reached func(looked, all int64)) (discarded int64, err error) {
	if err := c.enter(); err != nil {
		return 0, err
	}
	defer c.exit(&err)
	if err := c.fs.sync(); err != nil { // what was freed a moment ago is kept until that is durable
		return 0, explainOf("volume on "+c.dev.Path, "trim", err)
	}
	for at := int64(0); at < c.end; at += trimPiece {
		if err := c.stillOn(ctx); err != nil {
			return discarded, fmt.Errorf("trim %s: %w", c.dev.Path, err)
		}
		n, err := c.fs.trim(at, min(trimPiece, c.end-at))
		if errors.Is(err, unix.EINVAL) && at > 0 { // beyond what the file system has, which ends a little before the device
			break
		}
		if err != nil {
			return discarded, explainOf("volume on "+c.dev.Path, "trim", err)
		}
		discarded += n
		reached(min(at+trimPiece, c.end), c.end)
	}
	return min(discarded, c.free()), nil
}

// stillOn ends a long operation with its caller, or with the term.
func (c *Coordinator) stillOn(ctx context.Context) error {
	if c.life.Err() != nil {
		return errEnded
	}
	return ctx.Err()
}

func (m *mount) trim(off, n int64) (int64, error) {
	r := trimRange{start: uint64(off), length: uint64(n)}
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, m.root.Fd(), iocTrim, uintptr(unsafe.Pointer(&r)))
		switch errno {
		case 0:
			return int64(r.length), nil
		case unix.EINTR:
			continue
		case unix.EOPNOTSUPP:
			return 0, fmt.Errorf("%w: the device does not take TRIM (UNMAP, discard)", ErrUnsupported)
		}
		return 0, errno
	}
}
