package volume

import (
	"errors"
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
)

// pathErrnos are those that say that a disk path, not a command, has failed.
var pathErrnos = []error{unix.EIO, unix.ETIMEDOUT, unix.ENODEV, unix.ENXIO, unix.ENOLINK, unix.EREMOTEIO, unix.EBADE, unix.ENODATA, unix.EILSEQ, unix.ESTALE}

// ofPath tells whether another path to the blocks may do what failed with err.
func ofPath(err error) bool {
	for _, errno := range pathErrnos {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}
