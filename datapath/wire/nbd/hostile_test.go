package nbd_test

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"lunar/datapath/layout/protocol"
	"lunar/datapath/wire/nbd"
)

var be = binary.BigEndian

// raw is a connection on which a test says what it likes.
type raw struct {
	net.Conn
	t testing.TB
}

func dialRaw(t testing.TB, addr string) *raw {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(5 * time.Second))
	return &raw{c, t}
}

func (r *raw) say(parts ...any) {
	for _, p := range parts {
		if s, ok := p.(string); ok {
			p = []byte(s)
		}
		binary.Write(r, be, p)
	}
}

func (r *raw) hear(n int) []byte {
	r.t.Helper()
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		r.t.Fatal(err)
	}
	return b
}

// closed waits until the other side hangs up.
func (r *raw) closed() bool {
	_, err := io.Copy(io.Discard, r)
	var late net.Error
	return !errors.As(err, &late) || !late.Timeout()
}

const option, request = uint64(0x49484156454f5054), uint32(0x25609513)

// greet does the handshake up to the options.
func (r *raw) greet() *raw {
	r.hear(18)
	r.say(uint32(3))
	return r
}

// reply reads one option reply.
func (r *raw) reply() (kind uint32, data []byte) {
	r.t.Helper()
	h := r.hear(20)
	return be.Uint32(h[12:]), r.hear(int(be.Uint32(h[16:])))
}

// begin gets to transmission.
func (r *raw) begin() *raw {
	r.greet().say(option, uint32(1), uint32(4), "disk")
	r.hear(10)
	return r
}

func TestHostileClients(t *testing.T) {
	m := newMemory(1 << 20)
	s := serve(t, nbd.Options{Open: always(m), Limits: nbd.Limits{Handshake: time.Second, Stall: 300 * time.Millisecond}})
	for name, do := range map[string]func(r *raw){
		"garbage":              func(r *raw) { r.say(strings.Repeat("GET / HTTP/1.1\r\n", 100)) },
		"silence":              func(r *raw) {},
		"unknown flags":        func(r *raw) { r.hear(18); r.say(uint32(0xffff)) },
		"bad option magic":     func(r *raw) { r.greet().say(uint64(7), uint32(7), uint32(0)) },
		"huge option":          func(r *raw) { r.greet().say(option, uint32(7), uint32(0xffffffff)) },
		"half an option":       func(r *raw) { r.greet().say(option, uint32(7), uint32(1000), "abc") },
		"bad request magic":    func(r *raw) { r.begin().say(uint32(1), make([]byte, 24)) },
		"huge write":           func(r *raw) { r.begin().say(request, uint32(1), uint64(1), uint64(0), uint32(0xfffffff0)) },
		"write without data":   func(r *raw) { r.begin().say(request, uint32(1), uint64(1), uint64(0), uint32(65536), "abc") },
		"a structured request": func(r *raw) { r.begin().say(uint32(0x668e33ef), make([]byte, 28)) },
	} {
		t.Run(name, func(t *testing.T) {
			r := dialRaw(t, s.addr)
			do(r)
			if !r.closed() {
				t.Error("the connection is still there")
			}
		})
	}
	if err := dial(t, nbd.ClientOptions{Address: s.addr}).Read(ctx, make([]byte, 512), 0); err != nil {
		t.Error("after that:", err)
	}
}

func TestOddOptions(t *testing.T) {
	s := serve(t, nbd.Options{Open: func(_ context.Context, name string, _ nbd.Peer) (nbd.Export, error) {
		if name != "disk" {
			return nil, protocol.ErrStale
		}
		return newMemory(4096), nil
	}})
	const bad, unsup, policy, stale, big = 0x80000003, 0x80000001, 0x80000002, 0x80000007, 0x80000009
	r := dialRaw(t, s.addr).greet()
	for name, x := range map[string]struct {
		kind uint32
		data string
		want uint32
	}{
		"unknown":                {99, "xyz", unsup},
		"list not allowed":       {3, "", policy},
		"no TLS here":            {5, "", policy},
		"TLS with data":          {5, "x", bad},
		"structured with data":   {8, "x", bad},
		"go, short":              {7, "\x00", bad},
		"go, name too long":      {7, "\x00\x00\xff\xff", bad},
		"go, odd infos":          {7, "\x00\x00\x00\x04disk\x00\x05\x00", bad},
		"go, no UTF-8":           {7, "\x00\x00\x00\x02\xff\xfe\x00\x00", bad},
		"go, elsewhere":          {7, "\x00\x00\x00\x03abc\x00\x00", stale},
		"meta before structured": {10, "\x00\x00\x00\x04disk\x00\x00\x00\x00", bad},
		"too much":               {7, strings.Repeat("x", 70000), big},
	} {
		r.say(option, x.kind, uint32(len(x.data)), x.data)
		if got, why := r.reply(); got != x.want {
			t.Errorf("%s: reply %#x %q, want %#x", name, got, why, x.want)
		}
	}
	r.say(option, uint32(2), uint32(0))
	if got, _ := r.reply(); got != 1 || !r.closed() {
		t.Error("ABORT:", got)
	}
}

