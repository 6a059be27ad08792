// Package datapath has the data path's tests that need all of it: engine, coordinator and volume on
// a real file system on a real loop device. They are here because volume and coordinator do not know
// each other.
package datapath

import (
	"context"
	"io"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"lunar/datapath/coordinator"
	"lunar/datapath/device"
	"lunar/datapath/device/loopdev"
	"lunar/datapath/layout/protocol"
	"lunar/datapath/uring"
	"lunar/datapath/volume"
)

const mib = 1 << 20

var ctx = context.Background()

var fileSystems = []coordinator.FSType{coordinator.XFS, coordinator.Ext4}

func TestMain(m *testing.M) {
	if os.Getenv(tortureEnv) != "" {
		tortureChild()
		return
	}
	goleak.VerifyTestMain(m)
}

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

// node is one node with one volume open.
type node struct {
	t       testing.TB
	dev     *device.Device
	engine  *uring.Engine
	coord   *coordinator.Coordinator
	vol     *volume.Volume
	closed  bool
	options volume.Options
	away    func() // ends the way to the coordinator, if it is over the wire
}

// setting changes a node before it starts.
type setting func(*node)

func lanes(wrap func(i int, r *uring.Ring) volume.Lane) setting {
	return func(n *node) {
		n.options.Lanes = nil
		for i := range n.engine.Rings() {
			n.options.Lanes = append(n.options.Lanes, wrap(i, n.engine.Ring(i)))
		}
	}
}

// scratchDevice is a formatted loop device.
func scratchDevice(t testing.TB, fs coordinator.FSType, size int64) *loopdev.Loop {
	t.Helper()
	l := loopdev.Scratch(t, size, loopdev.Options{})
	formatDevice(t, l.Path, fs)
	return l
}

func formatDevice(t testing.TB, path string, fs coordinator.FSType) {
	t.Helper()
	d, err := device.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := coordinator.Format(ctx, d, coordinator.FormatOptions{FS: fs, Force: true}); err != nil {
		t.Fatal(err)
	}
}

// start opens the volume on the device at path.
func start(t testing.TB, path string, epoch uint64, settings ...setting) *node {
	t.Helper()
	n := &node{t: t}
	var err error
	if n.dev, err = device.Open(path); err != nil {
		t.Fatal(err)
	}
	if n.engine, err = uring.Open(uring.Options{Rings: 2, PoolBytes: 32 * mib, Deadline: 5 * time.Second, Log: quiet()}); err != nil {
		t.Fatal(err)
	}
	if n.coord, err = coordinator.Open(ctx, n.dev, coordinator.Options{Epoch: epoch, RecallTimeout: 10 * time.Second, Log: quiet()}); err != nil {
		t.Fatal(err)
	}
	n.options = volume.Options{Name: "Volume1", Device: n.dev, Coordinator: n.coord, Engine: n.engine,
		Redirected: 20 * time.Second, Probe: 50 * time.Millisecond, Log: quiet()}
	if overWire {
		n.goAway()
	}
	for _, s := range settings {
		s(n)
	}
	if n.vol, err = volume.Open(ctx, n.options); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.stop)
	return n
}

// stop ends the node in order; a second stop does nothing.
func (n *node) stop() {
	if n.closed {
		return
	}
	n.closed = true
	if err := n.vol.Close(); err != nil {
		n.t.Error(err)
	}
	if n.away != nil {
		n.away()
	}
	if err := n.coord.Close(ctx); err != nil {
		n.t.Error(err)
	}
	limit, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if used := n.engine.Pool().InUse(); used != 0 {
		n.t.Errorf("%d buffers leak", used)
	}
	if err := n.engine.Close(limit); err != nil {
		n.t.Error(err)
	}
	if err := n.dev.Close(); err != nil {
		n.t.Error(err)
	}
}

func (n *node) create(path string, size int64) *volume.Image {
	n.t.Helper()
	if err := n.vol.Create(ctx, path, protocol.CreateOptions{Size: size}); err != nil {
		n.t.Fatal(err)
	}
	return n.open(path)
}

func (n *node) open(path string) *volume.Image {
	n.t.Helper()
	im, err := n.vol.OpenImage(ctx, path)
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { im.Close(ctx) })
	return im
}

// sectors is how much was read from and written to a block device, from sysfs.
func sectors(t testing.TB, path string) (read, written int64) {
	t.Helper()
	b, err := os.ReadFile("/sys/block/" + strings.TrimPrefix(path, "/dev/") + "/stat")
	if err != nil {
		t.Fatal(err)
	}
	f := strings.Fields(string(b))
	read, _ = strconv.ParseInt(f[2], 10, 64)
	written, _ = strconv.ParseInt(f[6], 10, 64)
	return read, written
}

func each(t *testing.T, fn func(t *testing.T, fs coordinator.FSType)) {
	for _, fs := range fileSystems {
		t.Run(string(fs), func(t *testing.T) { fn(t, fs) })
	}
}

func pattern(n int, seed byte) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i*7) ^ byte(i>>8) ^ seed
	}
	return p
}

func write(t testing.TB, im *volume.Image, p []byte, off int64) {
	t.Helper()
	if n, err := im.WriteAt(p, off); err != nil || n != len(p) {
		t.Fatalf("write %d at %d: %d, %v", len(p), off, n, err)
	}
}

func read(t testing.TB, im *volume.Image, off int64, n int) []byte {
	t.Helper()
	p := make([]byte, n)
	if m, err := im.ReadAt(p, off); err != nil || m != n {
		t.Fatalf("read %d at %d: %d, %v", n, off, m, err)
	}
	return p
}
