package coordinator_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"lunar/datapath/coordinator"
	"lunar/datapath/device"
	"lunar/datapath/layout"
)

// fragmented is an image whose parts were allocated in another order than they have in the file.
func fragmented(t testing.TB, v *volume, path string, size int64) (*open, []byte) {
	t.Helper()
	o := v.image(t, path, size)
	want := pattern(int(size), 1)
	for _, i := range rand.New(rand.NewPCG(1, 1)).Perm(int(size / mib)) {
		at := int64(i) * mib
		if i%7 == 3 { // stays a hole, as far as nothing is allocated ahead
			clear(want[at : at+mib])
			continue
		}
		o.write(t, want[at:at+mib], at)
	}
	return o, want
}

// An image that is written meanwhile gets fewer extents, and keeps what it has.
func TestDefragmentWhileTheImageIsWritten(t *testing.T) {
	each(t, func(t *testing.T, v *volume) {
		o, want := fragmented(t, v, "a", 48*mib)
		stop := make(chan struct{})
		var writer sync.WaitGroup
		writer.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				at := int64(i%(48*256)) * 4096
				p := pattern(4096, byte(i))
				o.write(t, p, at)
				copy(want[at:], p)
			}
		})
		looks := 0
		m, err := v.Defragment(ctx, "n1", "a", func(coordinator.Moved) { looks++ })
		close(stop)
		writer.Wait()
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%+v", m)
		if m.Before < 10 || m.Now*2 > m.Before || m.Moved == 0 || looks < 4 {
			t.Errorf("%+v, told %d times", m, looks)
		}
		if got := o.read(t, 0, 48*mib); !bytes.Equal(got, want) {
			t.Error("the content is another one")
		}
		if n := o.layout().Bytes(layout.Shared); n != 0 {
			t.Errorf("%d bytes are shared", n)
		}
		for e := range o.layout().All() { // what was granted is where the content is
			if e.State != layout.Written {
				continue
			}
			p := alignedFor(int(e.Len))
			if _, err := v.dev.ReadAt(p, e.DevOff); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(p, want[e.FileOff:e.End()]) {
				t.Fatalf("%v has another content on the device", e)
			}
		}
	})
}

func alignedFor(n int) []byte { return aligned(make([]byte, n)) }

// What a snapshot shares is not moved: that would copy it.
func TestDefragmentLeavesWhatSnapshotsShare(t *testing.T) {
	v := scratch(t, coordinator.XFS)
	o, want := fragmented(t, v, "a", 16*mib)
	v.take(t, "s", "a")
	m, err := v.Defragment(ctx, "n1", "a", func(coordinator.Moved) {})
	if err != nil || m.Moved != 0 || m.Now != m.Before {
		t.Errorf("%+v, %v", m, err)
	}
	if !bytes.Equal(o.read(t, 0, 16*mib), want) || !bytes.Equal(v.content(t, "s", "a", 16*mib), want) {
		t.Error("the content is another one")
	}
}

func TestDefragmentEndsWithItsCaller(t *testing.T) {
	v := scratch(t, coordinator.XFS)
	_, want := fragmented(t, v, "a", 32*mib)
	short, cancel := context.WithCancel(ctx)
	if _, err := v.Defragment(short, "n1", "a", func(m coordinator.Moved) {
		if m.Moved > 0 {
			cancel()
		}
	}); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	o := v.attach(t, "a")
	if !bytes.Equal(o.read(t, 0, 32*mib), want) {
		t.Error("the content is another one")
	}
	if _, err := v.Defragment(ctx, "n1", "none", nil); !errors.Is(err, coordinator.ErrNotFound) {
		t.Error(err)
	}
}

// Trim gives what was deleted back to a thin device, and nothing of what is there.
func TestTrim(t *testing.T) {
	each(t, func(t *testing.T, v *volume) {
		keep := v.image(t, "keep", 16*mib)
		keep.write(t, pattern(16*mib, 1), 0)
		gone := v.image(t, "gone", 64*mib)
		gone.write(t, pattern(64*mib, 2), 0)
		if err := v.Detach(ctx, gone.call, gone.id); err != nil {
			t.Fatal(err)
		}
		if err := v.Delete(ctx, v.meta(), "gone"); err != nil {
			t.Fatal(err)
		}
		before := allocated(t, v.dev)
		eventually(t, "the backing file shrinks", func() bool { // XFS frees a deleted file a little later
			looked := int64(0)
			n, err := v.Trim(ctx, func(at, _ int64) { looked = at })
			if err != nil {
				t.Fatal(err)
			}
			after := allocated(t, v.dev)
			t.Logf("%d MiB discarded, the backing file had %d MiB and has %d", n>>20, before>>20, after>>20)
			if looked < 399*mib {
				t.Errorf("looked at %d bytes", looked)
			}
			return before-after > 60*mib && n > 64*mib
		})
		if !bytes.Equal(keep.read(t, 0, 16*mib), pattern(16*mib, 1)) {
			t.Error("what is there was discarded")
		}
	})
}

// allocated is what the file behind a loop device takes.
func allocated(t testing.TB, d *device.Device) int64 {
	t.Helper()
	if err := d.Sync(); err != nil {
		t.Fatal(err)
	}
	name, err := os.ReadFile("/sys/block/" + d.Path[len("/dev/"):] + "/loop/backing_file")
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(string(bytes.TrimSpace(name)), &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}