// TestOddRequests sends what no client may send; each has its error, and the connection goes on.
func TestOddRequests(t *testing.T) {
	m := newMemory(1 << 20)
	m.info.Block = 512
	s := serve(t, nbd.Options{Open: always(m)})
	r := dialRaw(t, s.addr).begin()
	for name, x := range map[string]struct {
		flags, command uint16
		off            uint64
		length, want   uint32
	}{
		"unknown command":     {0, 77, 0, 0, 22},
		"unknown flag":        {1 << 9, 0, 0, 512, 22},
		"flag of another":     {1 << 1, 0, 0, 512, 22},
		"DF in the clear way": {1 << 2, 0, 0, 512, 22},
		"read beyond":         {0, 0, 1 << 20, 512, 22},
		"read far beyond":     {0, 0, 1<<64 - 512, 1024, 22},
		"read too much":       {0, 0, 0, 64 << 20, 75},
		"odd read":            {0, 0, 1, 512, 22},
		"trim beyond":         {0, 4, 1 << 20, 512, 22},
		"zero beyond":         {0, 6, 1 << 20, 512, 28},
		"status without":      {0, 7, 0, 512, 22},
		"fast without a hole": {1<<1 | 1<<4, 6, 0, 512, 95},
		"flush":               {0, 3, 0, 0, 0},
		"cache":               {0, 5, 0, 512, 0},
		"trim with FUA":       {1, 4, 0, 512, 0},
		"zero, no hole, slow": {1 << 1, 6, 0, 512, 0},
		"write of nothing":    {0, 1, 0, 0, 0},
		"read of nothing":     {0, 0, 0, 0, 0},
	} {
		r.say(request, x.flags, x.command, uint64(42), x.off, x.length)
		h := r.hear(16)
		if be.Uint32(h) != 0x67446698 || be.Uint32(h[4:]) != x.want || be.Uint64(h[8:]) != 42 {
			t.Errorf("%s: % x, want error %d", name, h, x.want)
		}
	}
	r.say(request, uint16(0), uint16(1), uint64(43), uint64(1<<20), uint32(512), make([]byte, 512))
	if h := r.hear(16); be.Uint32(h[4:]) != 28 {
		t.Error("write beyond:", h)
	}
	r.say(request, uint16(0), uint16(2), uint64(0), uint64(0), uint32(0))
	if !r.closed() {
		t.Error("DISC does not end it")
	}
}

// TestCrowd lets 500 connections do nothing, or nonsense, beside one that works.
func TestCrowd(t *testing.T) {
	m := newMemory(1 << 20)
	s := serve(t, nbd.Options{Open: always(m), Limits: nbd.Limits{Handshakes: 32, Connections: 400, Handshake: 2 * time.Second}})
	good := dial(t, nbd.ClientOptions{Address: s.addr})
	if err := good.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	var wg sync.WaitGroup
	rng := rand.New(rand.NewPCG(1, 1))
	for i := range 500 {
		c, err := net.Dial("tcp", s.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		junk := make([]byte, rng.IntN(2000))
		for j := range junk {
			junk[j] = byte(rng.Uint32())
		}
		if i%2 == 0 {
			wg.Go(func() { c.Write(junk) })
		}
	}
	wg.Wait()
	for range 100 {
		if err := good.Write(ctx, pattern(4096, 1), 0, false); err != nil {
			t.Fatal(err)
		}
	}
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapInuse) - int64(before.HeapInuse); grown > 64<<20 {
		t.Errorf("%d MiB more than before", grown>>20)
	}
	if n := s.Connections(); n > 2+32+32 {
		eventually(t, "most are gone", func() bool { return s.Connections() <= 2+32+32 })
	}
}

// evil is a server that answers as a test says.
func evil(t testing.TB, structured bool, answer func(c *raw, header []byte)) *nbd.Client {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer nc.Close()
				evilServe(&raw{nc, t}, structured, answer)
			})
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	return dial(t, nbd.ClientOptions{Address: l.Addr().String(), Connections: 1, DialTimeout: time.Second, CallTimeout: 2 * time.Second})
}

func evilServe(c *raw, structured bool, answer func(c *raw, header []byte)) {
	c.SetDeadline(time.Now().Add(5 * time.Second))
	c.say("NBDMAGIC", option, uint16(3))
	flags := make([]byte, 4)
	io.ReadFull(c, flags)
	for {
		h := make([]byte, 16)
		if _, err := io.ReadFull(c, h); err != nil {
			return
		}
		io.CopyN(io.Discard, c, int64(be.Uint32(h[12:])))
		kind := be.Uint32(h[8:])
		ok := func(reply uint32, data ...byte) {
			c.say(uint64(0x3e889045565a9), kind, reply, uint32(len(data)), data)
		}
		switch {
		case kind == 8 && !structured:
			ok(0x80000001)
		case kind == 8:
			ok(1)
		default:
			info := be.AppendUint64([]byte{0, 0}, 1<<20)
			ok(3, be.AppendUint16(info, 1|4|8|32|64|128)...)
			ok(1)
			for {
				h := make([]byte, 28)
				if _, err := io.ReadFull(c, h); err != nil {
					return
				}
				if be.Uint16(h[6:]) == 1 {
					io.CopyN(io.Discard, c, int64(be.Uint32(h[24:])))
				}
				answer(c, h)
			}
		}
	}
}

