package wire

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"lunar/datapath/layout"
	"lunar/datapath/layout/protocol"
	"lunar/datapath/wire/wiretest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var ctx = context.Background()

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

// ledger is a coordinator without a file system: images by path, whose mapping is an epoch's generations.
// It keeps the order that Coordinator promises: a grant is made and handed over under one mutex.
type ledger struct {
	epoch uint64

	mu      sync.Mutex // guards what follows
	images  map[string]*record
	hellos  []uint64
	running int
	called  func(ctx context.Context, operation string) error // if not nil

	returned func(r protocol.Recall) // told before a change that may run; set before any
}

type record struct {
	id      protocol.ImageID
	layout  *layout.Layout
	gen     uint64
	recalls uint64
	holders map[protocol.HolderID]protocol.Holder
	last    protocol.HolderID

	changes  chan struct{} // a slot for each of those that may run; an Attach takes all of them
	attaches chan struct{} // of one
}

func newLedger(epoch uint64) *ledger { return &ledger{epoch: epoch, images: map[string]*record{}} }

// image adds one of n extents of 4096 bytes, which do not merge.
func (c *ledger) image(t testing.TB, path string, n int) *record {
	t.Helper()
	extents := make([]layout.Extent, n)
	for i := range extents {
		extents[i] = layout.Extent{FileOff: int64(i) * 4096, DevOff: int64(i)*8192 + 1<<20, Len: 4096, State: layout.Written}
	}
	l, err := layout.New(int64(n)*4096, extents)
	if err != nil {
		t.Fatal(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	r := &record{id: protocol.ImageID(len(c.images) + 1), layout: l, holders: map[protocol.HolderID]protocol.Holder{},
		changes: make(chan struct{}, 2), attaches: make(chan struct{}, 1)}
	c.images[path] = r
	return r
}

func (c *ledger) grant(r *record, at layout.Range, ends uint64) protocol.Grant {
	r.gen++
	g := protocol.Grant{Call: protocol.Call{Image: r.id, Epoch: c.epoch}, Generation: r.gen, Size: r.layout.Size(), Range: at, Ends: ends, Free: 7}
	for e := range r.layout.In(at) {
		g.Extents = append(g.Extents, e)
	}
	return g
}

// change recalls a range from every holder, changes it, and grants it anew.
func (c *ledger) change(ctx context.Context, r *record, at layout.Range, to []layout.Extent) error {
	if err := acquire(ctx, r.changes); err != nil {
		return err
	}
	defer func() { <-r.changes }()
	c.mu.Lock()
	r.recalls++
	m := protocol.Recall{Call: protocol.Call{Image: r.id, Epoch: c.epoch}, Number: r.recalls, Range: at}
	var asked []protocol.Holder
	for _, h := range r.holders {
		asked = append(asked, h)
	}
	c.mu.Unlock()
	errs := make([]error, len(asked))
	var all sync.WaitGroup
	for i, h := range asked {
		all.Go(func() { errs[i] = h.Recall(ctx, m) })
	}
	all.Wait()
	err := errors.Join(errs...)
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil && c.returned != nil {
		c.returned(m)
	}
	if err == nil {
		if l, replaceErr := r.layout.Replace(at, to); replaceErr == nil {
			r.layout = l
		} else {
			err = replaceErr
		}
	}
	c.publish(r, at, m.Number)
	return err
}

func (c *ledger) publish(r *record, at layout.Range, ends uint64) {
	g := c.grant(r, at, ends)
	for _, h := range r.holders {
		h.Publish(g)
	}
}

func (c *ledger) enter(ctx context.Context, operation string) error {
	c.mu.Lock()
	called := c.called
	c.running++
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.running--
	}()
	if called != nil {
		return called(ctx, operation)
	}
	return nil
}

func (c *ledger) opens(r *record) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(r.holders)
}

func (c *ledger) Hello(_ context.Context, _ protocol.NodeID, incarnation uint64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hellos = append(c.hellos, incarnation)
	return nil
}

func (c *ledger) Acknowledge(ctx context.Context, _ protocol.NodeID, epoch uint64) error {
	if epoch != c.epoch {
		return fmt.Errorf("acknowledge %d: %w", epoch, protocol.ErrStale)
	}
	return c.enter(ctx, "acknowledge")
}

