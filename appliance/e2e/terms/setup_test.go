package terms

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"lunar/datapath/coordinator"
	"lunar/datapath/device"
	"lunar/datapath/device/loopdev"
	"lunar/datapath/layout"
	"lunar/datapath/layout/protocol"
	"lunar/datapath/uring"
	"lunar/datapath/volume"
)

const mib = 1 << 20

var ctx = context.Background()

func TestMain(m *testing.M) {
	runtime.GOMAXPROCS(8) // each node's ring keeps a P while it waits, as if it was alone in the process
	goleak.VerifyTestMain(m)
}

// san is the LUN, the nodes that share it, and who is its coordinator.
type san struct {
	t     testing.TB
	file  string
	nodes []*node
	epoch uint64

	mu   sync.Mutex // guards lead, what is elected
	lead *lead
}

// lead is a coordinator and the node that it runs on.
type lead struct {
	*coordinator.Coordinator
	on     int
	failed chan error
}

// node is a node with the volume open.
type node struct {
	s       *san
	name    protocol.NodeID
	loop    *loopdev.Loop
	dev     *device.Device
	engine  *uring.Engine
	vol     *volume.Volume
	options volume.Options
}

// setting changes a node before it starts.
type setting func(*node)

// newSAN formats a LUN and starts nodes on it, which have no coordinator yet.
func newSAN(t testing.TB, nodes int, fs coordinator.FSType, settings ...setting) *san {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: attaches loop devices")
	}
	s := &san{t: t, file: filepath.Join(memory(t), "lun")}
	f, err := os.Create(s.file)
	s.must(errors.Join(err, f.Truncate(640*mib), f.Close()))
	for i := range nodes {
		s.nodes = append(s.nodes, s.newNode(i))
	}
	s.must(coordinator.Format(ctx, s.nodes[0].dev, coordinator.FormatOptions{FS: fs}))
	for _, n := range s.nodes {
		for _, set := range settings {
			set(n)
		}
		n.vol, err = volume.Open(ctx, n.options)
		s.must(err)
	}
	t.Cleanup(s.stop)
	return s
}

// memory is a folder in memory, so that what is measured is ours and not a busy disk's.
func memory(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "lunar-terms-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func (s *san) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *san) newNode(i int) *node {
	s.t.Helper()
	n := &node{s: s, name: protocol.NodeID(fmt.Sprintf("node%d", i))}
	var err error
	n.loop, err = loopdev.Attach(s.file, loopdev.Options{})
	s.must(err)
	n.dev, err = device.Open(n.loop.Path)
	s.must(err)
	n.engine, err = uring.Open(uring.Options{PoolBytes: 16 * mib, Deadline: 5 * time.Second, Log: quiet()})
	s.must(err)
	n.options = volume.Options{Name: "Volume1", Node: n.name, Device: n.dev, Engine: n.engine,
		Redirected: 30 * time.Second, Probe: 100 * time.Millisecond, Log: quiet()}
	return n
}

func quiet() *slog.Logger {
	if os.Getenv("LUNAR_TEST_LOG") != "" {
		return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelInfo}))
	}
	return slog.New(slog.DiscardHandler)
}

// stop ends all in order. Images are closed by their own clean-ups, which run before.
func (s *san) stop() {
	for _, n := range s.nodes {
		if err := n.vol.Close(); err != nil {
			s.t.Error(err)
		}
	}
	if s.lead != nil {
		if err := s.lead.Handover(ctx); err != nil && !errors.Is(err, coordinator.ErrClosed) {
			s.t.Error(err)
		}
	}
	for _, n := range s.nodes {
		limit, cancel := context.WithTimeout(ctx, 10*time.Second)
		if used := n.engine.Pool().InUse(); used != 0 {
			s.t.Errorf("%s: %d buffers leak", n.name, used)
		}
		if err := errors.Join(n.engine.Close(limit), n.dev.Close(), n.loop.Detach()); err != nil {
			s.t.Error(err)
		}
		cancel()
	}
}

