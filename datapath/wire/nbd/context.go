package nbd

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Bounds of metadata contexts.
const (
	maxExtents  = 8192 // in one answer to BLOCK_STATUS, of each context; the client asks on from where it ends
	maxContexts = 16   // of an export
)

// DirtyBitmap is before the name of a bitmap in the name of its metadata context, as QEMU has it
// (docs/interop/nbd.txt).
const DirtyBitmap = "qemu:dirty-bitmap:"

// stateDirty is what QEMU has for a range that has changed.
const stateDirty = 1 << 0

// Marked is what an Export may be, too: it has bitmaps, in which a range is marked or not.
type Marked interface {
	// Bitmaps are their names, the same for as long as the export is open; no more than 15 are seen.
	Bitmaps() []string
	// Marks tells what of a range is marked, in order and without gaps, until each returns false.
	Marks(ctx context.Context, bitmap string, off, n int64, each func(Mark) bool) error
}

// Mark is a part of an export in a bitmap.
type Mark struct {
	Len    int64 // bytes
	Marked bool
}

// selection is what a client chose by SET_META_CONTEXT; each one replaces the one before.
type selection struct {
	export   string
	contexts []string
}

// contextsOf are the names of an export's metadata contexts.
func contextsOf(x Export) []string {
	out := []string{metaAllocation}
	marked, ok := x.(Marked)
	if !ok {
		return out
	}
	for _, name := range marked.Bitmaps() {
		if full := DirtyBitmap + name; len(full) <= maxString && len(out) < maxContexts {
			out = append(out, full)
		}
	}
	return out
}

// wants tells which of an export's contexts the client means. In a list a query may end after a namespace, and none
// means all.
func (m metaRequest) wants(has []string, listing bool) (out []string) {
	if listing && len(m.queries) == 0 {
		return has
	}
	for _, name := range has {
		if slices.ContainsFunc(m.queries, func(q string) bool {
			return q == name || listing && slices.Contains([]string{"base:", "qemu:", DirtyBitmap}, q) && strings.HasPrefix(name, q)
		}) {
			out = append(out, name)
		}
	}
	return out
}

// plain tells that the answer is the same for every export.
func (m metaRequest) plain(listing bool) bool {
	return !(listing && len(m.queries) == 0) && !slices.ContainsFunc(m.queries, func(q string) bool { return strings.HasPrefix(q, "qemu:") })
}

// metaContext answers LIST_META_CONTEXT and SET_META_CONTEXT.
func (h *handshake) metaContext(o option) (bool, error) {
	m, ok := parseMeta(o.data)
	setting := o.kind == optSetMeta
	if setting {
		h.meta = selection{}
	}
	if !ok || !h.structured {
		return false, h.reply(o, repInvalid, "malformed, or before STRUCTURED_REPLY")
	}
	has, err := h.contexts(m, !setting)
	if err != nil {
		return false, h.reply(o, refusal(err), err.Error())
	}
	chosen := m.wants(has, !setting)
	var b []byte
	for i, name := range chosen {
		id := uint32(0)
		if setting {
			id = uint32(i + 1)
		}
		b = appendOptionReply(b, o.kind, repMeta, append(be.AppendUint32(nil, id), name...))
	}
	if setting {
		h.meta = selection{export: m.name, contexts: chosen}
	}
	_, err = h.wire.Write(appendOptionReply(b, o.kind, repAck, nil))
	return false, err
}

// contexts are those of the export that is meant; it is looked for only when the answer depends on it.
func (h *handshake) contexts(m metaRequest, listing bool) ([]string, error) {
	if m.plain(listing) {
		return []string{metaAllocation}, nil
	}
	x, err := h.open(m.name, false)
	if err != nil {
		return nil, err
	}
	return contextsOf(x), x.Close()
}

// doStatus answers BLOCK_STATUS: a chunk for each context that was selected.
func doStatus(ctx context.Context, c *serverConn, op *operation) error {
	limit := maxExtents
	if op.flags&cmdReqOne != 0 {
		limit = 1
	}
	op.chunks = make([]byte, 0, 128)
	for i, name := range c.contexts {
		d := descriptors{left: int64(op.length), limit: limit, bytes: op.chunks}
		head := d.begin(uint32(i + 1))
		if err := c.status(ctx, name, op, &d); err != nil {
			op.chunks = nil
			return err
		}
		k := chunk{0, chunkStatus, op.cookie, uint32(len(d.bytes) - head - structuredSize)}
		if i == len(c.contexts)-1 {
			k.flags = chunkDone
		}
		k.put(d.bytes[head:])
		op.chunks = d.bytes
	}
	return nil
}

// status collects what one context says of an operation's range.
func (c *serverConn) status(ctx context.Context, name string, op *operation, d *descriptors) (err error) {
	off, n := int64(op.off), int64(op.length)
	bitmap, isBitmap := strings.CutPrefix(name, DirtyBitmap)
	switch marked, ok := c.export.(Marked); {
	case !isBitmap:
		err = c.export.Status(ctx, off, n, func(e Extent) bool { return d.add(e.Len, e.state()) })
	case ok:
		err = marked.Marks(ctx, bitmap, off, n, func(m Mark) bool { return d.add(m.Len, m.state()) })
	}
	if err == nil && d.count == 0 {
		return fmt.Errorf("no status of %d bytes at %d in %s: %w", n, off, name, unix.EIO)
	}
	return err
}

func (e Extent) state() (s uint32) {
	if e.Hole {
		s |= stateHole
	}
	if e.Zero {
		s |= stateZero
	}
	return s
}

func (m Mark) state() uint32 {
	if m.Marked {
		return stateDirty
	}
	return 0
}

// descriptors collects ranges with a state, equal neighbours as one.
type descriptors struct {
	bytes        []byte
	left         int64
	count, limit int
	last         uint32
}

// begin makes room for a chunk's header, which lies at head, and adds the ID of its context.
func (d *descriptors) begin(id uint32) (head int) {
	head = len(d.bytes)
	d.bytes = append(d.bytes, make([]byte, structuredSize)...)
	d.bytes = be.AppendUint32(d.bytes, id)
	return head
}

// add takes the next n bytes' state; false: no more is wanted.
func (d *descriptors) add(n int64, state uint32) bool {
	n = min(n, d.left)
	if n <= 0 {
		return d.left > 0
	}
	switch {
	case d.count > 0 && state == d.last:
		at := d.bytes[len(d.bytes)-8:]
		be.PutUint32(at, be.Uint32(at)+uint32(n))
	case d.count == d.limit:
		return false
	default:
		d.bytes = be.AppendUint32(be.AppendUint32(d.bytes, uint32(n)), state)
		d.count, d.last = d.count+1, state
	}
	d.left -= n
	return d.left > 0
}
