package sys

import (
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Every builder below writes the whole SQE, so nothing of its previous user is left. The
// descriptor of a file operation is an index of the fixed table; that of a socket is a plain one.

// Tag sets the value that the CQE brings back.
func (e *SQE) Tag(userData uint64) { e.userData = userData }

// Nop completes at once: io_uring_enter(2), IORING_OP_NOP.
func (e *SQE) Nop() { *e = SQE{opcode: OpNop} }

// address is where p begins; the caller keeps p reachable until the CQE.
func address(p []byte) uint64 { return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(p)))) }

func (e *SQE) transfer(op Opcode, file int32, p []byte, off int64) {
	*e = SQE{opcode: op, flags: sqeFixedFile, fd: file, off: uint64(off), addr: address(p), length: uint32(len(p))}
}

// Read fills p from off of a fixed file: io_uring_enter(2), IORING_OP_READ.
func (e *SQE) Read(file int32, p []byte, off int64) { e.transfer(OpRead, file, p, off) }

// ReadFixed is Read into a part of registered buffer buf: io_uring_enter(2), IORING_OP_READ_FIXED.
func (e *SQE) ReadFixed(file int32, p []byte, off int64, buf uint16) {
	e.transfer(OpReadFixed, file, p, off)
	e.bufIndex = buf
}

// Write stores p at off of a fixed file. rwf are RWF_* flags of pwritev2(2):
// io_uring_enter(2), IORING_OP_WRITE.
func (e *SQE) Write(file int32, p []byte, off int64, rwf uint32) {
	e.transfer(OpWrite, file, p, off)
	e.opFlags = rwf
}

// WriteFixed is Write from a part of registered buffer buf: io_uring_enter(2), IORING_OP_WRITE_FIXED.
func (e *SQE) WriteFixed(file int32, p []byte, off int64, rwf uint32, buf uint16) {
	e.transfer(OpWriteFixed, file, p, off)
	e.opFlags, e.bufIndex = rwf, buf
}

// Fdatasync flushes a fixed file: io_uring_enter(2), IORING_OP_FSYNC with IORING_FSYNC_DATASYNC.
func (e *SQE) Fdatasync(file int32) {
	*e = SQE{opcode: OpFsync, flags: sqeFixedFile, fd: file, opFlags: fsyncDatasync}
}

// Fallocate is fallocate(2) on a fixed file: io_uring_enter(2), IORING_OP_FALLOCATE.
func (e *SQE) Fallocate(file int32, mode uint32, off, length int64) {
	*e = SQE{opcode: OpFallocate, flags: sqeFixedFile, fd: file, off: uint64(off), addr: uint64(length), length: mode}
}

// Discard gives a range of a fixed block device up (Linux 6.12): io_uring_enter(2),
// IORING_OP_URING_CMD with BLOCK_URING_CMD_DISCARD of linux/blkdev.h.
func (e *SQE) Discard(file int32, off, length int64) {
	*e = SQE{opcode: OpURingCmd, flags: sqeFixedFile, fd: file, off: blockURingCmdDiscard,
		addr: uint64(off), addr3: uint64(length)}
}

// PollMultishot posts a CQE at each wake-up of fd that brings readiness for reading:
// io_uring_enter(2), IORING_OP_POLL_ADD with IORING_POLL_ADD_MULTI.
func (e *SQE) PollMultishot(fd int32) {
	*e = SQE{opcode: OpPollAdd, fd: fd, length: pollAddMulti, opFlags: unix.POLLIN}
}

// Poll posts one CQE when fd is ready for reading: io_uring_enter(2), IORING_OP_POLL_ADD.
func (e *SQE) Poll(fd int32) { *e = SQE{opcode: OpPollAdd, fd: fd, opFlags: unix.POLLIN} }

// Timespec is the kernel's struct __kernel_timespec.
type Timespec struct{ Sec, Nsec int64 }

// NewTimespec converts a duration.
func NewTimespec(d time.Duration) Timespec {
	return Timespec{Sec: int64(d / time.Second), Nsec: int64(d % time.Second)}
}

// Timeout completes with -ETIME after ts, which must stay in place until the SQE was submitted:
// io_uring_enter(2), IORING_OP_TIMEOUT.
func (e *SQE) Timeout(ts *Timespec) {
	*e = SQE{opcode: OpTimeout, fd: -1, addr: uint64(uintptr(unsafe.Pointer(ts))), length: 1}
}

// Cancel asks the kernel to cancel the request tagged with target: io_uring_enter(2),
// IORING_OP_ASYNC_CANCEL.
func (e *SQE) Cancel(target uint64) {
	*e = SQE{opcode: OpAsyncCancel, fd: -1, addr: target}
}

// Recv receives at least one byte into p: io_uring_enter(2), IORING_OP_RECV. pollFirst skips the
// attempt to receive before the socket has told that it is readable (IORING_RECVSEND_POLL_FIRST).
func (e *SQE) Recv(fd int32, p []byte, pollFirst bool) {
	*e = SQE{opcode: OpRecv, fd: fd, addr: address(p), length: uint32(len(p))}
	if pollFirst {
		e.ioprio = recvsendPollFirst
	}
}

// Recvmsg is Recv into what m describes: io_uring_enter(2), IORING_OP_RECVMSG. m and its vectors must
// stay in place until the CQE.
func (e *SQE) Recvmsg(fd int32, m *unix.Msghdr, pollFirst bool) {
	*e = SQE{opcode: OpRecvmsg, fd: fd, addr: uint64(uintptr(unsafe.Pointer(m))), length: 1}
	if pollFirst {
		e.ioprio = recvsendPollFirst
	}
}

// sendFlags make the kernel go on with a partial send by itself, and spare a SIGPIPE.
const sendFlags = unix.MSG_WAITALL | unix.MSG_NOSIGNAL

// Send sends p: io_uring_enter(2), IORING_OP_SEND.
func (e *SQE) Send(fd int32, p []byte) {
	*e = SQE{opcode: OpSend, fd: fd, addr: address(p), length: uint32(len(p)), opFlags: sendFlags}
}

// Sendmsg sends what m describes: io_uring_enter(2), IORING_OP_SENDMSG. m and its vectors must
// stay in place until the CQE.
func (e *SQE) Sendmsg(fd int32, m *unix.Msghdr) {
	*e = SQE{opcode: OpSendmsg, fd: fd, addr: uint64(uintptr(unsafe.Pointer(m))), length: 1, opFlags: sendFlags}
}
