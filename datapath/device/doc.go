// Package device is a back-end LUN: the block device under a volume. It opens it for direct I/O,
// identifies it by WWID and not by its name under /dev, says what it holds and who uses it, and has
// a fault-injecting twin for tests.
//
// A Device's descriptor is opened with O_DIRECT: buffers, offsets and lengths are multiples of
// LogicalBlock. The caller closes the Device after everything that uses its descriptor has ended.
// Formatting and mounting are not done here; this package only tells whether they are safe.
//
// Reservations issues persistent reservation commands to a LUN over all its paths; whom to fence, and
// when, is for others to decide.
package device
