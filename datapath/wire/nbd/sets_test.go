package nbd_test

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lunar/datapath/layout"
	"lunar/datapath/layout/protocol"
	"lunar/datapath/wire/nbd"
)

func nodeName(incarnation, set uint64) nbd.Name {
	return nbd.Name{Volume: "v", Image: 0xab, Node: "n.example.org", Epoch: 3, Incarnation: incarnation, Set: set}
}

func TestNames(t *testing.T) {
	for _, n := range []nbd.Name{{Volume: "v", Image: 0xab}, nodeName(1, 1<<63)} {
		if got, err := nbd.ParseName(n.String()); err != nil || got != n {
			t.Errorf("%v: got %+v, %v", n, got, err)
		}
	}
	for _, s := range []string{"", "v", "/1", "v/", "v/xyz", "v/1@", "v/1@1", "v/1@1#n", "v/1@1#n.1", "v/1@1#.1.1", "v/1@x#n.1.1", "v/1@1#n.1.-1", strings.Repeat("v", 5000) + "/1"} {
		if n, err := nbd.ParseName(s); !errors.Is(err, unix.EINVAL) {
			t.Errorf("%.20q: %+v, %v", s, n, err)
		}
	}
}

// TestYoungerSet has a write under way on one set when another one comes: the server cancels it, and only then the
// younger set begins. The write ends with ESHUTDOWN, or with its connection, whose end may overtake the answer.
func TestYoungerSet(t *testing.T) {
	for name, younger := range map[string]nbd.Name{"set": nodeName(1, 2), "incarnation": nodeName(7, 1)} {
		t.Run(name, func(t *testing.T) {
			m := newMemory(1 << 20)
			s := serve(t, nbd.Options{Open: always(m)})
			entered, release := m.hold("write")
			defer release()
			old := dial(t, nbd.ClientOptions{Address: s.addr, Export: nbd.Plain(nodeName(1, 1).String())})
			failed := make(chan error, 1)
			go func() { failed <- old.Write(ctx, pattern(512, 1), 0, false) }()
			<-entered
			young := dial(t, nbd.ClientOptions{Address: s.addr, Export: nbd.Plain(younger.String())})
			if err := young.Read(ctx, make([]byte, 512), 0); err != nil {
				t.Fatal(err)
			}
			if m.running.Load() != 0 {
				t.Error("the old write still runs")
			}
			if err := <-failed; !errors.Is(err, protocol.ErrStale) && !errors.Is(err, protocol.ErrUnreachable) {
				t.Error("the old write:", err)
			}
			if name == "incarnation" {
				return // Open would refuse the old one
			}
			if err := old.Read(ctx, make([]byte, 512), 0); err == nil {
				err = old.Read(ctx, make([]byte, 512), 0)
				t.Error("the old set came back:", err)
			} else if err := old.Read(ctx, make([]byte, 512), 0); !errors.Is(err, protocol.ErrStale) {
				t.Error("the old set again:", err)
			}
		})
	}
}

func TestOneSetBesideOthers(t *testing.T) {
	m := newMemory(1 << 20)
	s := serve(t, nbd.Options{Open: always(m)})
	_, release := m.hold("write")
	names := []string{nodeName(1, 1).String(), nodeName(1, 1).String(), "v/ab", "v/ab",
		nbd.Name{Volume: "v", Image: 0xac, Node: "n.example.org", Epoch: 3, Incarnation: 1, Set: 2}.String(),
		nbd.Name{Volume: "v", Image: 0xab, Node: "other", Epoch: 3, Incarnation: 1, Set: 2}.String()}
	failed := make(chan error, len(names))
	for _, n := range names {
		c := dial(t, nbd.ClientOptions{Address: s.addr, Export: nbd.Plain(n), Connections: 1})
		go func() { failed <- c.Write(ctx, pattern(512, 1), 0, false) }()
	}
	eventually(t, "all run", func() bool { return int(m.running.Load()) == len(names) })
	release()
	for range names {
		if err := <-failed; err != nil {
			t.Error(err)
		}
	}
}

// TestEndOfANode: as with a younger set, the connection's end may overtake the answer.
func TestEndOfANode(t *testing.T) {
	m := newMemory(1 << 20)
	s := serve(t, nbd.Options{Open: always(m)})
	entered, release := m.hold("write")
	defer release()
	c := dial(t, nbd.ClientOptions{Address: s.addr, Export: nbd.Plain(nodeName(1, 1).String())})
	failed := make(chan error, 1)
	go func() { failed <- c.Write(ctx, pattern(512, 1), 0, false) }()
	<-entered
	if err := s.End(ctx, "v", "n.example.org"); err != nil || m.running.Load() != 0 {
		t.Error(err, m.running.Load())
	}
	if err := <-failed; !errors.Is(err, protocol.ErrStale) && !errors.Is(err, protocol.ErrUnreachable) {
		t.Error(err)
	}
}

