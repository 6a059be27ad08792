package coordinator_test

import (
	"bytes"
	"testing"

	"lunar/datapath/coordinator"
	"lunar/datapath/layout"
)

// XFS takes writes of parts of blocks through the page cache once a file has shared blocks. What was
// acknowledged must be on the device all the same: holders read there.
func TestPartsOfBlocksMissThePageCache(t *testing.T) {
	const size, tail = mib + 512, mib
	steps := map[string]func(o *open, off int64, p []byte) error{
		"write": func(o *open, off int64, p []byte) error { return o.v.Write(ctx, o.call, p, off, false) },
		"compare and write": func(o *open, off int64, p []byte) error {
			_, err := o.v.CompareAndWrite(ctx, o.call, pattern(len(p), 9), p, off, false)
			return err
		},
		"unmap": func(o *open, off int64, p []byte) error {
			clear(p)
			return o.v.Unmap(ctx, o.call, []layout.Range{{Off: off, Len: int64(len(p))}})
		},
	}
	for name, step := range steps {
		t.Run(name, func(t *testing.T) {
			v := scratch(t, coordinator.XFS)
			o := v.image(t, "a", size)
			o.write(t, pattern(size, 1), 0)
			if err := o.copyTo(o, 8192, layout.Range{Len: 4096}); err != nil {
				t.Fatal(err)
			}
			for _, off := range []int64{512, 65536 + 512, tail} {
				o.write(t, pattern(512, 9), off)
				p := pattern(512, 5)
				if err := step(o, off, p); err != nil {
					t.Fatal(err)
				}
				l := o.granted(t, off)
				if e, _ := l.At(off); e.State != layout.Hole && !bytes.Equal(alignedRead(t, v.dev, l, off, 512), p) {
					t.Errorf("at %d the device has something else", off)
				}
				if !bytes.Equal(o.read(t, off, 512), p) {
					t.Errorf("at %d the image has something else", off)
				}
			}
		})
	}
}
