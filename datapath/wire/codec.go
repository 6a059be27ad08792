package wire

import (
	"errors"
	"fmt"
	"math"
	"time"

	"lunar/datapath/layout"
	"lunar/datapath/layout/protocol"
	"lunar/datapath/wire/wirepb"
)

// Bounds of a grant on the wire. A part takes 31 bytes per extent at most, and so half a MiB.
const (
	maxPart    = 1 << 14 // extents of a part
	maxExtents = 1 << 24 // of a grant
)

// errMalformed means a message that no node sends.
var errMalformed = errors.New("malformed message")

// parts yields g as messages for a holder, all under one number.
func parts(number uint64, holder uint32, g protocol.Grant) []*wirepb.ToNode {
	var out []*wirepb.ToNode
	at := cursor{file: g.Range.Off}
	rest := g.Extents
	for part := uint32(0); part == 0 || len(rest) > 0; part++ {
		n := min(len(rest), maxPart)
		m := columns(&at, rest[:n])
		rest = rest[n:]
		m.Holder, m.Part, m.More = holder, part, len(rest) > 0
		if part == 0 {
			m.Image, m.Epoch, m.Generation = uint64(g.Image), g.Epoch, g.Generation
			m.Size, m.Range, m.Ends, m.Free = g.Size, rangeOut(g.Range), g.Ends, g.Free
		}
		out = append(out, &wirepb.ToNode{Number: number, Body: &wirepb.ToNode_Grant{Grant: m}})
	}
	return out
}

// cursor is where the extent before ended.
type cursor struct{ file, device int64 }

func columns(at *cursor, extents []layout.Extent) *wirepb.Grant {
	m := &wirepb.Grant{
		FileGaps: make([]int64, len(extents)), Lens: make([]uint64, len(extents)),
		DeviceGaps: make([]int64, len(extents)), States: make([]byte, len(extents)),
	}
	for i, e := range extents {
		m.FileGaps[i], m.Lens[i] = e.FileOff-at.file, uint64(e.Len)
		m.DeviceGaps[i], m.States[i] = e.DevOff-at.device, byte(e.State)
		*at = cursor{e.End(), e.DevOff + e.Len}
	}
	return m
}

// assembler makes grants of their parts.
type assembler struct {
	holder uint32
	number uint64
	next   uint32 // part; 0: none is under way
	at     cursor
	g      protocol.Grant
}

// add takes a part; done is true when it was the last.
func (a *assembler) add(number uint64, m *wirepb.Grant) (done bool, err error) {
	if m.GetPart() == 0 {
		if err := a.begin(number, m); err != nil {
			return false, err
		}
	}
	if m.GetPart() != a.next || m.GetHolder() != a.holder || number != a.number {
		return false, fmt.Errorf("%w: part %d of grant %d out of order", errMalformed, m.GetPart(), number)
	}
	if err := a.extents(m); err != nil {
		return false, err
	}
	if a.next++; !m.GetMore() {
		a.next = 0
	}
	return !m.GetMore(), nil
}

func (a *assembler) begin(number uint64, m *wirepb.Grant) error {
	r, err := rangeIn(m.GetRange())
	if err != nil {
		return err
	}
	if m.GetSize() < 0 || m.GetSize() > layout.MaxSize {
		return fmt.Errorf("%w: size %d", errMalformed, m.GetSize())
	}
	*a = assembler{holder: m.GetHolder(), number: number, at: cursor{file: r.Off}, g: protocol.Grant{
		Call:       protocol.Call{Image: protocol.ImageID(m.GetImage()), Epoch: m.GetEpoch()},
		Generation: m.GetGeneration(), Size: m.GetSize(), Range: r, Ends: m.GetEnds(), Free: m.GetFree(),
	}}
	return nil
}

func (a *assembler) extents(m *wirepb.Grant) error {
	n := len(m.GetLens())
	switch {
	case len(m.GetFileGaps()) != n || len(m.GetDeviceGaps()) != n || len(m.GetStates()) != n:
		return fmt.Errorf("%w: columns of unequal length", errMalformed)
	case n > maxPart || len(a.g.Extents)+n > maxExtents:
		return fmt.Errorf("%w: %d extents after %d", errMalformed, n, len(a.g.Extents))
	case m.GetMore() && n == 0:
		return fmt.Errorf("%w: an empty part", errMalformed)
	}
	for i := range n {
		e := layout.Extent{FileOff: a.at.file + m.GetFileGaps()[i], DevOff: a.at.device + m.GetDeviceGaps()[i],
			Len: int64(min(m.GetLens()[i], math.MaxInt64)), State: layout.State(m.GetStates()[i])}
		if err := a.check(e); err != nil {
			return err
		}
		a.at = cursor{e.End(), e.DevOff + e.Len}
		a.g.Extents = append(a.g.Extents, e)
	}
	return nil
}

