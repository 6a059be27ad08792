package device

import (
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Requests of linux/pr.h. The last two came with kernel 6.19.
const (
	iocRegister        = 0x401870c8
	iocReserve         = 0x401070c9
	iocRelease         = 0x401070ca
	iocPreempt         = 0x401870cb
	iocPreemptAbort    = 0x401870cc
	iocReadKeys        = 0xc01070ce
	iocReadReservation = 0x801070cf

	flagIgnoreKey = 1
)

// kernelKeys is struct pr_registration and struct pr_preempt: old and new key, then what each has.
type kernelKeys struct {
	old, new    uint64
	first, last uint32 // registration: flags, padding; preempt: type, flags
}

// kernelReservation is struct pr_reservation.
type kernelReservation struct {
	key         uint64
	kind, flags uint32
}

type kernelReadKeys struct {
	generation, count uint32
	keys              unsafe.Pointer
}

type kernelReadReservation struct {
	key              uint64
	generation, kind uint32
}

// errKernelUnsure: the kernel's answer does not tell why the LUN refused, or the kernel has no such
// request; SG_IO may tell.
var errKernelUnsure = errors.New("the kernel does not tell")

// prStatuses are the positive results of IOC_PR_* (enum pr_status; before kernel 6.1 SCSI results).
var prStatuses = map[uintptr]error{
	0:              nil,
	statusConflict: ErrReservationConflict,
	0xe0000:        fmt.Errorf("path failed, a retry may go: %w", unix.EIO),
	0xf0000:        fmt.Errorf("path failed fast: %w", unix.EIO),
	0x10000:        fmt.Errorf("no path: %w", unix.EIO),
}

// kernel issues one IOC_PR_* request.
func (p *reservationPath) kernel(request uint, arg unsafe.Pointer) error {
	result, _, errno := unix.Syscall(unix.SYS_IOCTL, p.file.Fd(), uintptr(request), uintptr(arg))
	switch errno {
	case 0:
	case unix.EOPNOTSUPP, unix.ENOTTY, unix.EINVAL, unix.EPERM, unix.EREMOTEIO:
		return fmt.Errorf("%w: %w", errKernelUnsure, errno)
	case unix.EBADE:
		return ErrReservationConflict
	default:
		return errno
	}
	err, known := prStatuses[result]
	if !known {
		return fmt.Errorf("%w: status %#x", errKernelUnsure, result)
	}
	return err
}

// kernelOut does a PERSISTENT RESERVE OUT by the kernel's ioctl for it, which sets APTPL at a register.
func (p *reservationPath) kernelOut(o reservationOut) error {
	keys := kernelKeys{old: uint64(o.key), new: uint64(o.actionKey)}
	held := kernelReservation{key: uint64(o.key), kind: o.kind.kernel()}
	switch o.action {
	case outRegister:
		return p.kernel(iocRegister, unsafe.Pointer(&keys))
	case outRegisterIgnore:
		keys.old, keys.first = 0, flagIgnoreKey
		return p.kernel(iocRegister, unsafe.Pointer(&keys))
	case outReserve:
		return p.kernel(iocReserve, unsafe.Pointer(&held))
	case outRelease:
		return p.kernel(iocRelease, unsafe.Pointer(&held))
	}
	keys.first = o.kind.kernel()
	if o.action == outPreemptAbort {
		return p.kernel(iocPreemptAbort, unsafe.Pointer(&keys))
	}
	return p.kernel(iocPreempt, unsafe.Pointer(&keys))
}

// kernelReadKeys is IOC_PR_READ_KEYS.
func (p *reservationPath) kernelReadKeys() (Registrations, error) {
	keys := make([]ReservationKey, registrationsBound)
	var pin runtime.Pinner
	defer pin.Unpin()
	pin.Pin(&keys[0])
	arg := kernelReadKeys{count: registrationsBound, keys: unsafe.Pointer(&keys[0])}
	if err := p.kernel(iocReadKeys, unsafe.Pointer(&arg)); err != nil {
		return Registrations{}, err
	}
	if arg.count > registrationsBound {
		return Registrations{}, fmt.Errorf("LUN has %d registrations: %w", arg.count, unix.E2BIG)
	}
	return Registrations{arg.generation, keys[:arg.count]}, nil
}

// kernelReadReservation is IOC_PR_READ_RESERVATION.
func (p *reservationPath) kernelReadReservation() (r Reservation, err error) {
	var arg kernelReadReservation
	if err := p.kernel(iocReadReservation, unsafe.Pointer(&arg)); err != nil {
		return r, err
	}
	if r.Generation = arg.generation; arg.kind == 0 {
		return r, nil
	}
	r.Key = ReservationKey(arg.key)
	r.Type, err = typeOfKernel(arg.kind)
	return r, err
}
