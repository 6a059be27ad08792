// Package sys is a thin binding to the kernel's io_uring, just what the engine above it uses.
//
// A Ring is not safe for concurrent use: the thread that set it up submits, waits and reaps. The
// memory that an SQE points to (buffers, vectors, message headers, time specifications) must stay
// where it is and reachable until the request's CQE, or, where a builder says so, until the SQE was
// submitted: the kernel's copy of an address keeps nothing alive in Go's eyes.
//
// Sections named in comments are those of the manual pages io_uring_setup(2), io_uring_enter(2)
// and io_uring_register(2), and the layouts those of include/uapi/linux/io_uring.h.
package sys
