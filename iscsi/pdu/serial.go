package pdu

// Sequence numbers are 32-bit serial numbers, RFC 7143 §4.2.2.1 and RFC 1982. Two numbers that are
// exactly 2³¹ apart are in no order: every comparison of them is false.

// Before tells whether a comes before b.
func Before(a, b uint32) bool { return a != b && int32(a-b) < 0 && a-b != 1<<31 }

// InWindow tells whether sn lies in [first, last]. The window is empty when last is first-1 or
// before it.
func InWindow(sn, first, last uint32) bool {
	size := last - first + 1
	return size < 1<<31 && sn-first < size
}
