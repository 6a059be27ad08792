package wire

import (
	"errors"
	"math/rand/v2"
	"reflect"
	"testing"

	"google.golang.org/protobuf/proto"

	"lunar/datapath/layout"
	"lunar/datapath/layout/protocol"
	"lunar/datapath/wire/wirepb"
)

// assemble is the grant that messages carry, after the wire.
func assemble(t testing.TB, messages []*wirepb.ToNode) (g protocol.Grant, holder uint32) {
	t.Helper()
	var a assembler
	for i, m := range messages {
		b, err := proto.Marshal(m)
		if err != nil || len(b) > 1<<20 {
			t.Fatal(len(b), err)
		}
		var back wirepb.ToNode
		if err := proto.Unmarshal(b, &back); err != nil {
			t.Fatal(err)
		}
		done, err := a.add(back.GetNumber(), back.GetGrant())
		if err != nil || done != (i == len(messages)-1) {
			t.Fatal(i, done, err)
		}
	}
	return a.g, a.holder
}

func TestGrantsOverTheWire(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	for _, n := range []int{0, 1, maxPart, maxPart + 1, 3*maxPart + 7} {
		g := protocol.Grant{Call: protocol.Call{Image: 1 << 63, Epoch: 2}, Generation: 3, Size: layout.MaxSize, Ends: 5, Free: -1,
			Range: layout.Range{Off: 4096, Len: layout.MaxSize - 4096}}
		at := g.Range.Off
		for range n {
			at += rng.Int64N(1 << 40)
			e := layout.Extent{FileOff: at, DevOff: rng.Int64N(layout.MaxSize), Len: 1 + rng.Int64N(1<<40), State: layout.State(rng.IntN(5))}
			at = e.End()
			g.Extents = append(g.Extents, e)
		}
		back, holder := assemble(t, parts(9, 7, g))
		if !reflect.DeepEqual(back, g) || holder != 7 {
			t.Fatalf("%d extents came as %d", n, len(back.Extents))
		}
	}
}

// TestWorstPartIsBounded has the longest numbers that there are.
func TestWorstPartIsBounded(t *testing.T) {
	m := &wirepb.Grant{States: make([]byte, maxPart)}
	for range maxPart {
		m.FileGaps, m.DeviceGaps, m.Lens = append(m.FileGaps, -1<<63), append(m.DeviceGaps, -1<<63), append(m.Lens, 1<<64-1)
	}
	if n := proto.Size(m); n > 1<<20 {
		t.Fatal(n)
	}
}

func TestMalformedGrants(t *testing.T) {
	whole := &wirepb.Range{Len: 8192}
	one := func(change func(m *wirepb.Grant)) *wirepb.Grant {
		m := &wirepb.Grant{Size: 8192, Range: whole, FileGaps: []int64{0}, Lens: []uint64{4096}, DeviceGaps: []int64{512}, States: []byte{4}}
		change(m)
		return m
	}
	for name, m := range map[string]*wirepb.Grant{
		"nothing but a later part": {Part: 1},
		"negative size":            one(func(m *wirepb.Grant) { m.Size = -1 }),
		"negative range":           one(func(m *wirepb.Grant) { m.Range = &wirepb.Range{Off: -1} }),
		"unequal columns":          one(func(m *wirepb.Grant) { m.Lens = append(m.Lens, 1) }),
		"unknown state":            one(func(m *wirepb.Grant) { m.States[0] = 5 }),
		"before its range":         one(func(m *wirepb.Grant) { m.FileGaps[0] = -4096 }),
		"behind its range":         one(func(m *wirepb.Grant) { m.FileGaps[0] = 4097 }),
		"empty extent":             one(func(m *wirepb.Grant) { m.Lens[0] = 0 }),
		"endless extent":           one(func(m *wirepb.Grant) { m.Lens[0] = 1 << 63 }),
		"before the device":        one(func(m *wirepb.Grant) { m.DeviceGaps[0] = -1 }),
		"empty part":               {Size: 8192, Range: whole, More: true},
	} {
		if _, err := new(assembler).add(1, m); !errors.Is(err, errMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	var a assembler
	if _, err := a.add(1, one(func(m *wirepb.Grant) { m.More = true })); err != nil {
		t.Fatal(err)
	}
	if _, err := a.add(2, one(func(m *wirepb.Grant) { m.Part = 1 })); !errors.Is(err, errMalformed) {
		t.Error("a part of another grant was taken", err)
	}
}

// FuzzToNode decodes what a coordinator may send: no input ends the process, and each grant that is taken
// makes sense, and is the same after another trip.
func FuzzToNode(f *testing.F) {
	g := protocol.Grant{Call: protocol.Call{Image: 1, Epoch: 2}, Generation: 3, Size: 8192, Range: layout.Range{Len: 8192}, Ends: 4, Free: 5,
		Extents: []layout.Extent{{DevOff: 4096, Len: 4096, State: layout.Written}, {FileOff: 4096, Len: 4096, State: layout.Hole}}}
	for _, m := range []*wirepb.ToNode{parts(1, 1, g)[0], recallOut(2, 1, protocol.Recall{Number: 1, Range: g.Range}, 5), {}} {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var m wirepb.ToNode
		if proto.Unmarshal(b, &m) != nil {
			return
		}
		if r := m.GetRecall(); r != nil {
			_, _, _ = recallIn(r)
		}
		if m.GetGrant() == nil {
			return
		}
		var a assembler
		if done, err := a.add(m.GetNumber(), m.GetGrant()); err != nil || !done {
			return
		}
		if _, err := layout.Tile(a.g.Range, a.g.Extents); err != nil {
			t.Fatal(err)
		}
		if back, _ := assemble(t, parts(1, 1, a.g)); !reflect.DeepEqual(back, a.g) {
			t.Fatalf("%+v came back as %+v", a.g, back)
		}
	})
}

// FuzzFailure decodes what a peer may say of an error.
func FuzzFailure(f *testing.F) {
	b, err := proto.Marshal(newTable(nil).encode(protocol.ErrStale))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		var m wirepb.Failure
		if proto.Unmarshal(b, &m) != nil {
			return
		}
		tab := newTable(nil)
		err := tab.decode(&m)
		again := tab.decode(tab.encode(err))
		if errors.Is(err, protocol.ErrStale) != errors.Is(again, protocol.ErrStale) {
			t.Fatal(err, again)
		}
	})
}
