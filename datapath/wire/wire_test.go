package wire

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"

	"lunar/datapath/layout"
	"lunar/datapath/layout/protocol"
	"lunar/datapath/wire/wirepb"
	"lunar/datapath/wire/wiretest"
)

var errFull = errors.New("the volume is full")

func TestCallsArriveWhole(t *testing.T) {
	p := newPair(t)
	c := p.client()
	var heard atomic.Pointer[string]
	p.coord.called = func(_ context.Context, operation string) error {
		heard.Store(&operation)
		return nil
	}
	key := protocol.Key{1, 2, 3}
	m := protocol.Meta{Key: key, Epoch: 5, Image: 9, Retry: true}
	var progress []int64
	for want, call := range map[string]func() error{
		"acknowledge": func() error { return c.Acknowledge(ctx, "n2", 5) },
		"copy 1 2 3 {4 5}": func() error {
			return c.Copy(ctx, protocol.Call{Image: 1}, 2, protocol.Call{Image: 3}, layout.Range{Off: 4, Len: 5})
		},
		`delete 9 "d/a\xff"`:                 func() error { return c.Delete(ctx, m, "d/a\xff") },
		`rename 9 "a" "b"`:                   func() error { return c.Rename(ctx, m, "a", "b") },
		`resize "a" 7 true`:                  func() error { return c.Resize(ctx, m, "a", 7, true) },
		`clone ` + key.String() + ` "a" "b"`: func() error { return c.Clone(ctx, m, "a", "b") },
		`snapshot ` + key.String() + ` "s" ["a" "b\xff"]`: func() error {
			hold, err := c.Snapshot(ctx, m, "s", []string{"a", "b\xff"})
			if hold != 7*time.Millisecond {
				t.Error(hold)
			}
			return err
		},
		`delete snapshot 9 "s" ""`:                        func() error { return c.DeleteSnapshot(ctx, m, "s", "") },
		`clone snapshot ` + key.String() + ` "s" "a" "b"`: func() error { return c.CloneSnapshot(ctx, m, "s", "a", "b") },
		`revert ` + key.String() + ` "s" "a"`:             func() error { return c.Revert(ctx, m, "s", "a") },
		`create ` + key.String() + ` true "a" 77 true false`: func() error {
			return c.Create(ctx, m, "a", protocol.CreateOptions{Size: 77, Thick: true, Progress: func(n int64) { progress = append(progress, n) }})
		},
		"caw 4 true {n2 7 8} 512 true": func() error {
			at, err := c.CompareAndWrite(ctx, protocol.Call{Image: 4, Epoch: 5, Retry: true, Once: protocol.Once{Node: "another", Slot: 7, Serial: 8}}, make([]byte, 1<<20), make([]byte, 1<<20), 512, true)
			if at != 1<<20 {
				t.Error(at)
			}
			return err
		},
	} {
		if err := call(); err != nil || *heard.Load() != want {
			t.Errorf("%q, %v, want %q", *heard.Load(), err, want)
		}
	}
	if !slices.Equal(progress, []int64{1, 77}) {
		t.Error(progress)
	}
	if s, err := c.Space(ctx); err != nil || s != (protocol.Space{Size: 10, Free: 3}) {
		t.Error(s, err)
	}
	want, _ := p.coord.Stat(ctx, "x")
	if s, err := c.Stat(ctx, "x"); err != nil || s != want {
		t.Error(s, err)
	}
	all, _ := p.coord.List(ctx)
	if got, err := c.List(ctx); err != nil || !slices.Equal(got, all) {
		t.Error(len(got), err)
	}
	snapshots, _ := p.coord.Snapshots(ctx)
	if got, err := c.Snapshots(ctx); err != nil || !slices.Equal(got, snapshots) {
		t.Error(len(got), err)
	}
	changed, _ := p.coord.Diff(ctx, "a", "s1", "s2")
	if got, err := c.Diff(ctx, "a", "s1", "s2"); err != nil || !slices.Equal(got, changed) || *heard.Load() != `diff "a" "s1" "s2"` {
		t.Error(len(got), err)
	}
	if c.Epoch() != 5 {
		t.Error(c.Epoch())
	}
}

