package coordinator

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"lunar/datapath/layout/protocol"
)

// Sentinels of this package; each wraps the errno that it stands for.
var (
	ErrNoSpace     = fmt.Errorf("the volume is full: %w", unix.ENOSPC)
	ErrExists      = fmt.Errorf("exists already: %w", unix.EEXIST)
	ErrNotFound    = fmt.Errorf("does not exist: %w", unix.ENOENT)
	ErrInUse       = fmt.Errorf("is in use: %w", unix.EBUSY)
	ErrPath        = fmt.Errorf("bad image path: %w", unix.EINVAL)
	ErrSize        = fmt.Errorf("bad size: %w", unix.EINVAL)
	ErrHoldsData   = fmt.Errorf("holds data that would be lost: %w", unix.ENOTEMPTY)
	ErrStaleEpoch  = fmt.Errorf("not of this coordinator's term: %w: %w", protocol.ErrStale, unix.ESTALE)
	ErrRecall      = fmt.Errorf("a layout could not be recalled: %w", unix.EBUSY)
	ErrClosed      = fmt.Errorf("the volume is closed: %w", unix.ESHUTDOWN)
	ErrUnsupported = fmt.Errorf("not supported: %w", unix.EOPNOTSUPP)
	ErrNoVolume    = fmt.Errorf("no file system that can be a volume: %w", unix.EINVAL)
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
	if err == nil {
		return nil
	}
	for _, s := range sentinels {
		if errors.Is(err, s.as) {
			break
		}
		if errors.Is(err, s.errno) {
			return fmt.Errorf("image %s: %s: %w (%s)", path, operation, s.as, s.hint)
		}
	}
	return fmt.Errorf("image %s: %s: %w", path, operation, err)
}
