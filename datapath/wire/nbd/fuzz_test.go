package nbd

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// seeds are what real programs said, recorded by TestRecord: one file per session and side.
func seeds(f *testing.F, side string) {
	files, err := filepath.Glob("testdata/sessions/*." + side)
	if err != nil || len(files) == 0 {
		f.Fatal("no recorded sessions: ", err)
	}
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
}

// zeroExport is an export without content.
type zeroExport struct{}

func (zeroExport) Size() int64                                                  { return 8 << 20 }
func (zeroExport) Info() Info                                                   { return Info{Block: 512} }
func (zeroExport) Read(_ context.Context, p []byte, _ int64) error              { clear(p); return nil }
func (zeroExport) Write(context.Context, []byte, int64, bool) error             { return nil }
func (zeroExport) Flush(context.Context) error                                  { return nil }
func (zeroExport) Trim(context.Context, int64, int64) error                     { return nil }
func (zeroExport) WriteZeroes(context.Context, int64, int64, ZeroOptions) error { return nil }
func (zeroExport) Close() error                                                 { return nil }
func (zeroExport) Bitmaps() []string                                            { return []string{"monday"} }
func (zeroExport) Marks(_ context.Context, _ string, _, n int64, each func(Mark) bool) error {
	each(Mark{Len: n, Marked: true})
	return nil
}
func (zeroExport) Status(_ context.Context, _, n int64, each func(Extent) bool) error {
	each(Extent{Len: n, Hole: true, Zero: true})
	return nil
}

// line is a connection that says what was put into it, and takes everything.
type line struct{ io.Reader }

func (l line) Write(p []byte) (int, error)        { return len(p), nil }
func (l line) Close() error                       { return nil }
func (l line) LocalAddr() net.Addr                { return &net.TCPAddr{} }
func (l line) RemoteAddr() net.Addr               { return &net.TCPAddr{} }
func (l line) SetDeadline(time.Time) error        { return nil }
func (l line) SetReadDeadline(time.Time) error    { return nil }
func (l line) SetWriteDeadline(t time.Time) error { return nil }

// FuzzServer lets a client say anything.
func FuzzServer(f *testing.F) {
	seeds(f, "client")
	f.Fuzz(func(t *testing.T, said []byte) {
		s, err := NewServer(Options{Log: slog.New(slog.DiscardHandler),
			Open: func(context.Context, string, Peer) (Export, error) { return zeroExport{}, nil },
			List: func(context.Context, Peer) []string { return []string{"a"} }})
		if err != nil {
			t.Fatal(err)
		}
		c := newServerConn(s, line{bytes.NewReader(said)})
		c.serve()
		if err := s.Stop(context.Background()); err != nil {
			t.Fatal(err)
		}
		if !s.pool.budget.TryAcquire(s.opts.Limits.Memory) {
			t.Fatal("a buffer was lost")
		}
	})
}

// FuzzClient lets a server say anything to a client that has reads and writes under way.
func FuzzClient(f *testing.F) {
	seeds(f, "server")
	f.Fuzz(func(t *testing.T, said []byte) {
		o := ClientOptions{Address: "x", Export: Plain("x"), Window: 8}.withDefaults()
		x := &session{raw: line{bytes.NewReader(said)}}
		if x.handshake(context.Background(), o, "x") != nil {
			return
		}
		set := &connSet{opts: o}
		c := newClientConn(set, x)
		set.conns = append(set.conns, c)
		for i := range 4 {
			k := newCall(request{command: uint16(i % 2), length: 4096, off: uint64(i) << 12}, make([]byte, 4096))
			if !c.enqueue(k) {
				t.Fatal("not taken")
			}
		}
		b := &batch{}
		c.take(b)
		c.wrote(b)
		if err := c.read(); err == nil {
			t.Fatal("the reader ended without an error")
		} else {
			set.fail(err)
		}
		c.settle()
	})
}

// FuzzName takes a name apart and puts it together.
func FuzzName(f *testing.F) {
	f.Add("v/1f")
	f.Add("v/1f@3#node.example.org.4.5")
	f.Fuzz(func(t *testing.T, s string) {
		n, err := ParseName(s)
		if err != nil {
			return
		}
		if again, err := ParseName(n.String()); err != nil || again != n {
			t.Fatalf("%q: %+v, then %+v, %v", s, n, again, err)
		}
	})
}