func TestHostileServers(t *testing.T) {
	const simple, structured = uint32(0x67446698), uint32(0x668e33ef)
	var broken atomic.Bool // the connection, by an answer that came twice
	chunk := func(c *raw, h []byte, flags, kind uint16, length uint32) {
		c.say(structured, flags, kind, h[8:16], length)
	}
	for name, x := range map[string]struct {
		structured bool
		answer     func(c *raw, h []byte)
	}{
		"garbage":             {false, func(c *raw, h []byte) { c.say(make([]byte, 64)) }},
		"unknown cookie":      {false, func(c *raw, h []byte) { c.say(simple, uint32(0), uint64(1<<40|9)) }},
		"cookie out of range": {false, func(c *raw, h []byte) { c.say(simple, uint32(0), uint64(0xffff)) }},
		"half an answer":      {false, func(c *raw, h []byte) { c.say(simple, uint32(0), h[8:16], "abc"); c.Close() }},
		"twice": {false, func(c *raw, h []byte) {
			c.say(simple, uint32(5), h[8:16], simple, uint32(5), h[8:16])
			broken.Store(c.closed())
		}},
		"simple read":       {true, func(c *raw, h []byte) { c.say(simple, uint32(0), h[8:16], make([]byte, 4096)) }},
		"unasked structure": {false, func(c *raw, h []byte) { chunk(c, h, 1, 0, 0) }},
		"chunk too long":    {true, func(c *raw, h []byte) { chunk(c, h, 1, 1, 0xffffffff); c.say(be.Uint64(h[16:])) }},
		"chunk of nothing":  {true, func(c *raw, h []byte) { chunk(c, h, 1, 1, 8); c.say(be.Uint64(h[16:])) }},
		"chunk before":      {true, func(c *raw, h []byte) { chunk(c, h, 1, 1, 520); c.say(be.Uint64(h[16:])-512, make([]byte, 512)) }},
		"too little":        {true, func(c *raw, h []byte) { chunk(c, h, 1, 1, 520); c.say(be.Uint64(h[16:]), make([]byte, 512)) }},
		"nothing":           {true, func(c *raw, h []byte) { chunk(c, h, 1, 0, 0) }},
		"none, not done":    {true, func(c *raw, h []byte) { chunk(c, h, 0, 0, 0) }},
		"overlap": {true, func(c *raw, h []byte) {
			for range 2 {
				chunk(c, h, 0, 2, 12)
				c.say(be.Uint64(h[16:]), uint32(2048))
			}
			chunk(c, h, 1, 0, 0)
		}},
		"hole too long":    {true, func(c *raw, h []byte) { chunk(c, h, 1, 2, 12); c.say(be.Uint64(h[16:]), uint32(1<<20)) }},
		"unknown chunk":    {true, func(c *raw, h []byte) { chunk(c, h, 1, 99, 0) }},
		"error without":    {true, func(c *raw, h []byte) { chunk(c, h, 1, 0x8001, 6); c.say(uint32(0), uint16(0)) }},
		"error too long":   {true, func(c *raw, h []byte) { chunk(c, h, 1, 0x8001, 1<<30) }},
		"message too long": {true, func(c *raw, h []byte) { chunk(c, h, 1, 0x8001, 6); c.say(uint32(5), uint16(100)) }},
		"silence":          {true, func(c *raw, h []byte) {}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := evil(t, x.structured, x.answer)
			p := pattern(4096, 3)
			short, cancel := context.WithTimeout(ctx, 30*time.Second)
			defer cancel()
			err := c.Read(short, p, 8192)
			if name == "twice" {
				eventually(t, "a second answer breaks the connection", broken.Load)
				return
			}
			if !errors.Is(err, protocol.ErrUnreachable) || short.Err() != nil {
				t.Errorf("got %v", err)
			}
		})
	}
}

// TestChunks reads an answer that comes in pieces, in the wrong order, some of them holes.
func TestChunks(t *testing.T) {
	c := evil(t, true, func(c *raw, h []byte) {
		off := be.Uint64(h[16:])
		for _, at := range []uint64{2048, 0, 3072} {
			c.say(uint32(0x668e33ef), uint16(0), uint16(1), h[8:16], uint32(1032), off+at, pattern(1024, byte(at>>10)))
		}
		c.say(uint32(0x668e33ef), uint16(0), uint16(2), h[8:16], uint32(12), off+1024, uint32(1024))
		c.say(uint32(0x668e33ef), uint16(1), uint16(0), h[8:16], uint32(0))
	})
	p := pattern(4096, 99)
	if err := c.Read(ctx, p, 4096); err != nil {
		t.Fatal(err)
	}
	for i, want := range [][]byte{pattern(1024, 0), make([]byte, 1024), pattern(1024, 2), pattern(1024, 3)} {
		if string(p[i*1024:(i+1)*1024]) != string(want) {
			t.Error("part", i)
		}
	}
}
