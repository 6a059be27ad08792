package pdu

// MaxFlatLUN is the highest number that the flat space method holds.
const MaxFlatLUN = 1<<14 - 1

// Addressing methods, SAM-5 §4.7.6, in the top bits of the first byte.
const (
	methodPeripheral = 0x00
	methodFlat       = 0x40
	methodExtended   = 0xc0
	extendedFlat     = 0xd2 // length 01b, method 0010b: three bytes of number
)

// EncodeLUN is the eight-byte form of logical unit n as REPORT LUNS gives it: peripheral device
// addressing below 256, flat space to 16,383, extended flat space above.
func EncodeLUN(n uint32) uint64 {
	switch {
	case n < 256:
		return uint64(n) << 48
	case n <= MaxFlatLUN:
		return uint64(methodFlat|n>>8)<<56 | uint64(n&0xff)<<48
	default:
		return uint64(extendedFlat)<<56 | uint64(n&0xffffff)<<32
	}
}

// DecodeLUN is the number in an eight-byte logical unit number. ok is false for a method or a
// nesting that addresses nothing here: other buses, other levels, well known logical units.
func DecodeLUN(lun uint64) (n uint32, ok bool) {
	top := byte(lun >> 56)
	switch {
	case top == methodPeripheral:
		return uint32(lun >> 48 & 0xff), lun<<16 == 0
	case top&0xc0 == methodFlat:
		return uint32(lun >> 48 & MaxFlatLUN), lun<<16 == 0
	case top == extendedFlat:
		return uint32(lun >> 32 & 0xffffff), lun<<32 == 0
	}
	return 0, false
}
