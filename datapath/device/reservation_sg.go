package device

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// sgHeader is struct sg_io_hdr of scsi/sg.h.
type sgHeader struct {
	interfaceID    int32
	direction      int32
	cmdLen         uint8
	senseMax       uint8
	_              uint16
	dataLen        uint32
	data           unsafe.Pointer
	cmd            unsafe.Pointer
	sense          unsafe.Pointer
	timeout        uint32 // ms
	flags          uint32
	packID         int32
	userPtr        uintptr
	status         uint8
	maskedStatus   uint8
	msgStatus      uint8
	senseLen       uint8
	hostStatus     uint16
	driverStatus   uint16
	resid          int32
	duration, info uint32
}

const (
	sgIO       = 0x2285
	sgToDev    = -2
	sgFromDev  = -3
	senseBytes = 64
)

// Statuses of SAM-5 5.3.1 and sense keys of SPC-4 4.5.6.
const (
	statusGood            = 0x00
	statusCheck           = 0x02
	statusBusy            = 0x08
	statusConflict        = 0x18
	statusTaskSetFull     = 0x28
	senseIllegalRequest   = 0x5
	senseUnitAttention    = 0x6
	hostOK                = 0
	ascRegistrationsFull  = 0x5504
	ascInvalidCommand     = 0x2000
	ascInvalidFieldInCDB  = 0x2400
	ascInvalidFieldInList = 0x2600
)

// Bounds of one SCSI command.
const (
	// DefaultReservationTimeout bounds a reservation command in the kernel: it ends with an error.
	DefaultReservationTimeout = 5 * time.Second
	// sgTries bounds how often a command is sent again after a unit attention or a busy LUN.
	sgTries   = 20
	sgBackOff = 25 * time.Millisecond
)

// errAgain: the LUN did not execute the command, and may the next time.
var errAgain = errors.New("LUN asks to try again")

// send executes one SCSI command through SG_IO. data moves to the LUN when out is set; the count of
// bytes that moved is returned. Unit attentions and busy answers are tried again.
func (p *reservationPath) send(ctx context.Context, cdb, data []byte, out bool) (n int, err error) {
	for range sgTries {
		n, err = p.sendOnce(cdb, data, out)
		if !errors.Is(err, errAgain) {
			return n, err
		}
		select {
		case <-ctx.Done():
			return 0, fmt.Errorf("%w: %w", err, ctx.Err())
		case <-time.After(sgBackOff):
		}
	}
	return n, fmt.Errorf("%w: %w", err, unix.EBUSY)
}

func (p *reservationPath) sendOnce(cdb, data []byte, out bool) (int, error) {
	var sense [senseBytes]byte
	var pin runtime.Pinner
	defer pin.Unpin()
	pin.Pin(&cdb[0])
	pin.Pin(&data[0])
	pin.Pin(&sense[0])
	h := sgHeader{
		interfaceID: 'S', direction: sgFromDev, cmdLen: uint8(len(cdb)), senseMax: senseBytes, dataLen: uint32(len(data)),
		data: unsafe.Pointer(&data[0]), cmd: unsafe.Pointer(&cdb[0]), sense: unsafe.Pointer(&sense[0]),
		timeout: uint32(p.timeout.Milliseconds()),
	}
	if out {
		h.direction = sgToDev
	}
	if err := ioctl(int(p.file.Fd()), sgIO, unsafe.Pointer(&h)); err != nil {
		return 0, sgUnsupported(err)
	}
	if h.status == statusGood && h.hostStatus != hostOK {
		return 0, fmt.Errorf("path failed, host status %#x: %w", h.hostStatus, unix.EIO)
	}
	return len(data) - int(max(h.resid, 0)), statusError(h.status, sense[:h.senseLen])
}

// sgUnsupported tells a driver without SG_IO from a path that fails.
func sgUnsupported(err error) error {
	if errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("no SCSI commands (SG_IO): %w", ErrNoReservations)
	}
	return err
}

func statusError(status byte, sense []byte) error {
	switch status {
	case statusGood:
		return nil
	case statusConflict:
		return ErrReservationConflict
	case statusBusy, statusTaskSetFull:
		return errAgain
	case statusCheck:
		return senseError(sense)
	}
	return fmt.Errorf("SCSI status %#02x: %w", status, unix.EIO)
}

// senseError reads fixed and descriptor sense data (SPC-4 4.5.2, 4.5.3).
func senseError(sense []byte) error {
	key, code := parseSense(sense)
	words := fmt.Sprintf("sense key %Xh, %02Xh/%02Xh", key, code>>8, code&0xff)
	switch {
	case key == senseUnitAttention:
		return fmt.Errorf("%s: %w", words, errAgain)
	case code == ascRegistrationsFull:
		return ErrRegistrationsFull
	case key == senseIllegalRequest && code == ascInvalidFieldInList:
		return fmt.Errorf("%s: %w", words, unix.EINVAL)
	case key == senseIllegalRequest && (code == ascInvalidCommand || code == ascInvalidFieldInCDB):
		return fmt.Errorf("%s: %w", words, ErrNoReservations)
	}
	return fmt.Errorf("%s: %w", words, unix.EIO)
}

// parseSense returns the sense key and ASC<<8|ASCQ; zeroes where the LUN sent less.
func parseSense(sense []byte) (key byte, code uint16) {
	at := func(i int) byte {
		if i < len(sense) {
			return sense[i]
		}
		return 0
	}
	if at(0)&0x7f >= 0x72 {
		return at(1) & 0x0f, uint16(at(2))<<8 | uint16(at(3))
	}
	return at(2) & 0x0f, uint16(at(12))<<8 | uint16(at(13))
}
