package uring

import (
	"errors"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// Sentinels of this package; each comes together with an errno.
var (
	// ErrDeadline: an operation missed its deadline (ETIMEDOUT).
	ErrDeadline = errors.New("deadline exceeded")
	// ErrCanceled: an operation was cancelled (ECANCELED).
	ErrCanceled = errors.New("canceled")
	// ErrQueueFull: a bounded queue of the engine is full (EAGAIN); submit again after completions.
	ErrQueueFull = errors.New("queue full")
	// ErrClosed: the engine, the file or the socket is closed (EBADF).
	ErrClosed = errors.New("closed")
	// ErrShort: a file or device ended before the buffer did (EIO); Op.N bytes were done.
	ErrShort = errors.New("short transfer")
	// ErrInvalid: an operation, option or descriptor that cannot work (EINVAL).
	ErrInvalid = errors.New("invalid argument")
	// ErrIO: any other error of the kernel; the errno says which.
	ErrIO = errors.New("I/O error")
)

// OpError is the error of one operation. errors.Is finds both the sentinel and the errno.
type OpError struct {
	Code   Code
	Offset int64
	Length int64
	Errno  syscall.Errno
	Kind   error // one of the sentinels
}

func (e *OpError) Error() string {
	return fmt.Sprintf("uring: %s of %d bytes at %d: %v: %v", e.Code, e.Length, e.Offset, e.Kind, e.Errno)
}

// Unwrap gives the sentinel and the errno.
func (e *OpError) Unwrap() []error { return []error{e.Kind, e.Errno} }

// SocketError is the error of a socket's operation. errors.Is finds both the sentinel and the errno.
type SocketError struct {
	Operation string // "receive", "send" or "attach"
	Errno     syscall.Errno
	Kind      error // one of the sentinels
}

func (e *SocketError) Error() string {
	return fmt.Sprintf("uring: socket %s: %v: %v", e.Operation, e.Kind, e.Errno)
}

// Unwrap gives the sentinel and the errno.
func (e *SocketError) Unwrap() []error { return []error{e.Kind, e.Errno} }

// kinds gives the sentinel of errnos that are not plain I/O errors.
var kinds = map[syscall.Errno]error{
	unix.ECANCELED: ErrCanceled,
	unix.ETIMEDOUT: ErrDeadline,
	unix.EINVAL:    ErrInvalid,
}

// errnos gives the errno of the sentinels that Submit refuses an operation with.
var errnos = map[error]syscall.Errno{
	ErrInvalid:   unix.EINVAL,
	ErrClosed:    unix.EBADF,
	ErrQueueFull: unix.EAGAIN,
}

func kindOf(e syscall.Errno) error {
	if k := kinds[e]; k != nil {
		return k
	}
	return ErrIO
}
