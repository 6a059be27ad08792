package daemon

import (
	"context"
	"reflect"
	"sync/atomic"
	"testing"

	"lunar/appliance/api"
	"lunar/datapath/layout"
)

func TestWrittenUnits(t *testing.T) {
	const gib = 1 << 30
	var w written
	w.add(writtenUnit/2, writtenUnit)   // units 0 and 1
	w.add(gib-writtenUnit, writtenUnit) // the last of a page
	w.add(gib+2*writtenUnit, 512)
	for _, tt := range []struct {
		r    layout.Range
		want []layout.Range
	}{
		{layout.Range{Off: 0, Len: 4 * writtenUnit}, []layout.Range{{Off: 2 * writtenUnit, Len: 2 * writtenUnit}}},
		{layout.Range{Off: 2*writtenUnit + 1, Len: 2*writtenUnit - 2}, nil}, // no whole unit
		{layout.Range{Off: gib - 2*writtenUnit, Len: 5 * writtenUnit}, []layout.Range{
			{Off: gib - 2*writtenUnit, Len: writtenUnit}, {Off: gib, Len: 2 * writtenUnit}}},
		{layout.Range{Off: 5 * gib, Len: gib}, []layout.Range{{Off: 5 * gib, Len: gib}}},
		{layout.Range{}, nil},
	} {
		if got := w.unwritten(tt.r); !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%+v: %+v, want %+v", tt.r, got, tt.want)
		}
	}
}

// TestTransfersAreBounded: no more than the bound, none after a stop, and a stop ends those that are being opened.
func TestTransfersAreBounded(t *testing.T) {
	var all transfers
	var ended atomic.Int32
	for range maxTransfers {
		ctx, leave, err := all.enter(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		context.AfterFunc(ctx, func() {
			ended.Add(1)
			all.failed()
			leave()
		})
	}
	if _, _, err := all.enter(t.Context()); api.CodeOf(err) != api.Full {
		t.Errorf("one more: %v", err)
	}
	all.stop()
	if ended.Load() != maxTransfers {
		t.Errorf("%d of %d have ended when stop returned", ended.Load(), maxTransfers)
	}
	if _, _, err := all.enter(t.Context()); api.CodeOf(err) != api.Unavailable {
		t.Errorf("after the stop: %v", err)
	}
}