func TestErrorsKeepWhatTheyAre(t *testing.T) {
	p := newPair(t, func(o *ServerOptions) { o.Sentinels = []error{errFull} })
	c := p.client(func(o *ClientOptions) { o.Sentinels = []error{errFull} })
	for _, want := range [][]error{{unix.ENOSPC, errFull}, {protocol.ErrStale, unix.ESTALE}, {unix.EBUSY}, {protocol.ErrUnreachable}, {errors.New("words alone")}} {
		p.coord.called = func(context.Context, string) error { return errors.Join(want...) }
		_, err := c.Space(ctx)
		if err == nil || !strings.Contains(err.Error(), want[0].Error()) {
			t.Errorf("%v, want %v", err, want)
		}
		for _, w := range want {
			if !errors.Is(err, w) && w.Error() != "words alone" {
				t.Errorf("%v is not %v", err, w)
			}
		}
		if errors.Is(err, unix.EIO) || len(want) == 1 && errors.Is(err, errFull) {
			t.Errorf("%v is too much", err)
		}
	}
}

func TestRecallRoundTrip(t *testing.T) {
	p := newPair(t)
	r := p.coord.image(t, "a", 100)
	h, call, id := attach(t, p.client(), "a")
	at := layout.Range{Off: 8192, Len: 4096}
	h.mu.Lock()
	h.drain = func(context.Context, protocol.Recall) error {
		if !h.waits(at) {
			t.Error("drained before the view lets nothing in")
		}
		return nil
	}
	h.mu.Unlock()
	if err := p.coord.change(ctx, r, at, hole(at)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the grant", func() bool { return !h.waits(at) })
	if e, _ := h.layout().At(8192); e.State != layout.Hole || h.layout().Len() != 100 {
		t.Fatal(e)
	}
	h.mu.Lock()
	h.drain = func(context.Context, protocol.Recall) error { return unix.EIO }
	h.mu.Unlock()
	if err := p.coord.change(ctx, r, at, hole(at)); !errors.Is(err, unix.EIO) {
		t.Fatal("the holder's refusal was lost", err)
	}
	if call.Epoch != 5 || call.Image != r.id || id == 0 {
		t.Fatal(call, id)
	}
}

func TestRecallOutlivesTheConnection(t *testing.T) {
	p := newPair(t)
	r := p.coord.image(t, "a", 10)
	h, _, _ := attach(t, p.client(), "a")
	began, release := make(chan struct{}), make(chan struct{})
	h.mu.Lock()
	h.drain = func(context.Context, protocol.Recall) error {
		close(began)
		<-release
		return nil
	}
	h.mu.Unlock()
	at, done := layout.Range{Len: 4096}, make(chan error, 1)
	go func() { done <- p.coord.change(ctx, r, at, hole(at)) }()
	<-began
	p.sever()
	close(release) // the answer finds no connection
	select {
	case err := <-done:
		t.Fatal("ended without the node's answer", err)
	case <-time.After(100 * time.Millisecond):
	}
	p.mend()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	eventually(t, "the grant", func() bool { return !h.waits(at) })
	if h.mu.Lock(); len(h.told) != 1 || h.refused != 0 {
		t.Errorf("told %d times, %d grants refused", len(h.told), h.refused)
	}
	h.mu.Unlock()
}

func TestRecallWhileAwayIsToldLater(t *testing.T) {
	p := newPair(t)
	r := p.coord.image(t, "a", 10)
	h, _, _ := attach(t, p.client(), "a")
	p.sever()
	at, done := layout.Range{Len: 4096}, make(chan error, 1)
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if err := p.coord.change(short, r, at, hole(at)); !errors.Is(err, unix.ETIMEDOUT) {
		t.Fatal(err)
	}
	go func() { done <- p.coord.change(ctx, r, at, hole(at)) }()
	p.mend()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	eventually(t, "the grant", func() bool { return !h.waits(at) })
	if e, _ := h.layout().At(0); e.State != layout.Hole {
		t.Fatal(e)
	}
}

// TestGivenUpRecallIsCancelled: the grant that ends it comes while the holder still drains.
func TestGivenUpRecallIsCancelled(t *testing.T) {
	p := newPair(t)
	r := p.coord.image(t, "a", 10)
	h, _, _ := attach(t, p.client(), "a")
	h.mu.Lock()
	h.drain = func(ctx context.Context, _ protocol.Recall) error { <-ctx.Done(); return ctx.Err() }
	h.mu.Unlock()
	at := layout.Range{Len: 4096}
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if err := p.coord.change(short, r, at, hole(at)); err == nil {
		t.Fatal("nobody returned it")
	}
	eventually(t, "the grant", func() bool { return !h.waits(at) })
	if e, _ := h.layout().At(0); e.State != layout.Written {
		t.Fatal(e)
	}
}

func TestStaleEpoch(t *testing.T) {
	p := newPair(t)
	c := p.client(func(o *ClientOptions) { o.Epoch = 4 })
	eventually(t, "a refusal", func() bool {
		_, err := c.Space(ctx)
		return errors.Is(err, protocol.ErrStale)
	})
	now := p.client()
	if _, err := now.CompareAndWrite(ctx, protocol.Call{Epoch: 4}, nil, nil, 0, false); !errors.Is(err, protocol.ErrStale) {
		t.Fatal(err)
	}
	if err := now.Acknowledge(ctx, "n2", 4); !errors.Is(err, protocol.ErrStale) {
		t.Fatal(err)
	}
}

func TestEndOfATermEndsWhatWaits(t *testing.T) {
	p := newPair(t)
	r := p.coord.image(t, "a", 10)
	c := p.client()
	h, _, _ := attach(t, c, "a")
	began := make(chan struct{}, 1)
	h.mu.Lock()
	h.drain = func(ctx context.Context, _ protocol.Recall) error {
		began <- struct{}{}
		<-ctx.Done()
		return ctx.Err()
	}
	h.mu.Unlock()
	p.coord.called = func(ctx context.Context, _ string) error { <-ctx.Done(); return ctx.Err() }
	done, called := make(chan error, 1), make(chan error, 1)
	go func() { done <- p.coord.change(ctx, r, layout.Range{Len: 4096}, nil) }()
	go func() { _, err := c.Space(ctx); called <- err }()
	<-began
	p.sv.End("v", 5)
	if err := <-done; !errors.Is(err, protocol.ErrStale) {
		t.Fatal("recall", err)
	}
	if err := <-called; !errors.Is(err, protocol.ErrStale) && !errors.Is(err, protocol.ErrUnreachable) {
		t.Fatal("call", err)
	}
}

// TestAbandonedCallEndsFirst: no call of the next turn is executed while one of the last still is.
func TestAbandonedCallEndsFirst(t *testing.T) {
	p := newPair(t)
	c := p.client()
	began, gate := make(chan struct{}), make(chan struct{})
	release := sync.OnceFunc(func() { close(gate) })
	defer release()
	var late, overlapped atomic.Bool
	p.coord.called = func(ctx context.Context, operation string) error {
		if operation == "space" {
			close(began)
			<-ctx.Done() // it was told to end
			<-gate
			late.Store(true)
			return nil
		}
		if !late.Load() {
			overlapped.Store(true)
		}
		return nil
	}
	first, second := make(chan error, 1), make(chan error, 1)
	go func() { _, err := c.Space(ctx); first <- err }()
	<-began
	p.sever()
	if err := <-first; !errors.Is(err, protocol.ErrUnreachable) {
		t.Fatal(err)
	}
	p.mend()
	go func() {
		for {
			err := c.Acknowledge(ctx, "n2", 5)
			if errors.Is(err, protocol.ErrUnreachable) && !late.Load() {
				continue // the connection's end was not noticed yet
			}
			second <- err
			return
		}
	}()
	select {
	case err := <-second:
		t.Fatal("executed beside the abandoned one", err)
	case <-time.After(200 * time.Millisecond):
	}
	release()
	if err := <-second; err != nil || overlapped.Load() {
		t.Fatal(err, overlapped.Load())
	}
}

func TestLostAttachLeavesNothing(t *testing.T) {
	p := newPair(t)
	r := p.coord.image(t, "a", 10)
	c := p.client()
	if _, err := c.Space(ctx); err != nil {
		t.Fatal(err)
	}
	p.coord.mu.Lock()
	p.coord.called = func(_ context.Context, operation string) error {
		if operation == "attach" {
			p.sever()
		}
		return nil
	}
	p.coord.mu.Unlock()
	if _, _, err := c.Attach(ctx, "n2", "a", &view{}); !errors.Is(err, protocol.ErrUnreachable) {
		t.Fatal(err)
	}
	p.coord.mu.Lock()
	p.coord.called = nil
	p.coord.mu.Unlock()
	p.mend()
	eventually(t, "a detach", func() bool { return p.coord.opens(r) == 0 })
	eventually(t, "an answer", func() bool { _, _, err := c.Attach(ctx, "n2", "nowhere", &view{}); return errors.Is(err, unix.ENOENT) })
	_, call, id := attach(t, c, "a")
	for range 2 { // a retry too
		if err := c.Detach(ctx, call, id); err != nil || p.coord.opens(r) != 0 {
			t.Fatal(err, p.coord.opens(r))
		}
	}
}

func TestNewProcessReplacesTheOld(t *testing.T) {
	p := newPair(t)
	r := p.coord.image(t, "a", 10)
	old := p.client()
	h, _, _ := attach(t, old, "a")
	began := make(chan struct{})
	h.mu.Lock()
	h.drain = func(ctx context.Context, _ protocol.Recall) error { close(began); <-ctx.Done(); return ctx.Err() }
	h.mu.Unlock()
	done := make(chan error, 1)
	go func() { done <- p.coord.change(ctx, r, layout.Range{Len: 4096}, nil) }()
	<-began
	next := p.client(func(o *ClientOptions) { o.Incarnation = 2 })
	if _, err := next.Space(ctx); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, protocol.ErrUnreachable) {
		t.Fatal(err)
	}
	eventually(t, "the old one's refusal", func() bool { _, err := old.Space(ctx); return errors.Is(err, protocol.ErrStale) })
}

