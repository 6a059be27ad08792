package nbd_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lunar/datapath/layout/protocol"
	"lunar/datapath/wire/nbd"
)

func TestThereAndBack(t *testing.T) {
	keys := newPKI(t)
	for _, secure := range []bool{false, true} {
		m := newMemory(64 << 20)
		so, co := nbd.Options{Open: always(m)}, nbd.ClientOptions{}
		if secure {
			so.TLS, so.RequireTLS, co.TLS = keys.config("server"), true, keys.config("client")
		}
		s := serve(t, so)
		co.Address = s.addr
		c := dial(t, co)
		for _, n := range []int{1, 512, 4096, 70000, 1 << 20, 33 << 20} {
			want := pattern(n, byte(n))
			if err := c.Write(ctx, want, 512, true); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, n)
			if err := c.Read(ctx, got, 512); err != nil || !bytes.Equal(got, want) {
				t.Fatalf("%d bytes: %v, equal %v", n, err, bytes.Equal(got, want))
			}
		}
		if m.fua.Load() == 0 {
			t.Error("FUA did not arrive")
		}
		if err := c.Flush(ctx); err != nil || m.flushes.Load() == 0 {
			t.Error("flush", err)
		}
		if err := c.Unmap(ctx, 512, 8192); err != nil || !bytes.Equal(m.data[512:512+8192], make([]byte, 8192)) {
			t.Error("unmap", err)
		}
		if size, flags, err := c.Connect(ctx); size != 64<<20 || flags&nbd.CanMultiConn == 0 || err != nil {
			t.Error(size, flags, err)
		}
	}
}

// TestManyCallers lets many goroutines work on blocks of their own, over a line that breaks: each must
// read what it wrote last, however often a call had to be made again.
func TestManyCallers(t *testing.T) {
	const callers, rounds, block = 32, 60, 4096
	m := newMemory(callers * block)
	s := serve(t, nbd.Options{Open: always(m)})
	p := newProxy(t, s.addr)
	set := uint64(0)
	c := dial(t, nbd.ClientOptions{Address: p.addr(), Window: 8, Export: func() string {
		set++
		return nbd.Name{Volume: "v", Image: 1, Node: "n", Epoch: 1, Incarnation: 1, Set: set}.String()
	}})
	again := func(do func() error) error {
		for {
			err := do()
			if err == nil || !errors.Is(err, protocol.ErrUnreachable) && !errors.Is(err, protocol.ErrStale) {
				return err
			}
		}
	}
	stop := make(chan struct{})
	var cutter, wg sync.WaitGroup
	cutter.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(30 * time.Millisecond):
				p.cut()
			}
		}
	})
	for i := range callers {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(1, uint64(i)))
			buf := make([]byte, block)
			for round := range rounds {
				want := pattern(block, byte(rng.Uint32()))
				if err := again(func() error { return c.Write(ctx, want, int64(i*block), round%8 == 0) }); err != nil {
					t.Error(err)
					return
				}
				if err := again(func() error { return c.Read(ctx, buf, int64(i*block)) }); err != nil || !bytes.Equal(buf, want) {
					t.Errorf("caller %d, round %d: %v, equal %v", i, round, err, bytes.Equal(buf, want))
					return
				}
				time.Sleep(time.Duration(rng.IntN(3)) * time.Millisecond)
			}
		})
	}
	wg.Wait()
	close(stop)
	cutter.Wait()
	if set < 3 {
		t.Errorf("only %d sets of connections: the line did not break", set)
	}
}

func TestErrorsFromTheServer(t *testing.T) {
	m := newMemory(1 << 20)
	s := serve(t, nbd.Options{Open: always(m)})
	c := dial(t, nbd.ClientOptions{Address: s.addr})
	for _, x := range []struct{ is, want error }{
		{unix.ENOSPC, unix.ENOSPC}, {unix.EDQUOT, unix.ENOSPC}, {unix.EROFS, unix.EPERM}, {unix.EBADE, unix.EIO},
		{protocol.ErrStale, protocol.ErrStale}, {errors.New("odd"), unix.EIO}, {unix.EOPNOTSUPP, unix.EINVAL},
	} {
		m.fail.Store(&x.is)
		for what, err := range map[string]error{
			"read": c.Read(ctx, make([]byte, 512), 0), "write": c.Write(ctx, make([]byte, 512), 0, false),
			"flush": c.Flush(ctx), "unmap": c.Unmap(ctx, 0, 512),
		} {
			if !errors.Is(err, x.want) {
				t.Errorf("%s with %v: got %v, want %v", what, x.is, err, x.want)
			}
		}
	}
	m.fail.Store(nil)
	for what, x := range map[string]struct{ err, want error }{
		"read beyond":  {c.Read(ctx, make([]byte, 1024), 1<<20-512), unix.EINVAL},
		"write beyond": {c.Write(ctx, make([]byte, 1024), 1<<20-512, false), unix.ENOSPC},
		"negative":     {c.Read(ctx, make([]byte, 1024), -1), unix.EINVAL},
	} {
		if !errors.Is(x.err, x.want) {
			t.Errorf("%s: got %v, want %v", what, x.err, x.want)
		}
	}
	if err := c.Read(ctx, make([]byte, 512), 0); err != nil {
		t.Error("after errors:", err)
	}
}

