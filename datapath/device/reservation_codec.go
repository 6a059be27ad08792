package device

import (
	"encoding/binary"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// Operation codes and service actions of SPC-4 6.15 and 6.16.
const (
	opPersistentReserveIn  = 0x5e
	opPersistentReserveOut = 0x5f

	inReadKeys           = 0
	inReadReservation    = 1
	inReportCapabilities = 2

	outRegister       = 0
	outReserve        = 1
	outRelease        = 2
	outPreempt        = 4
	outPreemptAbort   = 5
	outRegisterIgnore = 6

	scopeLU = 0 // SPC-4 6.15.3.3
)

// Sizes of READ KEYS data, bytes: what is asked for first, and the bound.
const (
	registrationsBound = 4096
	firstReadBytes     = 8 + 8*64
)

// Registrations is what READ KEYS returns: a key per registered path of an initiator, so one key
// stands as often as it has paths.
type Registrations struct {
	Generation uint32 // counts the changes; see SPC-4 6.15.2
	Keys       []ReservationKey
}

// Has tells whether the key is registered by any path.
func (r Registrations) Has(k ReservationKey) bool {
	for _, have := range r.Keys {
		if have == k {
			return true
		}
	}
	return false
}

// Reservation is what READ RESERVATION returns. Type is 0 when nobody holds one.
type Reservation struct {
	Generation uint32
	Key        ReservationKey // the holder's; 0 for the All Registrants types
	Type       ReservationType
}

// Held tells whether there is a reservation.
func (r Reservation) Held() bool { return r.Type != 0 }

// reservationIn is a PERSISTENT RESERVE IN command (SPC-4 6.15.1).
func reservationIn(action byte, allocation int) []byte {
	cdb := make([]byte, 10)
	cdb[0], cdb[1] = opPersistentReserveIn, action
	binary.BigEndian.PutUint16(cdb[7:], uint16(allocation))
	return cdb
}

// reservationOut is PERSISTENT RESERVE OUT: its command and its parameter list (SPC-4 6.16.1, 6.16.3).
type reservationOut struct {
	action         byte
	kind           ReservationType
	key, actionKey ReservationKey
	aptpl          bool
}

const outListBytes = 24

func (o reservationOut) encode() (cdb, list []byte) {
	cdb, list = make([]byte, 10), make([]byte, outListBytes)
	cdb[0], cdb[1], cdb[2] = opPersistentReserveOut, o.action, scopeLU<<4|byte(o.kind)
	binary.BigEndian.PutUint32(cdb[5:], outListBytes)
	binary.BigEndian.PutUint64(list, uint64(o.key))
	binary.BigEndian.PutUint64(list[8:], uint64(o.actionKey))
	if o.aptpl {
		list[20] = 1
	}
	return cdb, list
}

// decodeOut is the inverse of encode, for a LUN in tests.
func decodeOut(cdb, list []byte) (o reservationOut, err error) {
	switch {
	case len(cdb) < 10 || cdb[0] != opPersistentReserveOut:
		return o, malformed("no PERSISTENT RESERVE OUT command")
	case len(list) < outListBytes || binary.BigEndian.Uint32(cdb[5:]) != outListBytes:
		return o, malformed("parameter list of %d bytes", len(list))
	}
	return reservationOut{
		action:    cdb[1] & 0x1f,
		kind:      ReservationType(cdb[2] & 0x0f),
		key:       ReservationKey(binary.BigEndian.Uint64(list)),
		actionKey: ReservationKey(binary.BigEndian.Uint64(list[8:])),
		aptpl:     list[20]&1 != 0,
	}, nil
}

// decodeKeys reads READ KEYS data (SPC-4 6.15.2). whole is how many bytes would hold all keys;
// keys that do not fit into data are left out.
func decodeKeys(data []byte) (r Registrations, whole int, err error) {
	if len(data) < 8 {
		return r, 0, malformed("READ KEYS data of %d bytes", len(data))
	}
	r.Generation = binary.BigEndian.Uint32(data)
	length := binary.BigEndian.Uint32(data[4:])
	if length%8 != 0 || length > 8*registrationsBound {
		return r, 0, malformed("READ KEYS data says that %d bytes of keys follow", length)
	}
	whole = 8 + int(length)
	for at := 8; at+8 <= min(whole, len(data)); at += 8 {
		r.Keys = append(r.Keys, ReservationKey(binary.BigEndian.Uint64(data[at:])))
	}
	return r, whole, nil
}

// decodeReservation reads READ RESERVATION data (SPC-4 6.15.3).
func decodeReservation(data []byte) (r Reservation, err error) {
	if len(data) < 8 {
		return r, malformed("READ RESERVATION data of %d bytes", len(data))
	}
	r.Generation = binary.BigEndian.Uint32(data)
	length := binary.BigEndian.Uint32(data[4:])
	if length == 0 {
		return r, nil
	}
	if length < 16 || len(data) < 24 {
		return r, malformed("READ RESERVATION data of %d bytes with a descriptor of %d", len(data), length)
	}
	r.Key, r.Type = ReservationKey(binary.BigEndian.Uint64(data[8:])), ReservationType(data[21]&0x0f)
	if _, known := reservationTypeNames[r.Type]; !known {
		return r, malformed("READ RESERVATION data has type %Xh", uint8(r.Type))
	}
	return r, nil
}

// ReservationCapabilities is what a LUN says it can do with persistent reservations.
type ReservationCapabilities struct {
	APTPL       bool // can keep registrations through a loss of power
	APTPLActive bool // keeps them now
	AllPorts    bool // one registration can count for all of the target's ports
	// Types is a bit per type's SCSI number; 0 if the LUN does not say.
	Types uint16
}

// Knows tells whether the LUN has the type; a LUN that does not say which it has may have any.
func (c ReservationCapabilities) Knows(t ReservationType) bool {
	return c.Types == 0 || c.Types>>t&1 != 0
}

// String is in plain words.
func (c ReservationCapabilities) String() string {
	words := []string{"SCSI-3 persistent reservations"}
	switch {
	case c.Types == 0:
		words = append(words, "types not stated")
	case c.Knows(WriteExclusiveAllRegistrants):
		words = append(words, WriteExclusiveAllRegistrants.String())
	default:
		words = append(words, "without "+WriteExclusiveAllRegistrants.String())
	}
	if c.APTPL {
		return strings.Join(append(words, "kept through a loss of power"), ", ")
	}
	return strings.Join(append(words, "forgotten at a loss of power"), ", ")
}

// decodeCapabilities reads REPORT CAPABILITIES data (SPC-4 6.15.4).
func decodeCapabilities(data []byte) (c ReservationCapabilities, err error) {
	if len(data) < 8 || binary.BigEndian.Uint16(data) < 8 {
		return c, malformed("REPORT CAPABILITIES data of %d bytes", len(data))
	}
	c.AllPorts, c.APTPL, c.APTPLActive = data[2]>>2&1 != 0, data[2]&1 != 0, data[3]&1 != 0
	if data[3]&0x80 == 0 {
		return c, nil
	}
	// The type mask: bits 1, 3, 5, 6, 7 of byte 4 are the types' own numbers; bit 0 of byte 5 is type 8.
	c.Types = uint16(data[4]&0xea) | uint16(data[5]&1)<<ExclusiveAccessAllRegistrants
	return c, nil
}

func malformed(format string, args ...any) error {
	return fmt.Errorf("the LUN's answer is malformed: "+format+": %w", append(args, unix.EPROTO)...)
}