func TestBigGrants(t *testing.T) {
	p := newPair(t)
	c := p.client()
	for n, path := range map[int]string{0: "none", 1: "one", maxPart: "part", maxPart + 1: "parts", 100_000: "many"} {
		r := p.coord.image(t, path, n)
		h, call, id := attach(t, c, path)
		if got := h.layout(); !slices.Equal(got.Extents(), r.layout.Extents()) || got.Size() != r.layout.Size() {
			t.Errorf("%d extents: %d", n, got.Len())
		}
		if err := c.Detach(ctx, call, id); err != nil || p.coord.opens(r) != 0 {
			t.Error(err)
		}
	}
}

// TestSlowNode publishes much to a node that reads nothing: what waits is merged, and nothing is lost.
func TestSlowNode(t *testing.T) {
	p := newPair(t, func(o *ServerOptions) { o.Limits.Window = 4096 })
	r := p.coord.image(t, "a", 1000)
	h, _, _ := attach(t, p.client(), "a")
	p.sever()
	for i := range 4_000 {
		at := layout.Range{Off: int64(i%1000) * 4096, Len: 4096}
		p.coord.mu.Lock()
		r.layout, _ = r.layout.Replace(at, []layout.Extent{{FileOff: at.Off, DevOff: int64(i) * 16384, Len: 4096, State: layout.Written}})
		p.coord.publish(r, at, 0)
		p.coord.mu.Unlock()
	}
	key := sessionKey{"v", 5, "n2"}
	p.sv.mu.Lock()
	s := p.sv.sessions[key]
	p.sv.mu.Unlock()
	s.mu.Lock()
	waiting := len(s.out.queue) + len(s.out.flying)
	s.mu.Unlock()
	if waiting > 10 {
		t.Errorf("%d letters wait", waiting)
	}
	p.mend()
	eventually(t, "the newest layout", func() bool { return h.layout().Generation == r.gen })
	if !slices.Equal(h.layout().Extents(), r.layout.Extents()) || h.refused != 0 {
		t.Fatal("layouts differ", h.refused)
	}
}

