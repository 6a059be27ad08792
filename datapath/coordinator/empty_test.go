package coordinator_test

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"lunar/datapath/coordinator"
	"lunar/datapath/layout/protocol"
)

// TestEmptyImage has an image begin without bytes, as a file that a program makes, and grow while it is open.
func TestEmptyImage(t *testing.T) {
	each(t, func(t *testing.T, v *volume) {
		if err := v.Create(ctx, v.meta(), "a/b", protocol.CreateOptions{Size: -512}); !errors.Is(err, coordinator.ErrSize) {
			t.Fatalf("negative size: %v", err)
		}
		o := v.image(t, "a/b", 0)
		if err := v.Resize(ctx, v.meta(), "a/b", mib, false); err != nil || o.layout().Size() != mib {
			t.Fatalf("grow: %v, %d", err, o.layout().Size())
		}
		o.write(t, pattern(4096, 1), mib-4096)
		v.Detach(ctx, o.call, o.id)
		if err := v.Resize(ctx, v.meta(), "a/b", 0, true); err != nil {
			t.Fatal(err)
		}
		if st, err := v.Stat(ctx, "a/b"); err != nil || st.Size != 0 || st.Used != 0 {
			t.Fatalf("%+v, %v", st, err)
		}
		if _, err := v.Stat(ctx, "a"); !errors.Is(err, unix.EISDIR) || !errors.Is(err, coordinator.ErrPath) {
			t.Fatalf("a folder: %v", err)
		}
	})
}
