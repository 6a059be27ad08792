package load

import "encoding/binary"

// Sector is the length of a LUN's block here, and Block of what writers write at once.
const (
	Sector = 512
	Block  = 4096
)

// The operation codes of SBC-3 and SPC-4 that are used here.
const (
	opUnmap           = 0x42
	opPRIn            = 0x5E
	opPROut           = 0x5F
	opRead16          = 0x88
	opCompareAndWrite = 0x89
	opWrite16         = 0x8A
	opServiceIn       = 0x9E
	opMaintenanceIn   = 0xA3
)

func cdb16(opcode, action byte, lba uint64, n uint32) []byte {
	c := make([]byte, 16)
	c[0], c[1] = opcode, action
	binary.BigEndian.PutUint64(c[2:], lba)
	binary.BigEndian.PutUint32(c[10:], n)
	return c
}

// Read is READ (16): offset and length in bytes, whole sectors.
func Read(offset, length int64) []byte {
	return cdb16(opRead16, 0, uint64(offset/Sector), uint32(length/Sector))
}

// Write is WRITE (16); fua asks for force unit access.
func Write(offset, length int64, fua bool) []byte {
	c := cdb16(opWrite16, 0, uint64(offset/Sector), uint32(length/Sector))
	if fua {
		c[1] = 8
	}
	return c
}

// Capacity is READ CAPACITY (16); it answers with the last sector's number first.
func Capacity() []byte {
	c := make([]byte, 16)
	c[0], c[1], c[13] = opServiceIn, 0x10, 32
	return c
}

// CompareAndWrite has the data to compare, then the data to write.
func CompareAndWrite(offset int64, sectors byte) []byte {
	c := make([]byte, 16)
	c[0], c[13] = opCompareAndWrite, sectors
	binary.BigEndian.PutUint64(c[2:], uint64(offset/Sector))
	return c
}

// Unmap is UNMAP with one descriptor; the second value is its parameter list.
func Unmap(offset, length int64) (cdb, list []byte) {
	cdb, list = make([]byte, 10), make([]byte, 24)
	cdb[0], cdb[8] = opUnmap, byte(len(list))
	list[1], list[3] = byte(len(list)-2), 16
	binary.BigEndian.PutUint64(list[8:], uint64(offset/Sector))
	binary.BigEndian.PutUint32(list[16:], uint32(length/Sector))
	return cdb, list
}

// Inquiry asks for a page of vital product data.
func Inquiry(page byte) []byte { return []byte{0x12, 1, page, 0, 255, 0} }

// ReportGroups is REPORT TARGET PORT GROUPS.
func ReportGroups() []byte {
	c := make([]byte, 12)
	c[0], c[1], c[8] = opMaintenanceIn, 0x0A, 1
	return c
}

// The service actions of PERSISTENT RESERVE OUT, and the type of a reservation.
const (
	PRRegister       = 0
	PRReserve        = 1
	PRRelease        = 2
	PRClear          = 3
	PRPreempt        = 4
	WriteExclusiveRO = 5 // registrants only
)

// ReserveOut is PERSISTENT RESERVE OUT; the second value is its parameter list.
func ReserveOut(action, kind byte, key, serviceKey uint64) (cdb, list []byte) {
	cdb, list = make([]byte, 10), make([]byte, 24)
	cdb[0], cdb[1], cdb[2], cdb[8] = opPROut, action, kind, byte(len(list))
	binary.BigEndian.PutUint64(list, key)
	binary.BigEndian.PutUint64(list[8:], serviceKey)
	return cdb, list
}

// ReserveIn is PERSISTENT RESERVE IN with a service action, 0 for the keys and 1 for the reservation.
func ReserveIn(action byte) []byte {
	c := make([]byte, 10)
	c[0], c[1], c[7] = opPRIn, action, 1
	return c
}