// TestDeadPeerIsFound: within a second, as the log tells; the bounds are for a machine that is busy with other things.
func TestDeadPeerIsFound(t *testing.T) {
	p := newPair(t, func(o *ServerOptions) { o.Timing = Timing{} })
	c := p.client(func(o *ClientOptions) { o.Timing = Timing{} })
	if _, err := c.Space(ctx); err != nil {
		t.Fatal(err)
	}
	began := make(chan struct{})
	p.coord.called = func(ctx context.Context, _ string) error { close(began); <-ctx.Done(); return ctx.Err() }
	proxy := newProxy(t, p.addr)
	far := p.client(func(o *ClientOptions) {
		o.Timing, o.Node, o.TLS, o.Dial = Timing{}, "n3", p.ca.Config(t, "n3"), nil
		o.Address = proxy.addr
	})
	done := make(chan error, 1)
	go func() { _, err := far.Space(ctx); done <- err }()
	<-began
	proxy.freeze()
	at := time.Now()
	if err := <-done; !errors.Is(err, protocol.ErrUnreachable) {
		t.Fatal(err)
	}
	t.Logf("the node found it after %v", time.Since(at))
	if took := time.Since(at); took > 10*time.Second {
		t.Errorf("the node found it after %v", took)
	}
	eventually(t, "the server to end the call", func() bool { p.coord.mu.Lock(); defer p.coord.mu.Unlock(); return p.coord.running == 0 })
	t.Logf("the coordinator found it after %v", time.Since(at))
	if took := time.Since(at); took > 10*time.Second {
		t.Errorf("the coordinator found it after %v", took)
	}
}

