package coordinator

import "unsafe"

// alignment is what direct I/O may ask of a buffer's address.
const alignment = 4096

// zeroes is what is written where nothing was; read only.
var zeroes = alignedBuffer(1 << 20)

// alignedBuffer makes a zeroed buffer for direct I/O.
func alignedBuffer(n int) []byte {
	b := make([]byte, n+alignment)
	shift := int(-address(b) & (alignment - 1))
	return b[shift : shift+n : shift+n]
}

// alignedCopy is p in a buffer for direct I/O.
func alignedCopy(p []byte) []byte {
	q := alignedBuffer(len(p))
	copy(q, p)
	return q
}

func address(p []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(p))) }

// isAligned tells whether p's address suits every device: 512 bytes is the most that they ask.
func isAligned(p []byte) bool { return address(p)&511 == 0 }
