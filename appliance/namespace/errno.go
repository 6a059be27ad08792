package namespace

import (
	"context"
	"errors"
	"syscall"
)

// told are the errnos that a program gets as they are, the most telling first: an error may wrap several.
var told = []syscall.Errno{
	syscall.EISDIR, syscall.ENOENT, syscall.EEXIST, syscall.EBUSY, syscall.ENOSPC, syscall.EROFS, syscall.ENAMETOOLONG, syscall.EXDEV,
	syscall.EOPNOTSUPP, syscall.EPERM, syscall.ENXIO, syscall.ETIMEDOUT, syscall.ENOMEM, syscall.EAGAIN, syscall.EINVAL,
}

// errno is what a program gets for err.
func errno(err error) syscall.Errno {
	switch {
	case err == nil:
		return 0
	case errors.Is(err, context.Canceled):
		return syscall.EINTR
	}
	for _, e := range told {
		if errors.Is(err, e) {
			return e
		}
	}
	return syscall.EIO
}
