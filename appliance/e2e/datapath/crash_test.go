package datapath

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"strconv"
	"strings"
	"testing"

	"lunar/datapath/coordinator"
	"lunar/datapath/device"
	"lunar/datapath/layout/protocol"
	"lunar/datapath/uring"
	"lunar/datapath/volume"
)

const (
	crashSlots = 4096 // of 4 KiB, each written with its number and a count
	crashSlot  = 4096
)

// slot is the content of slot i in its nth version.
func slot(i int, n uint64) []byte {
	p := bytes.Repeat([]byte{byte(i), byte(n), 0x5a, 0xa5}, crashSlot/4)
	binary.LittleEndian.PutUint64(p, uint64(i))
	binary.LittleEndian.PutUint64(p[8:], n)
	return p
}

// openForCrash opens an image, made if need be, on a node that is never stopped in order.
func openForCrash(path string, epoch uint64, name string, size int64) (n *node, im *volume.Image, err error) {
	n = &node{}
	if n.dev, err = device.Open(path); err != nil {
		return nil, nil, err
	}
	if n.engine, err = uring.Open(uring.Options{Rings: 2, PoolBytes: 8 * mib, Log: quiet()}); err != nil {
		return nil, nil, err
	}
	if n.coord, err = coordinator.Open(ctx, n.dev, coordinator.Options{Epoch: epoch, Log: quiet()}); err != nil {
		return nil, nil, err
	}
	if n.vol, err = volume.Open(ctx, volume.Options{Name: "v", Device: n.dev, Coordinator: n.coord, Engine: n.engine, Log: quiet()}); err != nil {
		return nil, nil, err
	}
	_ = n.vol.Create(ctx, name, protocol.CreateOptions{Size: size})
	im, err = n.vol.OpenImage(ctx, name)
	return n, im, err
}

type writer struct {
	im     *volume.Image
	engine *uring.Engine
}

func (w *writer) write(p []byte, off int64, fua bool) error {
	buf := w.engine.Pool().Get(len(p))
	defer w.engine.Pool().Put(buf)
	copy(buf, p)
	done := make(chan error, 1)
	if err := w.engine.Ring(0).Post(func() { w.im.Write(0, buf, off, fua, func(err error) { done <- err }) }); err != nil {
		return err
	}
	return <-done
}

func waitUnused(t *testing.T, path string) {
	t.Helper()
	d, err := device.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := d.WaitUnused(ctx); err != nil {
		t.Fatal(err)
	}
}

func checkDurable(t *testing.T, path string, epoch uint64, durable map[int]uint64) {
	t.Helper()
	n := start(t, path, epoch)
	defer n.stop()
	im := n.open("a")
	for i, want := range durable {
		p := read(t, im, int64(i)*2*crashSlot, crashSlot)
		got := binary.LittleEndian.Uint64(p[8:])
		if got < want || !bytes.Equal(p, slot(i, got)) {
			t.Fatalf("Durable: slot %d has version %d, %d was acknowledged as durable", i, got, want)
		}
	}
	if err := im.Close(ctx); err != nil {
		t.Fatal(err)
	}
}

// TestPowerFailure shuts the file system down in the middle of writes, without a log flush. Writes
// with FUA follow those that allocated their blocks: CommitBeforeGrant keeps them.
func TestPowerFailure(t *testing.T) {
	each(t, func(t *testing.T, fs coordinator.FSType) {
		loop := scratchDevice(t, fs, 400*mib)
		n := start(t, loop.Path, 1)
		im := n.create("a", 2*crashSlots*crashSlot)
		w := writer{im: im, engine: n.engine}
		durable := map[int]uint64{}
		for i := range 100 {
			at, n := i*37%crashSlots, uint64(2*i+2)
			for version, fua := range []bool{false, true} {
				if err := w.write(slot(at, n+uint64(version)), int64(at)*2*crashSlot, fua); err != nil {
					t.Fatal(err)
				}
			}
			durable[at] = n + 1
		}
		powerFailure(t, n, im)
		checkDurable(t, loop.Path, 2, durable)
	})
}

// powerFailure ends a node as if its power was cut.
func powerFailure(t *testing.T, n *node, im *volume.Image) {
	t.Helper()
	if err := n.coord.Shutdown(); err != nil {
		t.Fatal(err)
	}
	if _, err := im.WriteAt(make([]byte, 512), im.Size()-512); err == nil {
		t.Error("a write that allocates went through after the shutdown")
	}
	n.stopAfterPowerFailure(im)
}

// stopAfterPowerFailure ends a node whose file system is down; unmounting it may complain.
func (n *node) stopAfterPowerFailure(images ...*volume.Image) {
	for _, im := range images {
		_ = im.Close(ctx)
	}
	n.t = ignoreErrors{n.t}
	n.stop()
}

// TestFlushKeepsAnUnmap takes the power away after an unmap and a flush: it must not come undone.
func TestFlushKeepsAnUnmap(t *testing.T) {
	each(t, func(t *testing.T, fs coordinator.FSType) {
		loop := scratchDevice(t, fs, 400*mib)
		n := start(t, loop.Path, 1)
		im := n.create("a", 64*mib)
		write(t, im, pattern(4*mib, 1), 0)
		if err := errors.Join(im.Sync(), im.Discard(mib, mib), im.Sync()); err != nil {
			t.Fatal(err)
		}
		powerFailure(t, n, im)
		again := start(t, loop.Path, 2)
		got := read(t, again.open("a"), mib, mib)
		if !bytes.Equal(got, make([]byte, mib)) {
			t.Fatal("Durable: the unmapped range came back")
		}
	})
}

// TestFUAAndFlushReachTheDevice counts the cache flushes that the kernel sent it.
func TestFUAAndFlushReachTheDevice(t *testing.T) {
	loop := scratchDevice(t, coordinator.XFS, 400*mib)
	n := start(t, loop.Path, 1)
	im := n.create("a", 64*mib)
	write(t, im, pattern(mib, 1), 0)
	if err := im.Sync(); err != nil {
		t.Fatal(err)
	}
	w := writer{im: im, engine: n.engine}
	for name, c := range map[string]struct {
		do   func() error
		want bool
	}{
		"write":      {func() error { return w.write(slot(1, 1), 0, false) }, false},
		"FUA write":  {func() error { return w.write(slot(1, 2), 0, true) }, true},
		"flush":      {im.Sync, true},
		"redirected": {func() error { return w.write(slot(1, 3), 32*mib, true) }, true},
	} {
		before := flushes(t, loop.Path)
		if err := c.do(); err != nil {
			t.Fatal(err)
		}
		if got := flushes(t, loop.Path) > before; got != c.want {
			t.Errorf("%s: flushed %v, want %v", name, got, c.want)
		}
	}
}

// flushes is how many cache flushes a block device was sent, from sysfs.
func flushes(t *testing.T, path string) int64 {
	t.Helper()
	b, err := os.ReadFile("/sys/block/" + strings.TrimPrefix(path, "/dev/") + "/stat")
	if err != nil {
		t.Fatal(err)
	}
	f := strings.Fields(string(b))
	if len(f) < 16 {
		t.Skip("the kernel does not count flushes")
	}
	n, err := strconv.ParseInt(f[15], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// ignoreErrors is a test that does not mind.
type ignoreErrors struct{ testing.TB }

func (ignoreErrors) Error(...any)          {}
func (ignoreErrors) Errorf(string, ...any) {}