// members are all nodes.
func (s *san) members() (all []protocol.NodeID) {
	for _, n := range s.nodes {
		all = append(all, n.name)
	}
	return all
}

// elect makes node on the coordinator, in the next term. Nobody follows yet.
func (s *san) elect(on int) *lead {
	s.t.Helper()
	s.epoch++
	l := &lead{on: on, failed: make(chan error, 1)}
	c, err := coordinator.Open(ctx, s.nodes[on].dev, coordinator.Options{Epoch: s.epoch, Members: s.members(), Twin: true,
		RecallTimeout: 10 * time.Second, Quiet: 100 * time.Millisecond, Log: quiet(), Failed: func(err error) { l.failed <- err }})
	s.must(err)
	l.Coordinator = c
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lead = l
	return l
}

// follow lets all nodes follow the coordinator, each through its own link.
func (s *san) follow(wrap func(volume.Coordinator) volume.Coordinator) {
	s.t.Helper()
	errs := make([]error, len(s.nodes))
	var all sync.WaitGroup
	for i, n := range s.nodes {
		all.Go(func() {
			var c volume.Coordinator = s.lead.Coordinator
			if wrap != nil {
				c = wrap(c)
			}
			limit, cancel := context.WithTimeout(ctx, 10*time.Second)
			defer cancel()
			errs[i] = n.vol.Follow(limit, c)
		})
	}
	all.Wait()
	s.must(errors.Join(errs...))
}

// begin elects a node and has it followed.
func (s *san) begin(on int) {
	s.t.Helper()
	s.elect(on)
	s.follow(nil)
}

// kill ends the coordinator as a power failure would.
func (s *san) kill() {
	s.t.Helper()
	s.must(s.lead.Shutdown())
	for _, n := range s.nodes {
		n.vol.Orphan()
	}
	s.bury()
}

// bury closes a coordinator that is dead.
func (s *san) bury() {
	if err := s.lead.Handover(ctx); err != nil && os.Getenv("LUNAR_TEST_LOG") != "" {
		s.t.Log("close after the shutdown:", err)
	}
	s.lead = nil
}

func (n *node) create(path string, size int64) {
	n.s.t.Helper()
	n.s.must(n.vol.Create(ctx, path, protocol.CreateOptions{Size: size}))
}

func (n *node) open(path string) *volume.Image {
	n.s.t.Helper()
	im, err := n.vol.OpenImage(ctx, path)
	n.s.must(err)
	n.s.t.Cleanup(func() {
		if err := im.Close(ctx); err != nil {
			n.s.t.Errorf("%s: close %s: %v", n.name, path, err)
		}
	})
	return im
}

// openAll opens an image on every node.
func (s *san) openAll(path string) (all []*volume.Image) {
	s.t.Helper()
	for _, n := range s.nodes {
		all = append(all, n.open(path))
	}
	return all
}

// io is one operation on an image's lane, with buffers of the pool.
func (n *node) io(im *volume.Image, p []byte, fn func(buf []byte, done func(error))) error {
	pool := n.engine.Pool()
	buf := pool.Get(len(p))
	if buf == nil {
		return errors.New("no buffer")
	}
	defer pool.Put(buf)
	copy(buf, p)
	result := make(chan error, 1)
	if err := n.engine.Ring(0).Post(func() { fn(buf, func(err error) { result <- err }) }); err != nil {
		return err
	}
	err := <-result
	copy(p, buf)
	return err
}

func (n *node) write(im *volume.Image, p []byte, off int64) error {
	return n.io(im, p, func(buf []byte, done func(error)) { im.Write(0, buf, off, false, done) })
}

func (n *node) read(im *volume.Image, off int64, size int) ([]byte, error) {
	p := make([]byte, size)
	err := n.io(im, p, func(buf []byte, done func(error)) { im.Read(0, buf, off, done) })
	return p, err
}

