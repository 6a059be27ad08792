package coordinator

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"lunar/datapath/layout/protocol"
)

// Sentinels of this package; each wraps the errno that it stands for.
var (
	ErrNoSpace     = error(&sentinel{"the volume is full", unix.ENOSPC})
	ErrExists      = error(&sentinel{"exists already", unix.EEXIST})
	ErrNotFound    = error(&sentinel{"does not exist", unix.ENOENT})
	ErrInUse       = error(&sentinel{"is in use", unix.EBUSY})
	ErrPath        = error(&sentinel{"bad image path", unix.EINVAL})
	ErrSize        = error(&sentinel{"bad size", unix.EINVAL})
	ErrHoldsData   = error(&sentinel{"holds data that would be lost", unix.ENOTEMPTY})
	ErrReadOnly    = error(&sentinel{"a snapshot cannot be written", unix.EROFS})
	ErrStaleEpoch  = fmt.Errorf("not of this coordinator's term: %w: %w", protocol.ErrStale, unix.ESTALE)
	ErrRecall      = error(&sentinel{"a layout could not be recalled", unix.EBUSY})
	ErrClosed      = error(&sentinel{"the volume is closed", unix.ESHUTDOWN})
	ErrUnsupported = error(&sentinel{"not supported", unix.EOPNOTSUPP})
	ErrShrunk      = error(&sentinel{"the device is smaller than its file system", unix.EFBIG})
	ErrNoVolume    = error(&sentinel{"no file system that can be a volume", unix.EINVAL})
)

// sentinels gives errnos that tell the user what to do their words.
var sentinels = []struct {
	errno error
	as    error
	hint  string
}{
	{unix.ENOSPC, ErrNoSpace, "delete or move images, or grow the volume"},
	{unix.EDQUOT, ErrNoSpace, "delete or move images, or grow the volume"},
	{unix.EEXIST, ErrExists, "choose another name"},
	{unix.ENOENT, ErrNotFound, "list the volume's images to see their names"},
	{unix.ELOOP, ErrPath, "symbolic links are not followed"},
	{unix.EXDEV, ErrPath, "it leaves the volume"},
	{unix.ENOTDIR, ErrPath, "a part of it is no folder"},
	{unix.ENAMETOOLONG, ErrPath, "a name has 255 bytes at most"},
}

// explain puts the operation and the path before err, and says what to do where it is known.
func explain(path, operation string, err error) error {
	return explainOf("image "+path, operation, err)
}

func explainOf(what, operation string, err error) error {
	if err == nil {
		return nil
	}
	for _, s := range sentinels {
		if errors.Is(err, s.as) {
			break
		}
		if errors.Is(err, s.errno) {
			return fmt.Errorf("%s: %s: %w (%s)", what, operation, s.as, s.hint)
		}
	}
	return fmt.Errorf("%s: %s: %w", what, operation, err)
}
