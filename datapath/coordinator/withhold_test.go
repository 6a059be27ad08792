package coordinator_test

import (
	"bytes"
	"errors"
	"testing"

	"lunar/datapath/coordinator"
	"lunar/datapath/device/loopdev"
	"lunar/datapath/layout"
)

// direct is how much of an image a holder may reach on the device.
func (o *open) direct() int64 {
	l := o.layout()
	return l.Bytes(layout.Written) + l.Bytes(layout.Shared)
}

// Nothing is direct from the return of Withhold until Grant: not what is written meanwhile, and not what is
// opened meanwhile.
func TestWithholdLeavesNothingDirect(t *testing.T) {
	each(t, func(t *testing.T, v *volume) {
		a := v.image(t, "a", 4*mib)
		a.write(t, pattern(2*mib, 1), 0)
		b := v.image(t, "b", mib)
		b.write(t, pattern(mib, 2), 0)
		if a.direct() < 2*mib || b.direct() != mib {
			t.Fatalf("%d and %d bytes direct before", a.direct(), b.direct())
		}
		recalls := len(b.recalls)
		if err := v.Withhold(ctx); err != nil {
			t.Fatal(err)
		}
		again := v.attach(t, "a")
		a.write(t, pattern(mib, 3), 3*mib)
		for name, o := range map[string]*open{"a": a, "b": b, "a, attached meanwhile": again} {
			if n := o.direct(); n != 0 {
				t.Errorf("%d bytes of %s are direct while the volume is withheld", n, name)
			}
		}
		if len(b.recalls) != recalls+1 {
			t.Errorf("%d recalls of an image that was withheld", len(b.recalls)-recalls)
		}
		if e, _ := b.layout().At(0); e.State != layout.Withheld {
			t.Errorf("%v is granted", e)
		}
		if err := v.Grant(ctx); err != nil {
			t.Fatal(err)
		}
		if a.direct() < 3*mib || again.direct() < 3*mib || b.direct() != mib {
			t.Errorf("%d, %d and %d bytes direct afterwards", a.direct(), again.direct(), b.direct())
		}
		if got := a.read(t, 3*mib, mib); !bytes.Equal(got, pattern(mib, 3)) {
			t.Error("what was written meanwhile is not there")
		}
	})
}

// A holder that does not return its layout fails Withhold, and Grant puts all back.
func TestWithholdTellsWhoDoesNotReturn(t *testing.T) {
	v := mountWith(t, format(t, coordinator.XFS, 400*mib, loopdev.Options{}), coordinator.Options{Epoch: 1, AnswerTimeout: 10e6, RecallTimeout: 20e6})
	a := v.image(t, "a", mib)
	a.write(t, pattern(mib, 1), 0)
	a.mu.Lock()
	a.refuse = errors.New("busy")
	a.mu.Unlock()
	if err := v.Withhold(ctx); !errors.Is(err, coordinator.ErrRecall) {
		t.Fatal(err)
	}
	a.mu.Lock()
	a.refuse = nil
	a.mu.Unlock()
	if err := v.Grant(ctx); err != nil {
		t.Fatal(err)
	}
	if a.direct() != mib {
		t.Errorf("%d bytes direct afterwards", a.direct())
	}
}

// A term that begins withheld grants nothing before Grant.
func TestTermBeginsWithheld(t *testing.T) {
	d := format(t, coordinator.XFS, 400*mib, loopdev.Options{})
	v := mountWith(t, d, coordinator.Options{Epoch: 1, Withheld: true})
	a := v.image(t, "a", mib)
	a.write(t, pattern(mib, 1), 0)
	if n := a.direct(); n != 0 {
		t.Fatalf("%d bytes direct", n)
	}
	if err := v.Grant(ctx); err != nil {
		t.Fatal(err)
	}
	if a.direct() != mib {
		t.Errorf("%d bytes direct afterwards", a.direct())
	}
}