func TestForeignNodes(t *testing.T) {
	p := newPair(t)
	foreign := wiretest.NewAuthority(t)
	never := func(c *Client, want error) {
		t.Helper()
		limit, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		eventually(t, "a refusal", func() bool { _, err := c.Space(limit); return errors.Is(err, want) })
	}
	never(p.client(func(o *ClientOptions) { o.TLS = foreign.Config(t, "n2") }), protocol.ErrUnreachable)
	never(p.client(func(o *ClientOptions) {
		o.TLS = foreign.Config(t, "n2")
		o.TLS.RootCAs = p.ca.Pool // it trusts, and is not trusted
	}), protocol.ErrUnreachable)
	never(p.client(func(o *ClientOptions) { o.TLS = p.ca.Config(t, "n3") }), unix.EPERM)
	p.coord.mu.Lock()
	defer p.coord.mu.Unlock()
	if len(p.coord.hellos) != 0 {
		t.Error("one was let in")
	}
	if _, err := NewServer(ServerOptions{Lookup: p.lookup, TLS: &tls.Config{}}); !errors.Is(err, unix.EINVAL) {
		t.Error("a server without client certificates", err)
	}
}

// TestHostileNode has a certificate, and speaks nonsense.
func TestHostileNode(t *testing.T) {
	p := newPair(t)
	raw := func(node string) wirepb.LayoutsClient {
		conn, err := grpc.NewClient(p.addr, grpc.WithTransportCredentials(credentials.NewTLS(p.ca.Config(t, node))),
			grpc.WithDefaultCallOptions(grpc.MaxCallSendMsgSize(1<<30)))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return wirepb.NewLayoutsClient(conn)
	}
	limit, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	mallory, victim := raw("mallory"), p.client()
	if _, err := victim.Space(ctx); err != nil {
		t.Fatal(err)
	}
	hello := func(node string) *wirepb.FromNode {
		return &wirepb.FromNode{Received: 1 << 60, Body: &wirepb.FromNode_Hello{Hello: &wirepb.Hello{Volume: "v", Epoch: 5, Node: node, Incarnation: 9}}}
	}
	sessions := map[string][]*wirepb.FromNode{
		"no Hello":    {{}},
		"another's":   {hello("n2")},
		"two Hellos":  {hello("mallory"), hello("mallory")},
		"huge":        {{Body: &wirepb.FromNode_Hello{Hello: &wirepb.Hello{Volume: strings.Repeat("v", 5<<20)}}}},
		"too many":    {{Body: &wirepb.FromNode_Hello{Hello: &wirepb.Hello{Volume: "v", Epoch: 5, Node: "mallory", Incarnation: 1, Holders: make([]uint32, 1<<17)}}}},
		"bad returns": {hello("mallory"), {Body: &wirepb.FromNode_Returned{Returned: &wirepb.Returned{Holder: 77, Number: 1}}}, hello("mallory")},
	}
	for name, messages := range sessions {
		stream, err := mallory.Session(limit)
		if err != nil {
			t.Fatal(name, err)
		}
		for _, m := range messages {
			_ = stream.Send(m)
		}
		for err == nil {
			_, err = stream.Recv()
		}
		if limit.Err() != nil {
			t.Fatal(name, "was not refused")
		}
	}
	p.sv.mu.Lock()
	var turns []string
	for id := range p.sv.turns {
		turns = append(turns, (&link{turn: id}).turnText())
	}
	p.sv.mu.Unlock()
	for _, turn := range append(turns, "", "zz", "1") {
		in := metadata.AppendToOutgoingContext(limit, turnKey, turn)
		if _, err := mallory.Delete(in, &wirepb.DeleteRequest{Path: []byte("a")}); err == nil {
			t.Error("a call in the turn", turn)
		}
	}
	garbage(t, p)
	if _, err := victim.Space(ctx); err != nil {
		t.Fatal("the victim suffers", err)
	}
}