func (c *ledger) Attach(ctx context.Context, _ protocol.NodeID, path string, h protocol.Holder) (protocol.Grant, protocol.HolderID, error) {
	if err := c.enter(ctx, "attach"); err != nil {
		return protocol.Grant{}, 0, err
	}
	c.mu.Lock()
	r := c.images[path]
	c.mu.Unlock()
	if r == nil {
		return protocol.Grant{}, 0, fmt.Errorf("image %s: %w", path, unix.ENOENT)
	}
	for _, slots := range []chan struct{}{r.attaches, r.changes, r.changes} {
		if err := acquire(ctx, slots); err != nil {
			return protocol.Grant{}, 0, err
		}
		defer func() { <-slots }()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	r.last++
	r.holders[r.last] = h
	return c.grant(r, layout.Range{Len: r.layout.Size()}, 0), r.last, nil
}

func (c *ledger) Detach(ctx context.Context, call protocol.Call, h protocol.HolderID) error {
	if err := c.enter(ctx, "detach"); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range c.images {
		if r.id == call.Image {
			delete(r.holders, h)
		}
	}
	return nil
}

func (c *ledger) CompareAndWrite(ctx context.Context, call protocol.Call, expect, data []byte, off int64, fua bool) (int, error) {
	if call.Epoch != c.epoch {
		return -1, fmt.Errorf("call of %d: %w", call.Epoch, protocol.ErrStale)
	}
	return len(expect), c.enter(ctx, fmt.Sprintf("caw %d %v %v %d %v", call.Image, call.Retry, call.Once, off, fua))
}

func (c *ledger) Copy(ctx context.Context, to protocol.Call, off int64, from protocol.Call, r layout.Range) error {
	return c.enter(ctx, fmt.Sprintf("copy %d %d %d %v", to.Image, off, from.Image, r))
}

func (c *ledger) Create(ctx context.Context, m protocol.Meta, path string, o protocol.CreateOptions) error {
	if o.Progress != nil {
		o.Progress(1)
		o.Progress(o.Size)
	}
	return c.enter(ctx, fmt.Sprintf("create %v %v %q %d %v %v", m.Key, m.Retry, path, o.Size, o.Thick, o.Eager))
}

func (c *ledger) Delete(ctx context.Context, m protocol.Meta, path string) error {
	return c.enter(ctx, fmt.Sprintf("delete %d %q", m.Image, path))
}

func (c *ledger) Rename(ctx context.Context, m protocol.Meta, from, to string) error {
	return c.enter(ctx, fmt.Sprintf("rename %d %q %q", m.Image, from, to))
}

func (c *ledger) Resize(ctx context.Context, _ protocol.Meta, path string, size int64, force bool) error {
	return c.enter(ctx, fmt.Sprintf("resize %q %d %v", path, size, force))
}

func (c *ledger) Clone(ctx context.Context, m protocol.Meta, from, to string) error {
	return c.enter(ctx, fmt.Sprintf("clone %v %q %q", m.Key, from, to))
}

func (c *ledger) List(ctx context.Context) (all []protocol.Stat, err error) {
	for i := range 3*statPage + 1 {
		all = append(all, protocol.Stat{Path: fmt.Sprintf("d/%d\xff", i), ID: protocol.ImageID(i), Size: 1 << 40, Opens: 2})
	}
	return all, c.enter(ctx, "list")
}

func (c *ledger) Stat(ctx context.Context, path string) (protocol.Stat, error) {
	return protocol.Stat{Path: path, ID: 3, Size: 4, Used: 5, ModTime: 6, Opens: 7, Extents: 8}, c.enter(ctx, "stat")
}

func (c *ledger) Space(ctx context.Context) (protocol.Space, error) {
	return protocol.Space{Size: 10, Free: 3}, c.enter(ctx, "space")
}

func (c *ledger) Snapshot(ctx context.Context, m protocol.Meta, name string, paths []string) (time.Duration, error) {
	return 7 * time.Millisecond, c.enter(ctx, fmt.Sprintf("snapshot %v %q %q", m.Key, name, paths))
}

func (c *ledger) Snapshots(ctx context.Context) (all []protocol.Snapshot, err error) {
	for i := range 2*statPage + 1 {
		all = append(all, protocol.Snapshot{Name: "s", Path: fmt.Sprintf("d/%d\xff", i), ID: protocol.ImageID(i), Set: 2, Size: 3, Exclusive: 4, Taken: 5, Hold: 6})
	}
	return all, c.enter(ctx, "snapshots")
}

func (c *ledger) DeleteSnapshot(ctx context.Context, m protocol.Meta, name, path string) error {
	return c.enter(ctx, fmt.Sprintf("delete snapshot %d %q %q", m.Image, name, path))
}

func (c *ledger) CloneSnapshot(ctx context.Context, m protocol.Meta, name, path, to string) error {
	return c.enter(ctx, fmt.Sprintf("clone snapshot %v %q %q %q", m.Key, name, path, to))
}

func (c *ledger) Revert(ctx context.Context, m protocol.Meta, name, path string) error {
	return c.enter(ctx, fmt.Sprintf("revert %v %q %q", m.Key, name, path))
}

func (c *ledger) Diff(ctx context.Context, path, from, to string) (changed []layout.Range, err error) {
	for i := range int64(diffPage + 1) {
		changed = append(changed, layout.Range{Off: 8192 * i, Len: 4096})
	}
	return changed, c.enter(ctx, fmt.Sprintf("diff %q %q %q", path, from, to))
}

// noData is the DataPath of tests that redirect nothing.
type noData struct{}

func (noData) Read(context.Context, protocol.Call, []byte, int64) error { return unix.EOPNOTSUPP }
func (noData) Write(context.Context, protocol.Call, []byte, int64, bool) error {
	return unix.EOPNOTSUPP
}
func (noData) Flush(context.Context, protocol.Call) error                 { return unix.EOPNOTSUPP }
func (noData) Unmap(context.Context, protocol.Call, []layout.Range) error { return unix.EOPNOTSUPP }

// view is a holder without I/O.
type view struct {
	mu      sync.Mutex
	view    *protocol.View
	before  []func(*protocol.View) (*protocol.View, error)
	told    []protocol.Recall
	drain   func(ctx context.Context, r protocol.Recall) error // if not nil
	refused int                                                // grants out of order
}

func (h *view) change(fn func(*protocol.View) (*protocol.View, error)) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.view == nil {
		h.before = append(h.before, fn)
		return nil
	}
	next, err := fn(h.view)
	h.view = next
	return err
}