// check refuses an extent that is out of order or bounds; additions after it cannot overflow.
func (a *assembler) check(e layout.Extent) error {
	bounded := e.FileOff >= 0 && e.FileOff <= layout.MaxSize && e.DevOff >= 0 && e.DevOff <= layout.MaxSize && e.Len <= layout.MaxSize
	if !bounded || e.Len <= 0 || e.State > layout.Written || e.FileOff < a.at.file || e.End() > a.g.Range.End() {
		return fmt.Errorf("%w: extent %v in [%d,%d)", errMalformed, e, a.g.Range.Off, a.g.Range.End())
	}
	return nil
}

func rangeOut(r layout.Range) *wirepb.Range { return &wirepb.Range{Off: r.Off, Len: r.Len} }

func rangeIn(m *wirepb.Range) (layout.Range, error) {
	r := layout.Range{Off: m.GetOff(), Len: m.GetLen()}
	if r.Off < 0 || r.Len < 0 || r.Off > layout.MaxSize || r.Len > layout.MaxSize {
		return r, fmt.Errorf("%w: range of %d at %d", errMalformed, r.Len, r.Off)
	}
	return r, nil
}

func recallOut(number uint64, holder uint32, r protocol.Recall, patience time.Duration) *wirepb.ToNode {
	m := &wirepb.Recall{Holder: holder, Image: uint64(r.Image), Epoch: r.Epoch, Number: r.Number, Range: rangeOut(r.Range)}
	if patience > 0 {
		m.PatienceMs = max(1, patience.Milliseconds())
	}
	return &wirepb.ToNode{Number: number, Body: &wirepb.ToNode_Recall{Recall: m}}
}

func recallIn(m *wirepb.Recall) (r protocol.Recall, patience time.Duration, err error) {
	r = protocol.Recall{Call: protocol.Call{Image: protocol.ImageID(m.GetImage()), Epoch: m.GetEpoch()}, Number: m.GetNumber()}
	if r.Range, err = rangeIn(m.GetRange()); err != nil {
		return r, 0, err
	}
	if m.GetPatienceMs() < 0 || m.GetPatienceMs() > int64(24*time.Hour/time.Millisecond) {
		return r, 0, fmt.Errorf("%w: patience of %d ms", errMalformed, m.GetPatienceMs())
	}
	return r, time.Duration(m.GetPatienceMs()) * time.Millisecond, nil
}

func callOut(c protocol.Call) *wirepb.Call {
	return &wirepb.Call{Image: uint64(c.Image), Epoch: c.Epoch, Retry: c.Retry}
}

func callIn(m *wirepb.Call) protocol.Call {
	return protocol.Call{Image: protocol.ImageID(m.GetImage()), Epoch: m.GetEpoch(), Retry: m.GetRetry()}
}

func metaOut(m protocol.Meta) *wirepb.Meta {
	return &wirepb.Meta{Key: m.Key[:], Epoch: m.Epoch, Image: uint64(m.Image), Retry: m.Retry}
}

func metaIn(m *wirepb.Meta) (protocol.Meta, error) {
	out := protocol.Meta{Epoch: m.GetEpoch(), Image: protocol.ImageID(m.GetImage()), Retry: m.GetRetry()}
	if copy(out.Key[:], m.GetKey()) != len(out.Key) || len(m.GetKey()) != len(out.Key) {
		return out, fmt.Errorf("%w: a key of %d bytes", errMalformed, len(m.GetKey()))
	}
	return out, nil
}

func statOut(s protocol.Stat) *wirepb.ImageStat {
	return &wirepb.ImageStat{Path: []byte(s.Path), Id: uint64(s.ID), Size: s.Size, Used: s.Used, ModTime: s.ModTime,
		Opens: int64(s.Opens), Extents: int64(s.Extents)}
}

func statIn(m *wirepb.ImageStat) protocol.Stat {
	return protocol.Stat{Path: string(m.GetPath()), ID: protocol.ImageID(m.GetId()), Size: m.GetSize(), Used: m.GetUsed(),
		ModTime: m.GetModTime(), Opens: int(m.GetOpens()), Extents: int(m.GetExtents())}
}