// hold makes calls of a method wait until release is called, or their ctx ends.
func (m *memory) hold(method string) (entered chan struct{}, release func()) {
	entered, gate := make(chan struct{}, 100), make(chan struct{})
	f := func(ctx context.Context, what string) error {
		if what != method {
			return nil
		}
		entered <- struct{}{}
		select {
		case <-gate:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	m.before.Store(&f)
	return entered, sync.OnceFunc(func() { m.before.Store(nil); close(gate) })
}

// TestLateAnswer gives a read up; the answer that comes late must not reach its buffer, and the
// connection goes on.
func TestLateAnswer(t *testing.T) {
	m := newMemory(1 << 20)
	copy(m.data, pattern(1<<20, 3))
	s := serve(t, nbd.Options{Open: always(m)})
	sets := 0
	c := dial(t, nbd.ClientOptions{Address: s.addr, Connections: 1, Export: func() string { sets++; return "x" }})
	entered, release := m.hold("read")
	defer release()
	short, cancel := context.WithCancel(ctx)
	buf := make([]byte, 256<<10)
	failed := make(chan error, 1)
	go func() { failed <- c.Read(short, buf, 0) }()
	<-entered
	cancel()
	if err := <-failed; !errors.Is(err, context.Canceled) || !errors.Is(err, protocol.ErrUnreachable) {
		t.Fatal(err)
	}
	mine := pattern(len(buf), 77)
	copy(buf, mine)
	release()
	other := make([]byte, 4096)
	if err := c.Read(ctx, other, 4096); err != nil || !bytes.Equal(other, m.data[4096:8192]) {
		t.Fatal("the connection after it:", err)
	}
	if !bytes.Equal(buf, mine) {
		t.Fatal("a late answer reached a buffer that was its caller's again")
	}
	if sets != 1 {
		t.Errorf("%d sets of connections for a read that was given up", sets)
	}
}

// TestAbandonedWrite gives a write up. Its next try is not executed before the first one has ended.
func TestAbandonedWrite(t *testing.T) {
	m := newMemory(1 << 20)
	s := serve(t, nbd.Options{Open: always(m)})
	d, err := nbd.NewDataPath(nbd.DataPathOptions{Address: s.addr, Volume: "v", Node: "n", Incarnation: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	call := protocol.Call{Image: 5, Epoch: 1}
	entered, gate := make(chan struct{}, 10), make(chan struct{})
	var log []string
	var mu sync.Mutex
	say := func(s string) { mu.Lock(); defer mu.Unlock(); log = append(log, s) }
	n := 0
	stubborn := func(ctx context.Context, what string) error {
		mu.Lock()
		n++
		mine := n
		mu.Unlock()
		if mine > 1 {
			say("second")
			return nil
		}
		entered <- struct{}{}
		<-gate // as a system call would, it does not look at ctx
		say("first")
		return nil
	}
	m.before.Store(&stubborn)
	short, cancel := context.WithCancel(ctx)
	failed := make(chan error, 1)
	go func() { failed <- d.Write(short, call, pattern(4096, 1), 0, false) }()
	<-entered
	cancel()
	if err := <-failed; !errors.Is(err, protocol.ErrUnreachable) {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- d.Write(ctx, call, pattern(4096, 2), 0, false) }()
	select {
	case err := <-done:
		t.Fatal("the second try did not wait for the first:", err)
	case <-time.After(50 * time.Millisecond):
	}
	close(gate)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(log) != 2 || log[0] != "first" || log[1] != "second" {
		t.Fatal("order:", log)
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	if !bytes.Equal(m.data[:4096], pattern(4096, 2)) {
		t.Fatal("the abandoned try won")
	}
}
