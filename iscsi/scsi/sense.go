package scsi

import "encoding/binary"

// senseKey is the sense key of SPC-4 §4.5.6.
type senseKey uint8

const (
	noSense        senseKey = 0x0
	notReady       senseKey = 0x2
	mediumError    senseKey = 0x3
	hardwareError  senseKey = 0x4
	illegalRequest senseKey = 0x5
	unitAttention  senseKey = 0x6
	dataProtect    senseKey = 0x7
	copyAborted    senseKey = 0xA
	abortedCommand senseKey = 0xB
	miscompare     senseKey = 0xE
)

// sense is one row of the sense table and, with its optional parts set by at and with, the sense
// data of one command.
type sense struct {
	key  senseKey
	code uint16 // additional sense code and its qualifier

	hasField bool
	inCDB    bool
	field    uint16
	bit      int8 // -1: the pointer names a byte, not a bit

	hasInfo bool
	info    uint64
}

// The sense table: every additional sense code that this device server returns.
var (
	senseNone                = sense{key: noSense}
	senseInvalidOpcode       = sense{key: illegalRequest, code: 0x2000}
	senseInvalidField        = sense{key: illegalRequest, code: 0x2400}
	senseInvalidParameter    = sense{key: illegalRequest, code: 0x2600}
	senseInvalidRelease      = sense{key: illegalRequest, code: 0x2604}
	senseInformationUnit     = sense{key: illegalRequest, code: 0x0E03}
	senseParameterLength     = sense{key: illegalRequest, code: 0x1A00}
	senseLBAOutOfRange       = sense{key: illegalRequest, code: 0x2100}
	senseUnitNotSupported    = sense{key: illegalRequest, code: 0x2500}
	senseSavingNotSupported  = sense{key: illegalRequest, code: 0x3900}
	senseRemovalPrevented    = sense{key: illegalRequest, code: 0x5302}
	senseNoResources         = sense{key: illegalRequest, code: 0x5504}
	senseNotReadyStopped     = sense{key: notReady, code: 0x0402}
	senseNotReadyBecoming    = sense{key: notReady, code: 0x0401}
	senseNotReadyOffline     = sense{key: notReady, code: 0x0412}
	senseMediumNotPresent    = sense{key: notReady, code: 0x3A00}
	senseWriteError          = sense{key: mediumError, code: 0x0C00}
	senseReadError           = sense{key: mediumError, code: 0x1100}
	senseTargetFailure       = sense{key: hardwareError, code: 0x4400}
	senseUnitCommunication   = sense{key: hardwareError, code: 0x0800}
	senseCommandTimeout      = sense{key: abortedCommand, code: 0x2E02}
	senseOutcomeUnknown      = sense{key: abortedCommand, code: 0x0800} // LOGICAL UNIT COMMUNICATION FAILURE
	senseInsufficientBuffers = sense{key: abortedCommand, code: 0x5503}
	senseWriteProtected      = sense{key: dataProtect, code: 0x2700}
	senseSoftwareProtected   = sense{key: dataProtect, code: 0x2702}
	senseSpaceExhausted      = sense{key: dataProtect, code: 0x2707}
	senseMiscompare          = sense{key: miscompare, code: 0x1D00}
)

// at points at a byte of the CDB.
func (s sense) at(field int) sense { return s.pointer(true, field, -1) }

// atBit points at a field in the CDB by its leftmost bit.
func (s sense) atBit(field, bit int) sense { return s.pointer(true, field, bit) }

// inList points at a byte of the parameter list.
func (s sense) inList(field int) sense { return s.pointer(false, field, -1) }

// inListBit points at a field in the parameter list by its leftmost bit.
func (s sense) inListBit(field, bit int) sense { return s.pointer(false, field, bit) }

func (s sense) pointer(inCDB bool, field, bit int) sense {
	s.hasField, s.inCDB, s.field, s.bit = true, inCDB, uint16(min(field, 0xFFFF)), int8(bit)
	return s
}

// with sets the INFORMATION field.
func (s sense) with(info uint64) sense {
	s.hasInfo, s.info = true, info
	return s
}

// fieldPointer is the sense-key specific field of SPC-4 §4.5.2.4.2.
func (s sense) fieldPointer() (flags byte, field uint16) {
	flags = 0x80
	if s.inCDB {
		flags |= 0x40
	}
	if s.bit >= 0 {
		flags |= 0x08 | byte(s.bit&7)
	}
	return flags, s.field
}

// senseLength is the room that append needs at most, in both formats.
const senseLength = 32

// encode writes the sense data into buf, of senseLength bytes at least, in descriptor format
// (SPC-4 §4.5.2) or in fixed format (§4.5.3), and returns the valid part.
func (s sense) encode(buf []byte, descriptor bool) []byte {
	clear(buf)
	if descriptor {
		return s.encodeDescriptor(buf)
	}
	return s.encodeFixed(buf)
}

func (s sense) encodeFixed(buf []byte) []byte {
	buf[0], buf[2], buf[7] = 0x70, byte(s.key), 10
	binary.BigEndian.PutUint16(buf[12:], s.code)
	if s.hasInfo && s.info <= 0xFFFFFFFF {
		buf[0] |= 0x80
		binary.BigEndian.PutUint32(buf[3:], uint32(s.info))
	}
	if s.hasField {
		flags, field := s.fieldPointer()
		buf[15] = flags
		binary.BigEndian.PutUint16(buf[16:], field)
	}
	return buf[:18]
}

func (s sense) encodeDescriptor(buf []byte) []byte {
	buf[0], buf[1] = 0x72, byte(s.key)
	binary.BigEndian.PutUint16(buf[2:], s.code)
	n := 8
	if s.hasInfo {
		buf[n], buf[n+1], buf[n+2] = 0x00, 0x0A, 0x80
		binary.BigEndian.PutUint64(buf[n+4:], s.info)
		n += 12
	}
	if s.hasField {
		flags, field := s.fieldPointer()
		buf[n], buf[n+1], buf[n+4] = 0x02, 0x06, flags
		binary.BigEndian.PutUint16(buf[n+5:], field)
		n += 8
	}
	buf[7] = byte(n - 8)
	return buf[:n]
}
