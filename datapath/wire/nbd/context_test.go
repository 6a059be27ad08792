package nbd_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"lunar/datapath/wire/nbd"
)

// marked is an export with bitmaps: in each the ranges have changed that it names.
type marked struct {
	*memory
	bitmaps map[string][][2]int64 // off, len; in order
	names   []string
}

func (m *marked) Bitmaps() []string { return m.names }

func (m *marked) Marks(ctx context.Context, bitmap string, off, n int64, each func(nbd.Mark) bool) error {
	if err := m.begin(ctx, "marks"); err != nil {
		return err
	}
	ranges, ok := m.bitmaps[bitmap]
	if !ok {
		return fmt.Errorf("bitmap %s: %w", bitmap, unix.ENOENT)
	}
	for end, at := off+n, off; at < end; {
		k := nbd.Mark{Len: end - at}
		for _, r := range ranges {
			if at < r[0] {
				k.Len = min(k.Len, r[0]-at)
				break
			}
			if at < r[0]+r[1] {
				k = nbd.Mark{Len: min(k.Len, r[0]+r[1]-at), Marked: true}
				break
			}
		}
		if !each(k) {
			return nil
		}
		at += k.Len
	}
	return nil
}

func newMarked() *marked {
	m := &marked{memory: newMemory(8 << 20), names: []string{"monday", "tuesday"},
		bitmaps: map[string][][2]int64{"monday": {{1 << 20, 64 << 10}, {4 << 20, 1 << 20}}, "tuesday": nil}}
	copy(m.data[1<<20:], pattern(1<<20, 9))
	return m
}

func (m *marked) open(context.Context, string, nbd.Peer) (nbd.Export, error) { return m, nil }

// TestBitmapsWithToolsOfOthers has libnbd's and QEMU's tools read bitmaps.
func TestBitmapsWithToolsOfOthers(t *testing.T) {
	m := newMarked()
	s := serve(t, nbd.Options{Open: m.open})
	uri := libnbdURI(s.addr, "v/1", nil)
	var info struct {
		Exports []struct{ Contexts []string }
	}
	if err := json.Unmarshal([]byte(tool(t, "nbdinfo", "--json", uri)), &info); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(info.Exports[0].Contexts, " "); got != "base:allocation qemu:dirty-bitmap:monday qemu:dirty-bitmap:tuesday" {
		t.Errorf("contexts: %s", got)
	}
	if got := strings.Fields(tool(t, "nbdinfo", "--map=qemu:dirty-bitmap:monday", uri)); strings.Join(got, " ") !=
		"0 1048576 0 clean 1048576 65536 1 dirty 1114112 3080192 0 clean 4194304 1048576 1 dirty 5242880 3145728 0 clean" {
		t.Errorf("nbdinfo --map: %q", got)
	}
	host, port, _ := net.SplitHostPort(s.addr)
	image := fmt.Sprintf("driver=nbd,server.type=inet,server.host=%s,server.port=%s,export=v/1,x-dirty-bitmap=qemu:dirty-bitmap:monday", host, port)
	var extents []struct {
		Start, Length int64
		Data          bool
	}
	if err := json.Unmarshal([]byte(tool(t, "qemu-img", "map", "--output=json", "--image-opts", image)), &extents); err != nil {
		t.Fatal(err)
	}
	var dirty [][2]int64 // QEMU shows what is dirty as no data
	for _, e := range extents {
		if !e.Data {
			dirty = append(dirty, [2]int64{e.Start, e.Length})
		}
	}
	if fmt.Sprint(dirty) != fmt.Sprint(m.bitmaps["monday"]) {
		t.Errorf("qemu-img map: %v", dirty)
	}
}

// meta asks SET_META_CONTEXT (10) or LIST_META_CONTEXT (9), and returns the names by ID, in order.
func (r *raw) meta(kind uint32, export string, queries ...string) (ids []uint32, names []string) {
	r.t.Helper()
	n := 4 + len(export) + 4
	for _, q := range queries {
		n += 4 + len(q)
	}
	r.say(option, kind, uint32(n), uint32(len(export)), export, uint32(len(queries)))
	for _, q := range queries {
		r.say(uint32(len(q)), q)
	}
	for {
		k, data := r.reply()
		switch k {
		case 1:
			return ids, names
		case 4:
			ids, names = append(ids, be.Uint32(data)), append(names, string(data[4:]))
		default:
			r.t.Fatalf("reply %#x: %s", k, data)
		}
	}
}