func (h *view) start(t testing.TB, g protocol.Grant) {
	t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	v, err := protocol.NewView(g)
	if err != nil {
		t.Error(err)
		return
	}
	for _, fn := range h.before {
		if v, err = fn(v); err != nil {
			h.refused++
		}
	}
	h.view = v
}

func (h *view) Recall(ctx context.Context, r protocol.Recall) error {
	err := h.change(func(v *protocol.View) (*protocol.View, error) { return v.Recalled(r) })
	h.mu.Lock()
	h.told = append(h.told, r)
	drain := h.drain
	h.mu.Unlock()
	if err == nil && drain != nil {
		err = drain(ctx, r)
	}
	return err
}

func (h *view) Publish(g protocol.Grant) {
	if err := h.change(func(v *protocol.View) (*protocol.View, error) { return v.Granted(g) }); err != nil {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.refused++
	}
}

func (h *view) waits(r layout.Range) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.view.Waits(r)
}

func (h *view) layout() *layout.Layout {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.view.Layout
}

// pair is a server and what its clients need.
type pair struct {
	t     testing.TB
	ca    *wiretest.Authority
	coord *ledger
	sv    *Server
	addr  string
	mu    sync.Mutex
	conns []net.Conn
	dials int
	cut   bool // no connection is to be had
}

// quick is a timing for tests that break connections on purpose; it is patient with a busy machine.
var quick = Timing{Ping: 50 * time.Millisecond, Silence: 2 * time.Second, Connect: 5 * time.Second, Wait: 5 * time.Second}

func newPair(t testing.TB, change ...func(*ServerOptions)) *pair {
	t.Helper()
	p := &pair{t: t, ca: wiretest.NewAuthority(t), coord: newLedger(5)}
	o := ServerOptions{TLS: p.ca.Config(t, "n1"), Lookup: p.lookup, Timing: quick, Log: quiet()}
	for _, fn := range change {
		fn(&o)
	}
	sv, err := NewServer(o)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p.sv, p.addr = sv, l.Addr().String()
	served := make(chan error, 1)
	go func() { served <- sv.Serve(l) }()
	t.Cleanup(func() {
		limit, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		if err := sv.Stop(limit); err != nil {
			t.Error(err)
		}
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return p
}

func (p *pair) lookup(volume string, epoch uint64) (Coordinator, error) {
	if volume != "v" || epoch != p.coord.epoch {
		return nil, fmt.Errorf("volume %s, epoch %d: %w", volume, epoch, protocol.ErrStale)
	}
	return p.coord, nil
}

func (p *pair) dial(ctx context.Context, address string) (net.Conn, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cut {
		return nil, unix.ECONNREFUSED
	}
	c, err := DialTCP(quick.Silence)(ctx, address)
	if err == nil {
		p.conns = append(p.conns, c)
		p.dials++
	}
	return c, err
}

// sever breaks every connection, and lets none be made until mend.
func (p *pair) sever() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut = true
	for _, c := range p.conns {
		_ = c.Close()
	}
	p.conns = nil
}

func (p *pair) mend() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut = false
}

func (p *pair) client(change ...func(*ClientOptions)) *Client {
	p.t.Helper()
	o := ClientOptions{Address: p.addr, TLS: p.ca.Config(p.t, "n2"), Volume: "v", Epoch: 5, Node: "n2", Incarnation: 1,
		Data: noData{}, Dial: p.dial, Timing: quick, Log: quiet()}
	for _, fn := range change {
		fn(&o)
	}
	c, err := Dial(o)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { _ = c.Close() })
	return c
}

func attach(t testing.TB, c *Client, path string) (*view, protocol.Call, protocol.HolderID) {
	t.Helper()
	h := &view{}
	g, id, err := c.Attach(ctx, "n2", path, h)
	if err != nil {
		t.Fatal(err)
	}
	h.start(t, g)
	return h, g.Call, id
}

// eventually waits until ok, not long.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("not in time: " + what)
		}
	}
}

func hole(at layout.Range) []layout.Extent {
	return []layout.Extent{{FileOff: at.Off, Len: at.Len, State: layout.Hole}}
}
