package device

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Errors of persistent reservations; each wraps the errno that it stands for.
var (
	// ErrReservationConflict: the LUN refused because of a reservation, or because the caller's key
	// is not the one registered. After a retry it says nothing: READ KEYS does.
	ErrReservationConflict = error(&sentinel{"reservation conflict", unix.EBADE})
	// ErrNoReservations: the device, its driver or this kernel has no persistent reservations.
	ErrNoReservations = error(&sentinel{"persistent reservations are not supported", unix.EOPNOTSUPP})
	// ErrRegistrationsFull: the LUN has no room for another registration.
	ErrRegistrationsFull = error(&sentinel{"the LUN has no room for another registration", unix.ENOSPC})
	// ErrPathBusy: an earlier call on this path has not come back from the kernel.
	ErrPathBusy = error(&sentinel{"an earlier reservation command is still under way on this path", unix.EBUSY})
)

// ReservationKey is what an initiator registers with a LUN. Zero is no key.
// Its parts are Lunar's own: 16 bit cluster, 16 bit node, 32 bit incarnation.
type ReservationKey uint64

// NewReservationKey joins the parts. It fails for parts that are all zero.
func NewReservationKey(cluster, node uint16, incarnation uint32) (ReservationKey, error) {
	k := ReservationKey(cluster)<<48 | ReservationKey(node)<<32 | ReservationKey(incarnation)
	if k == 0 {
		return 0, errors.New("reservation key: cluster, node and incarnation are all zero, which means no key")
	}
	return k, nil
}

// Cluster is the hash of the cluster's id.
func (k ReservationKey) Cluster() uint16 { return uint16(k >> 48) }

// Node is the node's number in its cluster.
func (k ReservationKey) Node() uint16 { return uint16(k >> 32) }

// Incarnation counts the starts of the node.
func (k ReservationKey) Incarnation() uint32 { return uint32(k) }

// String is as sg_persist prints keys.
func (k ReservationKey) String() string { return fmt.Sprintf("%#016x", uint64(k)) }

// ReservationType is a type of persistent reservation by its SCSI number (SPC-4 6.15.3.4).
type ReservationType uint8

// Types of reservations.
const (
	WriteExclusive                 ReservationType = 1
	ExclusiveAccess                ReservationType = 3
	WriteExclusiveRegistrantsOnly  ReservationType = 5
	ExclusiveAccessRegistrantsOnly ReservationType = 6
	WriteExclusiveAllRegistrants   ReservationType = 7
	ExclusiveAccessAllRegistrants  ReservationType = 8
)

var reservationTypeNames = map[ReservationType]string{
	WriteExclusive:                 "Write Exclusive",
	ExclusiveAccess:                "Exclusive Access",
	WriteExclusiveRegistrantsOnly:  "Write Exclusive, Registrants Only",
	ExclusiveAccessRegistrantsOnly: "Exclusive Access, Registrants Only",
	WriteExclusiveAllRegistrants:   "Write Exclusive, All Registrants",
	ExclusiveAccessAllRegistrants:  "Exclusive Access, All Registrants",
}

// String is the type's name in SPC-4.
func (t ReservationType) String() string {
	if name, ok := reservationTypeNames[t]; ok {
		return name
	}
	return fmt.Sprintf("type %Xh", uint8(t))
}

// kernelTypes is enum pr_type of linux/pr.h, by position.
var kernelTypes = [...]ReservationType{0, WriteExclusive, ExclusiveAccess, WriteExclusiveRegistrantsOnly,
	ExclusiveAccessRegistrantsOnly, WriteExclusiveAllRegistrants, ExclusiveAccessAllRegistrants}

// kernel is the type's number in linux/pr.h, 0 if it has none.
func (t ReservationType) kernel() uint32 {
	for i, k := range kernelTypes {
		if k == t {
			return uint32(i)
		}
	}
	return 0
}

func typeOfKernel(n uint32) (ReservationType, error) {
	if n == 0 || int(n) >= len(kernelTypes) {
		return 0, fmt.Errorf("the kernel reports reservation type %d, which linux/pr.h does not have: %w", n, unix.EPROTO)
	}
	return kernelTypes[n], nil
}
