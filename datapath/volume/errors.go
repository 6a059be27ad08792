package volume

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Sentinels of this package; each wraps the errno that it stands for. Errors of the coordinator
// pass through.
var (
	ErrClosed  = fmt.Errorf("closed: %w", unix.ESHUTDOWN)
	ErrRange   = fmt.Errorf("outside the image, or not in whole sectors: %w", unix.EINVAL)
	ErrBusy    = fmt.Errorf("too many operations wait: %w", unix.EAGAIN)
	ErrWaited  = fmt.Errorf("waited too long for the coordinator: %w", unix.ETIMEDOUT)
	ErrInUse   = fmt.Errorf("images are open: %w", unix.EBUSY)
	ErrNoImage = fmt.Errorf("no such open image: %w", unix.ENOENT)
	ErrGone    = fmt.Errorf("the image is not on its volume any more: unmap it from its targets: %w", unix.ENOENT)
)