func (n *node) swap(im *volume.Image, expect, data []byte, off int64) (at int, err error) {
	err = n.io(im, data, func(buf []byte, done func(error)) {
		im.CompareAndWrite(0, expect, buf, off, false, func(miscompare int, err error) {
			at = miscompare
			done(err)
		})
	})
	return at, err
}

// flaky is a way to a coordinator on which calls and answers get lost, by seed; the calls of the
// other end are over all the same before the caller hears of it.
type flaky struct {
	volume.Coordinator
	mu   sync.Mutex // guards rng
	rng  *rand.Rand
	loss float64
	lost *atomic.Int64
}

var errLost = fmt.Errorf("lost by the test: %w", protocol.ErrUnreachable)

// call loses the call, or its answer, or nothing.
func (f *flaky) call(do func() error) error {
	f.mu.Lock()
	dice := f.rng.Float64()
	f.mu.Unlock()
	if dice < f.loss {
		f.lost.Add(1)
		return errLost
	}
	err := do()
	if dice < 2*f.loss {
		f.lost.Add(1)
		return errLost
	}
	return err
}

func (f *flaky) Read(ctx context.Context, call protocol.Call, p []byte, off int64) error {
	return f.call(func() error { return f.Coordinator.Read(ctx, call, p, off) })
}

func (f *flaky) Write(ctx context.Context, call protocol.Call, p []byte, off int64, fua bool) error {
	return f.call(func() error { return f.Coordinator.Write(ctx, call, p, off, fua) })
}

func (f *flaky) Flush(ctx context.Context, call protocol.Call) error {
	return f.call(func() error { return f.Coordinator.Flush(ctx, call) })
}

func (f *flaky) Unmap(ctx context.Context, call protocol.Call, ranges []layout.Range) error {
	return f.call(func() error { return f.Coordinator.Unmap(ctx, call, ranges) })
}

func (f *flaky) CompareAndWrite(ctx context.Context, call protocol.Call, expect, data []byte, off int64, fua bool) (at int, err error) {
	at = -1
	err = f.call(func() (err error) {
		at, err = f.Coordinator.CompareAndWrite(ctx, call, expect, data, off, fua)
		return err
	})
	return at, err
}

func (f *flaky) Create(ctx context.Context, m protocol.Meta, path string, o protocol.CreateOptions) error {
	return f.call(func() error { return f.Coordinator.Create(ctx, m, path, o) })
}

func (f *flaky) Delete(ctx context.Context, m protocol.Meta, path string) error {
	return f.call(func() error { return f.Coordinator.Delete(ctx, m, path) })
}

func (f *flaky) Rename(ctx context.Context, m protocol.Meta, from, to string) error {
	return f.call(func() error { return f.Coordinator.Rename(ctx, m, from, to) })
}

func (f *flaky) Resize(ctx context.Context, m protocol.Meta, path string, size int64, force bool) error {
	return f.call(func() error { return f.Coordinator.Resize(ctx, m, path, size, force) })
}

func (f *flaky) Clone(ctx context.Context, m protocol.Meta, from, to string) error {
	return f.call(func() error { return f.Coordinator.Clone(ctx, m, from, to) })
}

// losing makes links that lose a share of calls, and as many answers.
func (s *san) losing(loss float64, lost *atomic.Int64) func(volume.Coordinator) volume.Coordinator {
	var seed atomic.Uint64
	return func(c volume.Coordinator) volume.Coordinator {
		return &flaky{Coordinator: c, rng: rand.New(rand.NewPCG(s.epoch, seed.Add(1))), loss: loss, lost: lost}
	}
}

// patience is the least that a test waits for what ends by itself: the machine may be busy with other things.
const patience = time.Minute

func eventually(t testing.TB, limit time.Duration, what string, is func() bool) {
	t.Helper()
	limit = max(limit, patience)
	for until := time.Now().Add(limit); !is(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(until) {
			t.Fatal("not in time: ", what)
		}
	}
}

func pattern(n int, seed byte) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i*7) ^ byte(i>>8) ^ seed
	}
	return p
}