// garbage sends bytes that are no TLS, and TLS that is no HTTP/2.
func garbage(t *testing.T, p *pair) {
	plain, err := net.Dial("tcp", p.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	_, _ = plain.Write([]byte(strings.Repeat("x", 4096)))
	config := p.ca.Config(t, "mallory")
	config.NextProtos = []string{"h2"}
	secret, err := tls.Dial("tcp", p.addr, config)
	if err != nil {
		t.Fatal(err)
	}
	defer secret.Close()
	_, _ = secret.Write([]byte(strings.Repeat("x", 4096)))
	_ = secret.SetReadDeadline(time.Now().Add(10 * time.Second))
	for err == nil {
		_, err = secret.Read(make([]byte, 4096))
	}
	if errors.Is(err, unix.ETIMEDOUT) {
		t.Error("garbage was not refused")
	}
}

func TestOptionsAreChecked(t *testing.T) {
	if _, err := Dial(ClientOptions{}); !errors.Is(err, unix.EINVAL) {
		t.Error(err)
	}
	if err := (Timing{Ping: time.Second}).validate(); !errors.Is(err, unix.EINVAL) {
		t.Error(err)
	}
	if err := (Limits{Calls: -1}).validate(); !errors.Is(err, unix.EINVAL) {
		t.Error(err)
	}
}