func TestCertificates(t *testing.T) {
	keys := newPKI(t)
	m := newMemory(1 << 20)
	s := serve(t, nbd.Options{Open: always(m), TLS: keys.config("server"), RequireTLS: true})
	name := nbd.Name{Volume: "v", Image: 1, Node: "node1", Epoch: 1, Incarnation: 1, Set: 1}
	strange := newPKI(t).config("node1")
	strange.RootCAs = keys.config("node1").RootCAs
	for who, x := range map[string]struct {
		o    nbd.ClientOptions
		want error
	}{
		"its own":      {nbd.ClientOptions{TLS: keys.config("node1")}, nil},
		"another's":    {nbd.ClientOptions{TLS: keys.config("client")}, unix.EACCES},
		"none":         {nbd.ClientOptions{}, unix.EACCES},
		"another CA's": {nbd.ClientOptions{TLS: strange}, protocol.ErrUnreachable},
	} {
		x.o.Address, x.o.Export = s.addr, nbd.Plain(name.String())
		if _, _, err := dial(t, x.o).Connect(ctx); !errors.Is(err, x.want) || x.want == nil && err != nil {
			t.Errorf("certificate %s: got %v, want %v", who, err, x.want)
		}
	}
}

func TestStop(t *testing.T) {
	for name, patient := range map[string]bool{"in time": true, "out of time": false} {
		t.Run(name, func(t *testing.T) {
			m := newMemory(1 << 20)
			s := serve(t, nbd.Options{Open: always(m)})
			entered, release := m.hold("write")
			defer release()
			c := dial(t, nbd.ClientOptions{Address: s.addr})
			failed := make(chan error, 1)
			go func() { failed <- c.Write(ctx, pattern(512, 1), 0, false) }()
			<-entered
			limit, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
			defer cancel()
			if patient {
				time.AfterFunc(10*time.Millisecond, release)
			}
			err := s.Stop(limit)
			if got := <-failed; (err == nil) != patient || (got == nil) != patient {
				t.Error("Stop:", err, "write:", got)
			}
			if m.closed.Load() != 2 || s.Connections() != 0 {
				t.Error("left:", m.closed.Load(), s.Connections())
			}
			if err := c.Flush(ctx); !errors.Is(err, protocol.ErrUnreachable) {
				t.Error("after Stop:", err)
			}
		})
	}
}

func TestDataPath(t *testing.T) {
	m := newMemory(1 << 20)
	opened := make(chan string, 100)
	s := serve(t, nbd.Options{Open: func(_ context.Context, name string, _ nbd.Peer) (nbd.Export, error) { opened <- name; return m, nil }})
	d, err := nbd.NewDataPath(nbd.DataPathOptions{Address: s.addr, Volume: "v", Node: "n", Incarnation: 4, Connections: 1, Idle: 30 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	call := protocol.Call{Image: 0x1f, Epoch: 2}
	want, got := pattern(8192, 1), make([]byte, 8192)
	again := call
	again.Retry = true
	for _, err := range []error{d.Write(ctx, call, want, 4096, true), d.Read(ctx, again, got, 4096), d.Flush(ctx, call),
		d.Unmap(ctx, call, []layout.Range{{Off: 0, Len: 512}, {Off: 1024, Len: 512}})} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(got, want) {
		t.Error("another content")
	}
	name, err := nbd.ParseName(<-opened)
	if err != nil || name.Image != 0x1f || name.Epoch != 2 || name.Node != "n" || name.Incarnation != 4 || name.Set == 0 || len(opened) != 0 {
		t.Errorf("%+v, %v, %d more", name, err, len(opened))
	}
	eventually(t, "idle connections are closed", func() bool { return m.closed.Load() == 1 })
	if err := d.Flush(ctx, call); err != nil {
		t.Error("after the idle time:", err)
	}
	next, _ := nbd.ParseName(<-opened)
	if next.Set <= name.Set {
		t.Errorf("set %d after %d", next.Set, name.Set)
	}
	d.Detach(call)
	eventually(t, "detached", func() bool { return m.closed.Load() == 2 })
	entered, release := m.hold("flush")
	defer release()
	failed := make(chan error, 1)
	go func() { failed <- d.Flush(ctx, call) }()
	<-entered
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	if err := <-failed; !errors.Is(err, nbd.ErrClosed) {
		t.Error("a call under way at Close:", err)
	}
	if err := d.Flush(ctx, call); !errors.Is(err, nbd.ErrClosed) {
		t.Error("after Close:", err)
	}
}
