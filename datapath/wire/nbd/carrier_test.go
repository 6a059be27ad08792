package nbd_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lunar/datapath/layout/protocol"
	"lunar/datapath/wire/nbd"
)

// carrier executes a connection's transfers on goroutines. It does not begin all of them, nor do all that
// it has begun, so that every test takes both ways.
type carrier struct {
	m    *memory
	n    atomic.Int32
	one  sync.Mutex // held while done is called
	done func([]*protocol.Transfer)
}

// Carrier makes memory an nbd.Carrying.
func (m *memory) Carrier(done func([]*protocol.Transfer)) nbd.Carrier {
	if m.blocking {
		return nil
	}
	return &carrier{m: m, done: done}
}

func (c *carrier) Start(batch []*protocol.Transfer) (rest []*protocol.Transfer) {
	var begun []*protocol.Transfer
	rest = batch[:0]
	for _, t := range batch {
		if c.m.before.Load() != nil || c.m.fail.Load() != nil || c.n.Add(1)%5 == 0 {
			rest = append(rest, t)
			continue
		}
		c.m.carried.Add(1)
		c.m.running.Add(1)
		begun = append(begun, t)
	}
	if len(begun) > 0 {
		go c.carry(begun)
	}
	return rest
}

func (c *carrier) carry(all []*protocol.Transfer) {
	if gate := c.m.gate.Load(); gate != nil {
		<-*gate
	}
	for _, t := range all {
		if c.n.Add(1)%7 != 0 {
			c.m.move(t)
			t.Done = true
		}
	}
	c.one.Lock()
	defer c.one.Unlock()
	c.m.running.Add(int32(-len(all)))
	c.done(all)
}

func (m *memory) move(t *protocol.Transfer) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !t.Write {
		copy(t.Buf, m.data[t.Off:])
		return
	}
	copy(m.data[t.Off:], t.Buf)
	if t.FUA {
		m.fua.Add(1)
	}
}

// shut holds back what the Carrier begins from now on.
func (m *memory) shut() (open func()) {
	gate := make(chan struct{})
	m.gate.Store(&gate)
	return sync.OnceFunc(func() { m.gate.Store(nil); close(gate) })
}

// writers has n callers write, and returns when something is under way.
func (m *memory) writers(t *testing.T, c *nbd.Client, n int) (failed chan error) {
	t.Helper()
	failed = make(chan error, n)
	was := m.running.Load()
	for i := range n {
		go func() { failed <- c.Write(ctx, pattern(4096, 1), int64(i)*4096, false) }()
	}
	eventually(t, "some are under way", func() bool { return m.running.Load() > was })
	return failed
}

