package volume

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"lunar/datapath/layout"
	"lunar/datapath/layout/protocol"
)

// The tests with a coordinator are in appliance/e2e/datapath.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestMergeJoinsRangesThatTouch(t *testing.T) {
	var all []unmap
	for _, r := range []layout.Range{{Off: 4096, Len: 4096}, {Off: 0, Len: 4096}, {Off: 20480, Len: 512}, {Off: 6000, Len: 1000}, {Off: 8192, Len: 8}} {
		all = append(all, unmap{Range: r})
	}
	want := []layout.Range{{Off: 0, Len: 8200}, {Off: 20480, Len: 512}}
	if got := merge(all); !slices.Equal(got, want) {
		t.Fatalf("%v, want %v", got, want)
	}
}

func TestUnmapsGatherWhileOneRuns(t *testing.T) {
	var q unmaps
	for i := range maxUnmaps {
		begin, err := q.add(unmap{})
		if err != nil || begin != (i == 0) {
			t.Fatal(i, begin, err)
		}
	}
	if _, err := q.add(unmap{}); !errors.Is(err, ErrBusy) {
		t.Fatal("no bound", err)
	}
	if n := len(q.take()); n != maxUnmaps {
		t.Fatal(n)
	}
	if begin, _ := q.add(unmap{}); begin {
		t.Fatal("two runs at once")
	}
	if len(q.take()) != 1 || len(q.take()) != 0 {
		t.Fatal("lost one")
	}
	if begin, _ := q.add(unmap{}); !begin {
		t.Fatal("nobody runs")
	}
}

func TestWorkersRunEverythingThatTheyAccepted(t *testing.T) {
	w := startWorkers(3, 8)
	var ran atomic.Int32
	gate := make(chan struct{})
	accepted := int32(0)
	for range 100 {
		if w.try(func() { <-gate; ran.Add(1) }) {
			accepted++
		}
	}
	if accepted < 8 || accepted > 11 {
		t.Fatalf("a queue of 8 and 3 workers accepted %d", accepted)
	}
	close(gate)
	w.stop()
	if ran.Load() != accepted {
		t.Fatalf("ran %d of %d", ran.Load(), accepted)
	}
}

func TestReasonNames(t *testing.T) {
	if got := (UserRequest | InitialisingLayout).String(); got != "UserRequest,InitialisingLayout" || Reason(0).String() != "" {
		t.Fatal(got)
	}
}

func TestOptionsAreChecked(t *testing.T) {
	if _, err := Open(context.Background(), Options{}); !errors.Is(err, unix.EINVAL) {
		t.Fatal(err)
	}
}

// TestGrantsBeforeStartCount has a recall and its grant come between the first grant and start.
func TestGrantsBeforeStartCount(t *testing.T) {
	im := newImage(&Volume{}, "a")
	r := layout.Range{Len: 4096}
	if err := im.Recall(context.Background(), protocol.Recall{Number: 1, Range: r}); err != nil {
		t.Fatal(err)
	}
	im.Publish(protocol.Grant{Generation: 2, Size: 8192, Range: r, Ends: 1,
		Extents: []layout.Extent{{DevOff: 1 << 20, Len: 4096, State: layout.Written}}})
	if err := im.start(protocol.Grant{Generation: 1, Size: 8192, Range: layout.Range{Len: 8192}}, 1); err != nil {
		t.Fatal(err)
	}
	if e, _ := im.Layout().At(0); e.State != layout.Written || im.view.Load().Recalls() != 0 {
		t.Fatalf("%v, %d recalls", e, im.view.Load().Recalls())
	}
}
