package nbd

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"lunar/datapath/layout/protocol"
)

// Errno is an error on the wire.
type Errno uint32

// The error values of the standard.
const (
	EPERM     Errno = 1
	EIO       Errno = 5
	ENOMEM    Errno = 12
	EINVAL    Errno = 22
	ENOSPC    Errno = 28
	EOVERFLOW Errno = 75
	ENOTSUP   Errno = 95
	ESHUTDOWN Errno = 108
)

// wire maps what an Export returns; the first that fits counts, and what is not here is EIO.
// A call of another term has ESHUTDOWN: its client looks for the next coordinator.
var wire = []struct {
	err   error
	errno Errno
}{
	{protocol.ErrStale, ESHUTDOWN},
	{protocol.ErrUnreachable, ESHUTDOWN},
	{context.Canceled, ESHUTDOWN},
	{unix.ESHUTDOWN, ESHUTDOWN},
	{unix.ESTALE, ESHUTDOWN},
	{unix.EPERM, EPERM},
	{unix.EACCES, EPERM},
	{unix.EROFS, EPERM},
	{unix.ENOMEM, ENOMEM},
	{unix.EINVAL, EINVAL},
	{unix.ENOSPC, ENOSPC},
	{unix.EDQUOT, ENOSPC},
	{unix.EFBIG, ENOSPC},
	{unix.EOVERFLOW, EOVERFLOW},
	{unix.EOPNOTSUPP, ENOTSUP},
}

func errnoOf(err error) Errno {
	if err == nil {
		return 0
	}
	for _, w := range wire {
		if errors.Is(err, w.err) {
			return w.errno
		}
	}
	return EIO
}

// local maps what a server answered; the standard says that any other value means EINVAL.
var local = map[Errno]error{
	EPERM:     unix.EPERM,
	EIO:       unix.EIO,
	ENOMEM:    unix.ENOMEM,
	EINVAL:    unix.EINVAL,
	ENOSPC:    unix.ENOSPC,
	EOVERFLOW: unix.EOVERFLOW,
	ENOTSUP:   unix.EOPNOTSUPP,
	ESHUTDOWN: protocol.ErrStale,
}

// err is what a call returns for an error that the server answered, with the server's message.
func (e Errno) err(message string) error {
	if e == 0 {
		return nil
	}
	known, ok := local[e]
	if !ok {
		known = unix.EINVAL
	}
	if message == "" {
		return fmt.Errorf("nbd: the server answered %w", known)
	}
	return fmt.Errorf("nbd: the server answered %w: %s", known, message)
}
