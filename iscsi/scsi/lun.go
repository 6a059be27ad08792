package scsi

// reportLUNsWellKnown is the REPORT LUNS well-known logical unit (SAM-5 §4.7.9), the eight bytes
// big endian.
const reportLUNsWellKnown = uint64(0xC101) << 48

// decodeLUN turns the eight bytes of a LUN into its number; ok is false for an address that this
// target never gives out.
func decodeLUN(lun uint64) (n int, ok bool) {
	if lun<<16 != 0 {
		return 0, false
	}
	method, value := lun>>62, lun>>48&0x3FFF
	switch method {
	case 0: // peripheral device addressing, bus 0
		return int(value), value < 256
	case 1: // flat space addressing
		return int(value), true
	}
	return 0, false
}

// EncodeLUN is the eight bytes, big endian, by which REPORT LUNS names a LUN: peripheral device
// addressing below 256, flat space addressing above.
func EncodeLUN(lun uint16) uint64 {
	if lun < 256 {
		return uint64(lun) << 48
	}
	return uint64(0x4000|lun) << 48
}
