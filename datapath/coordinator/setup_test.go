package coordinator_test

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"time"

	"lunar/datapath/coordinator"
	"lunar/datapath/device"
	"lunar/datapath/device/loopdev"
	"lunar/datapath/layout"
	"lunar/datapath/layout/protocol"
)

var ctx = context.Background()

var fileSystems = []coordinator.FSType{coordinator.XFS, coordinator.Ext4}

// volume is a mounted scratch volume.
type volume struct {
	*coordinator.Coordinator
	dev  *device.Device
	path string
}

func openDevice(t testing.TB, path string) *device.Device {
	t.Helper()
	d, err := device.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func format(t testing.TB, fs coordinator.FSType, size int64, o loopdev.Options) *device.Device {
	t.Helper()
	d := openDevice(t, loopdev.Scratch(t, size, o).Path)
	if err := coordinator.Format(ctx, d, coordinator.FormatOptions{FS: fs}); err != nil {
		t.Fatal(err)
	}
	return d
}

func mountAt(t testing.TB, d *device.Device, epoch uint64) *volume {
	t.Helper()
	return mountWith(t, d, coordinator.Options{Epoch: epoch, Quiet: time.Millisecond})
}

func mountWith(t testing.TB, d *device.Device, o coordinator.Options) *volume {
	t.Helper()
	o.Log = slog.New(slog.DiscardHandler)
	c, err := coordinator.Open(ctx, d, o)
	if err != nil {
		t.Fatal(err)
	}
	v := &volume{Coordinator: c, dev: d, path: d.Path}
	t.Cleanup(func() { c.Close(ctx) })
	return v
}

func scratch(t testing.TB, fs coordinator.FSType) *volume {
	return mountAt(t, format(t, fs, 400<<20, loopdev.Options{}), 1)
}

// holder records what it is told, as a node without I/O would.
type holder struct {
	mu      sync.Mutex
	view    *protocol.View
	recalls []protocol.Recall
	refuse  error
}

func (h *holder) Recall(_ context.Context, r protocol.Recall) (err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.recalls = append(h.recalls, r)
	if h.refuse != nil {
		return h.refuse
	}
	h.view, err = h.view.Recalled(r)
	return err
}

func (h *holder) Publish(g protocol.Grant) {
	h.mu.Lock()
	defer h.mu.Unlock()
	next, err := h.view.Granted(g)
	if err != nil {
		panic(err)
	}
	h.view = next
}

func (h *holder) layout() *layout.Layout {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.view.Layout
}

// open is an image that a holder has open.
type open struct {
	*holder
	v    *volume
	call protocol.Call
	id   protocol.HolderID
}

// meta goes with a new change of the name space.
func (v *volume) meta() protocol.Meta {
	return protocol.Meta{Key: protocol.NewKey(), Epoch: v.Epoch()}
}

func (v *volume) attach(t testing.TB, path string) *open {
	t.Helper()
	h := &holder{}
	h.mu.Lock() // a recall that comes before the view is there waits for it
	defer h.mu.Unlock()
	g, id, err := v.Attach(ctx, "n1", path, h)
	if err != nil {
		t.Fatal(err)
	}
	if h.view, err = protocol.NewView(g); err != nil {
		t.Fatal(err)
	}
	o := &open{holder: h, v: v, call: g.Call, id: id}
	t.Cleanup(func() { v.Detach(ctx, o.call, o.id) })
	return o
}

func (v *volume) image(t testing.TB, path string, size int64) *open {
	t.Helper()
	if err := v.Create(ctx, v.meta(), path, protocol.CreateOptions{Size: size}); err != nil {
		t.Fatal(err)
	}
	return v.attach(t, path)
}

// granted waits until the coordinator withholds nothing at off.
func (o *open) granted(t testing.TB, off int64) *layout.Layout {
	t.Helper()
	eventually(t, "a grant", func() bool { e, _ := o.layout().At(off); return e.State != layout.Withheld })
	return o.layout()
}

// eventually waits for what others have to do.
func eventually(t testing.TB, what string, fn func() bool) {
	t.Helper()
	for until := time.Now().Add(time.Minute); !fn(); time.Sleep(time.Millisecond) {
		if time.Now().After(until) {
			t.Fatal("in vain: ", what)
		}
	}
}

func (o *open) write(t testing.TB, p []byte, off int64) {
	t.Helper()
	if err := o.v.Write(ctx, o.call, p, off, false); err != nil {
		t.Fatal(err)
	}
}

func (o *open) read(t testing.TB, off int64, n int) []byte {
	t.Helper()
	p := make([]byte, n)
	if err := o.v.Read(ctx, o.call, p, off); err != nil {
		t.Fatal(err)
	}
	return p
}

// each runs a test on both file systems.
func each(t *testing.T, fn func(t *testing.T, v *volume)) {
	for _, fs := range fileSystems {
		t.Run(string(fs), func(t *testing.T) { fn(t, scratch(t, fs)) })
	}
}

func pattern(n int, seed byte) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i*7) ^ byte(i>>8) ^ seed
	}
	return p
}