// TestYoungerSetWaitsForTransfers has transfers under way on one set when another one comes: they cannot
// be cancelled, so the younger set is served when they have ended.
func TestYoungerSetWaitsForTransfers(t *testing.T) {
	m := newMemory(1 << 20)
	s := serve(t, nbd.Options{Open: always(m)})
	open := m.shut()
	defer open()
	old := dial(t, nbd.ClientOptions{Address: s.addr, Export: nbd.Plain(nodeName(1, 1).String())})
	failed := m.writers(t, old, 32)
	young := dial(t, nbd.ClientOptions{Address: s.addr, Export: nbd.Plain(nodeName(1, 2).String())})
	want := pattern(32*4096, 2)
	wrote := make(chan error, 1)
	go func() { wrote <- young.Write(ctx, want, 0, false) }()
	select {
	case err := <-wrote:
		t.Fatal("the younger set did not wait:", err)
	case <-time.After(100 * time.Millisecond):
	}
	open()
	if err := <-wrote; err != nil {
		t.Fatal(err)
	}
	for range 32 {
		if err := <-failed; err != nil && !errors.Is(err, protocol.ErrStale) && !errors.Is(err, protocol.ErrUnreachable) {
			t.Error(err)
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if !bytes.Equal(m.data[:len(want)], want) {
		t.Error("a write of the older set came after one of the younger")
	}
}

// TestStopWaitsForTransfers stops the server, and ends a node, while transfers are under way.
func TestStopWaitsForTransfers(t *testing.T) {
	for name, stop := range map[string]func(*served, context.Context) error{
		"stop": func(s *served, c context.Context) error { return s.Stop(c) },
		"end":  func(s *served, c context.Context) error { return s.End(c, "v", "n.example.org") },
	} {
		t.Run(name, func(t *testing.T) {
			m := newMemory(1 << 20)
			s := serve(t, nbd.Options{Open: always(m)})
			open := m.shut()
			defer open()
			c := dial(t, nbd.ClientOptions{Address: s.addr, Export: nbd.Plain(nodeName(1, 1).String())})
			failed := m.writers(t, c, 32)
			ended := make(chan error, 1)
			go func() { ended <- stop(s, ctx) }()
			select {
			case err := <-ended:
				t.Error("did not wait:", err)
			case <-time.After(50 * time.Millisecond):
			}
			open()
			if err := <-ended; err != nil || m.running.Load() != 0 {
				t.Error(err, m.running.Load())
			}
			for range 32 {
				if err := <-failed; err != nil && name == "stop" && !errors.Is(err, protocol.ErrUnreachable) {
					t.Error(err)
				}
			}
		})
	}
}

// TestClientGoesWithTransfersUnderWay breaks connections while the Carrier has their buffers.
func TestClientGoesWithTransfersUnderWay(t *testing.T) {
	m := newMemory(1 << 20)
	s := serve(t, nbd.Options{Open: always(m), Limits: nbd.Limits{Memory: nbd.MaxPayload}})
	for range 8 {
		open := m.shut()
		defer open()
		c := dial(t, nbd.ClientOptions{Address: s.addr})
		failed := m.writers(t, c, 32)
		c.Close()
		for range 32 {
			<-failed // those that blocked may have been answered
		}
		if s.Connections() == 0 {
			t.Error("a connection ended before its transfers")
		}
		open()
		eventually(t, "all ended", func() bool { return m.running.Load() == 0 && s.Connections() == 0 })
	}
	c := dial(t, nbd.ClientOptions{Address: s.addr})
	if err := c.Write(ctx, make([]byte, nbd.MaxPayload/64), 0, false); err != nil {
		t.Error("the buffers did not come back:", err)
	}
}

// TestOneAtATime makes requests one after the other, which go the blocking way soon, and then many at once.
func TestOneAtATime(t *testing.T) {
	m := newMemory(1 << 20)
	s := serve(t, nbd.Options{Open: always(m)})
	c := dial(t, nbd.ClientOptions{Address: s.addr})
	p := make([]byte, 4096)
	for range 500 {
		if err := c.Read(ctx, p, 0); err != nil {
			t.Fatal(err)
		}
	}
	alone := m.carried.Load()
	if alone == 0 || alone > 64 {
		t.Errorf("%d of 500 lonely requests were carried", alone)
	}
	var all sync.WaitGroup
	for range 16 {
		all.Go(func() {
			p := make([]byte, 4096)
			for range 500 {
				if err := c.Read(ctx, p, 0); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	if many := m.carried.Load() - alone; many < 4000 {
		t.Errorf("%d of 8000 requests in a crowd were carried", many)
	}
	if err := c.Read(ctx, p, 1<<20); !errors.Is(err, unix.EINVAL) {
		t.Error(err)
	}
}

// TestRequestsBeforeTheLast sends requests and DISC, or nonsense, in one piece: what came before DISC is executed,
// and the server has its buffers back.
func TestRequestsBeforeTheLast(t *testing.T) {
	m := newMemory(1 << 20)
	s := serve(t, nbd.Options{Open: always(m)})
	for last, magic := range map[string]uint32{"DISC": request, "nonsense": 1} {
		r := dialRaw(t, s.addr).begin()
		want := pattern(8192, byte(magic))
		var all bytes.Buffer
		for i := range 2 {
			for _, v := range []any{request, uint16(0), uint16(1), uint64(7), uint64(i * 4096), uint32(4096), want[i*4096:][:4096]} {
				binary.Write(&all, be, v)
			}
		}
		for _, v := range []any{magic, uint16(0), uint16(2), uint64(0), uint64(0), uint32(0)} {
			binary.Write(&all, be, v)
		}
		r.say(all.Bytes())
		if !r.closed() {
			t.Error("the connection stays")
		}
		eventually(t, "the end", func() bool { return s.Connections() == 0 })
		m.mu.Lock()
		if magic == request && !bytes.Equal(m.data[:8192], want) {
			t.Errorf("before %s: not executed", last)
		}
		m.mu.Unlock()
	}
}