// goes ends the haggling with GO.
func (r *raw) goes(export string) {
	r.t.Helper()
	r.say(option, uint32(7), uint32(6+len(export)), uint32(len(export)), export, uint16(0))
	for {
		switch k, data := r.reply(); k {
		case 1:
			return
		case 3:
		default:
			r.t.Fatalf("GO: %#x: %s", k, data)
		}
	}
}

// status asks BLOCK_STATUS, and returns for each chunk its flags and payload in 32-bit words.
func (r *raw) status(flags uint16, off uint64, n uint32) (out []string) {
	r.t.Helper()
	r.say(request, flags, uint16(7), uint64(5), off, n)
	for {
		h := r.hear(20)
		if be.Uint32(h) != 0x668e33ef || be.Uint64(h[8:]) != 5 {
			r.t.Fatalf("a chunk begins %x", h)
		}
		p := r.hear(int(be.Uint32(h[16:])))
		if be.Uint16(h[6:]) != 5 {
			return append(out, fmt.Sprintf("error %d", be.Uint32(p)))
		}
		line := fmt.Sprintf("flags %d context %d", be.Uint16(h[4:]), be.Uint32(p))
		for p = p[4:]; len(p) > 0; p = p[8:] {
			line += fmt.Sprintf(", %d is %d", be.Uint32(p), be.Uint32(p[4:]))
		}
		if out = append(out, line); be.Uint16(h[4:])&1 != 0 {
			return out
		}
	}
}

func TestSeveralContexts(t *testing.T) {
	m := newMarked()
	s := serve(t, nbd.Options{Open: m.open})
	r := dialRaw(t, s.addr).greet()
	r.say(option, uint32(8), uint32(0)) // structured replies
	r.reply()
	for _, c := range []struct {
		kind    uint32
		queries []string
		want    string
	}{
		{9, nil, "base:allocation qemu:dirty-bitmap:monday qemu:dirty-bitmap:tuesday"},
		{9, []string{"qemu:"}, "qemu:dirty-bitmap:monday qemu:dirty-bitmap:tuesday"},
		{9, []string{"qemu:dirty-bitmap:"}, "qemu:dirty-bitmap:monday qemu:dirty-bitmap:tuesday"},
		{9, []string{"base:"}, "base:allocation"},
		{9, []string{"qemu:dirty-bitmap:sunday", "x:y"}, ""},
		{10, nil, ""},
		{10, []string{"qemu:"}, ""},
		{10, []string{"qemu:dirty-bitmap:monday", "base:allocation", "qemu:dirty-bitmap:sunday"}, "base:allocation qemu:dirty-bitmap:monday"},
	} {
		if _, names := r.meta(c.kind, "disk", c.queries...); strings.Join(names, " ") != c.want {
			t.Errorf("option %d, %q: %q, want %q", c.kind, c.queries, names, c.want)
		}
	}
	r.goes("disk")
	for _, c := range []struct {
		flags uint16
		off   uint64
		n     uint32
		want  string
	}{
		{0, 0, 2 << 20, "flags 0 context 1, 1048576 is 3, 1048576 is 0; flags 1 context 2, 1048576 is 0, 65536 is 1, 983040 is 0"},
		{8, 1 << 20, 2 << 20, "flags 0 context 1, 1048576 is 0; flags 1 context 2, 65536 is 1"},
		{0, 0, 0, "error 22"},
	} {
		if got := strings.Join(r.status(c.flags, c.off, c.n), "; "); got != c.want {
			t.Errorf("status of %d at %d: %s, want %s", c.n, c.off, got, c.want)
		}
	}
	broken := error(unix.EIO)
	m.fail.Store(&broken)
	if got := strings.Join(r.status(0, 0, 4096), "; "); got != "error 5" {
		t.Error(got)
	}
}

// TestContextsAreOfOneExport has a client choose them for another export than it takes.
func TestContextsAreOfOneExport(t *testing.T) {
	s := serve(t, nbd.Options{Open: newMarked().open})
	r := dialRaw(t, s.addr).greet()
	r.say(option, uint32(8), uint32(0))
	r.reply()
	r.meta(10, "disk", "qemu:dirty-bitmap:monday")
	r.goes("other")
	if got := r.status(0, 0, 4096); got[0] != "error 22" {
		t.Error(got)
	}
}
