package nbd

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"lunar/datapath/layout/protocol"
)

// operation is a request under way, and then its reply.
type operation struct {
	request
	buf    *buffer // payload in or out; nil without
	errno  Errno
	why    string // for people
	chunks []byte // a reply other than the plain ones
	head   [structuredSize + 8]byte

	transfer protocol.Transfer // for a Carrier
}

var operations = sync.Pool{New: func() any { return new(operation) }}

func newOperation(r request) *operation {
	op := operations.Get().(*operation) //nolint:errcheck // New makes nothing else
	op.request = r
	return op
}

// free gives an operation back, which nobody has any more; what its Carrier keeps with it stays.
func (op *operation) free() {
	*op = operation{transfer: protocol.Transfer{Executor: op.transfer.Executor}}
	operations.Put(op)
}

// data is the payload.
func (op *operation) data() []byte {
	if op.buf == nil {
		return nil
	}
	return op.buf.whole[:op.length]
}

// command is what the server does for a command.
type command struct {
	flags  uint16 // allowed ones
	beyond Errno  // when the range ends beyond the export
	writes bool
	ranged bool // off and length are a range
	do     func(ctx context.Context, c *serverConn, op *operation) error
}

// commands is the table of what is served; DISC ends the reading before.
var commands = map[uint16]*command{
	cmdRead:  {cmdFUA | cmdDF, EINVAL, false, true, doRead},
	cmdWrite: {cmdFUA, ENOSPC, true, true, doWrite},
	cmdFlush: {cmdFUA, 0, false, false, func(ctx context.Context, c *serverConn, _ *operation) error { return c.export.Flush(ctx) }},
	cmdTrim:  {cmdFUA, EINVAL, true, true, doTrim},
	// An export has no cache that could be filled.
	cmdCache:       {cmdFUA, EINVAL, false, true, func(context.Context, *serverConn, *operation) error { return nil }},
	cmdWriteZeroes: {cmdFUA | cmdNoHole | cmdFastZero, ENOSPC, true, true, doZero},
	cmdBlockStatus: {cmdFUA | cmdReqOne, EINVAL, false, true, doStatus},
}

// check finds what is wrong with a request, before anything is done for it.
func (c *serverConn) check(r request) (Errno, string) {
	k := commands[r.command]
	switch {
	case k == nil:
		return EINVAL, fmt.Sprintf("command %d is not known", r.command)
	case r.flags&^k.flags != 0 || r.flags&cmdDF != 0 && !c.structured:
		return EINVAL, fmt.Sprintf("flags %#x do not go with command %d", r.flags, r.command)
	case k.writes && c.flags&ReadOnly != 0:
		return EPERM, "the export is read-only"
	case !k.ranged:
		return 0, ""
	case r.command == cmdRead && r.length > MaxPayload:
		return EOVERFLOW, fmt.Sprintf("a read of %d bytes, at most %d", r.length, MaxPayload)
	case r.command == cmdBlockStatus && (len(c.contexts) == 0 || r.length == 0):
		return EINVAL, "BLOCK_STATUS of nothing, or without a metadata context"
	}
	size := uint64(max(c.export.Size(), 0))
	if r.off > size || uint64(r.length) > size-r.off {
		return k.beyond, fmt.Sprintf("%d bytes at %d are beyond the export's %d", r.length, r.off, size)
	}
	if (r.off|uint64(r.length))&uint64(c.block-1) != 0 {
		return EINVAL, fmt.Sprintf("%d bytes at %d are not in units of %d", r.length, r.off, c.block)
	}
	return 0, ""
}

func (c *serverConn) execute(op *operation) {
	err := c.ctx.Err()
	if err == nil {
		err = commands[op.command].do(c.ctx, c, op)
	}
	if err == nil {
		return
	}
	if op.errno, op.why = errnoOf(err), err.Error(); c.ctx.Err() != nil && errors.Is(err, context.Canceled) {
		op.errno = ESHUTDOWN
	}
	if op.errno == ENOTSUP && op.flags&cmdFastZero == 0 { // the standard has it for that alone
		op.errno = EINVAL
	}
}

func doRead(ctx context.Context, c *serverConn, op *operation) error {
	return c.export.Read(ctx, op.data(), int64(op.off))
}

func doWrite(ctx context.Context, c *serverConn, op *operation) error {
	return c.export.Write(ctx, op.data(), int64(op.off), op.flags&cmdFUA != 0)
}

func doTrim(ctx context.Context, c *serverConn, op *operation) error {
	return c.durable(ctx, op, c.export.Trim(ctx, int64(op.off), int64(op.length)))
}

func doZero(ctx context.Context, c *serverConn, op *operation) error {
	o := ZeroOptions{NoHole: op.flags&cmdNoHole != 0, Fast: op.flags&cmdFastZero != 0}
	return c.durable(ctx, op, c.export.WriteZeroes(ctx, int64(op.off), int64(op.length), o))
}

// durable does FUA for what has no FUA of its own.
func (c *serverConn) durable(ctx context.Context, op *operation, err error) error {
	if err != nil || op.flags&cmdFUA == 0 {
		return err
	}
	return c.export.Flush(ctx)
}
