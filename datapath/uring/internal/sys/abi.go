package sys

// Opcode is an IORING_OP_* number: io_uring_enter(2), "opcode".
type Opcode uint8

// Operations the engine submits.
const (
	OpNop         Opcode = 0
	OpFsync       Opcode = 3
	OpReadFixed   Opcode = 4
	OpWriteFixed  Opcode = 5
	OpPollAdd     Opcode = 6
	OpSendmsg     Opcode = 9
	OpRecvmsg     Opcode = 10
	OpTimeout     Opcode = 11
	OpAsyncCancel Opcode = 14
	OpFallocate   Opcode = 17
	OpRead        Opcode = 22
	OpWrite       Opcode = 23
	OpSend        Opcode = 26
	OpRecv        Opcode = 27
	OpURingCmd    Opcode = 46
)

// Setup flags: io_uring_setup(2), "flags".
const (
	SetupCQSize       = 1 << 3
	SetupClamp        = 1 << 4
	SetupSubmitAll    = 1 << 7
	SetupCoopTaskrun  = 1 << 8
	SetupTaskrunFlag  = 1 << 9
	SetupSingleIssuer = 1 << 12
	SetupDeferTaskrun = 1 << 13
	SetupNoSQArray    = 1 << 16
)

// Features the kernel reports: io_uring_setup(2), "features".
const (
	FeatSingleMmap = 1 << 0
	FeatNoDrop     = 1 << 1
	FeatExtArg     = 1 << 8
)

// SQE flags: io_uring_enter(2), "flags" of a submission queue entry.
const sqeFixedFile = 1 << 0

// CQE flags: io_uring_enter(2), "flags" of a completion queue entry.
const (
	// CQEMore says that a multishot request will post more completions.
	CQEMore = 1 << 1
	// CQESockNonempty says that a socket held more data after a receive.
	CQESockNonempty = 1 << 2
)

const (
	enterGetEvents      = 1 << 0 // io_uring_enter(2), "flags"
	enterExtArg         = 1 << 3
	enterRegisteredRing = 1 << 4

	sqCQOverflow = 1 << 1 // flags word of the submission ring
	sqTaskrun    = 1 << 2

	offSQRing = 0 // mmap offsets: io_uring_setup(2)
	offSQEs   = 0x10000000

	registerBuffers       = 0 // io_uring_register(2), "opcode"
	registerFiles2        = 13
	registerFilesUpdate   = 6
	registerBuffersUpdate = 16
	registerRingFDs       = 20
	unregisterRingFDs     = 21
	registerFlagSparse    = 1
	fsyncDatasync         = 1
	pollAddMulti          = 1
	recvsendPollFirst     = 1
	blockURingCmdDiscard  = 0x1200 // _IO(0x12, 0): linux/blkdev.h, BLOCK_URING_CMD_DISCARD
	sizeofSQE, sizeofCQE  = 64, 16
	registerRingFDAnyslot = ^uint32(0)
)

// SQE is struct io_uring_sqe, 64 bytes.
type SQE struct {
	opcode      Opcode
	flags       uint8
	ioprio      uint16
	fd          int32
	off         uint64
	addr        uint64
	length      uint32
	opFlags     uint32
	userData    uint64
	bufIndex    uint16
	personality uint16
	fileIndex   int32
	addr3       uint64
	_           uint64
}

// CQE is struct io_uring_cqe, 16 bytes. Res is the result, or a negative errno.
type CQE struct {
	UserData uint64
	Res      int32
	Flags    uint32
}

type sqOffsets struct {
	head, tail, mask, entries, flags, dropped, array, _ uint32
	_                                                   uint64
}

type cqOffsets struct {
	head, tail, mask, entries, overflow, cqes, flags, _ uint32
	_                                                   uint64
}

// params is struct io_uring_params: io_uring_setup(2).
type params struct {
	sqEntries, cqEntries, flags, sqThreadCPU, sqThreadIdle, features, wqFD uint32
	_                                                                      [3]uint32
	sqOff                                                                  sqOffsets
	cqOff                                                                  cqOffsets
}
