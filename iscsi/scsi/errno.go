package scsi

import (
	"errors"
	"syscall"
)

// errnoSense says what a Backend's error means to the initiator. EIO has a meaning of its own for
// reads and writes; whatever is not listed is an INTERNAL TARGET FAILURE.
var errnoSense = map[syscall.Errno]sense{
	syscall.ENOSPC:    senseSpaceExhausted,
	syscall.EDQUOT:    senseSpaceExhausted,
	syscall.EROFS:     senseWriteProtected,
	syscall.EPERM:     senseWriteProtected,
	syscall.EACCES:    senseWriteProtected,
	syscall.ETIMEDOUT: senseCommandTimeout,
	syscall.ENODEV:    senseNotReadyOffline,
	syscall.ENXIO:     senseNotReadyOffline,
	syscall.ENOLINK:   senseUnitCommunication,
	syscall.ESHUTDOWN: senseNotReadyBecoming,
	syscall.ENOMEM:    senseInsufficientBuffers,
	syscall.ENOBUFS:   senseInsufficientBuffers,
	syscall.ECANCELED: senseCommandTimeout,
	syscall.ERANGE:    senseLBAOutOfRange,

	syscall.ECONNABORTED: senseOutcomeUnknown,
}

// errnoStatus lists the errors that are a status and carry no sense data.
var errnoStatus = map[syscall.Errno]Status{
	syscall.EBADE:  ReservationConflict,
	syscall.EAGAIN: Busy,
	syscall.EBUSY:  Busy,
}

// backendFailure turns a Backend's error into the status and the sense data of a command that was
// writing or reading.
func backendFailure(err error, writing bool) (Status, sense) {
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return CheckCondition, senseTargetFailure
	}
	if status, ok := errnoStatus[errno]; ok {
		return status, senseNone
	}
	if s, ok := errnoSense[errno]; ok {
		return CheckCondition, s
	}
	switch {
	case errno != syscall.EIO && errno != syscall.EREMOTEIO && errno != syscall.ENODATA:
		return CheckCondition, senseTargetFailure
	case writing:
		return CheckCondition, senseWriteError
	}
	return CheckCondition, senseReadError
}
