package volume

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync/atomic"
	"testing"
	"time"

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
		if err := q.add(unmap{}); err != nil {
			t.Fatal(i, err)
		}
	}
	if err := q.add(unmap{}); !errors.Is(err, ErrBusy) {
		t.Fatal("no bound", err)
	}
	if n := len(q.take()); n != maxUnmaps {
		t.Fatal(n)
	}
	if err := q.add(unmap{}); err != nil || q.take() != nil {
		t.Fatal("two runs at once", err)
	}
	if q.running = false; len(q.take()) != 1 {
		t.Fatal("lost one")
	}
	if q.running = false; q.take() != nil {
		t.Fatal("runs with nothing to do")
	}
}

func TestWorkersRunEverything(t *testing.T) {
	w := startWorkers(3, 100)
	var ran atomic.Int32
	for range 100 {
		w.run(func() { ran.Add(1) })
	}
	w.stop()
	if ran.Load() != 100 {
		t.Fatalf("ran %d of 100", ran.Load())
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

// testVolume has neither lanes nor a disk.
func testVolume(epoch uint64) *Volume {
	v := &Volume{opts: Options{Log: slog.New(slog.DiscardHandler)}, images: map[protocol.ImageID]*Image{}}
	v.term.Store(newTerm(nil, epoch))
	return v
}

func wholeGrant(epoch uint64) protocol.Grant {
	return protocol.Grant{Call: protocol.Call{Image: 1, Epoch: epoch}, Generation: 1, Size: 8192, Range: layout.Range{Len: 8192}}
}

// TestGrantsBeforeTheFirstCountsAreKept has a recall and its grant come between the first grant and begin.
func TestGrantsBeforeTheFirstCountsAreKept(t *testing.T) {
	v := testVolume(1)
	im := newImage(v, "a")
	a := im.attachment(v.term.Load())
	r := layout.Range{Len: 4096}
	if err := a.Recall(context.Background(), protocol.Recall{Call: protocol.Call{Epoch: 1}, Number: 1, Range: r}); err != nil {
		t.Fatal(err)
	}
	a.Publish(protocol.Grant{Call: protocol.Call{Epoch: 1}, Generation: 2, Size: 8192, Range: r, Ends: 1,
		Extents: []layout.Extent{{DevOff: 1 << 20, Len: 4096, State: layout.Written}}})
	if err := a.begin(wholeGrant(1), 1); err != nil {
		t.Fatal(err)
	}
	if e, _ := im.Layout().At(0); e.State != layout.Written || im.view.Load().Recalls() != 0 {
		t.Fatalf("%v, %d recalls", e, im.view.Load().Recalls())
	}
}

// TestTermsDoNotMix follows an image through a change of term, message by message.
func TestTermsDoNotMix(t *testing.T) {
	ctx, v := context.Background(), testVolume(1)
	im := newImage(v, "a")
	old := im.attachment(v.term.Load())
	if err := old.begin(wholeGrant(1), 1); err != nil {
		t.Fatal(err)
	}
	v.images[1] = im
	first, second := layout.Range{Len: 4096}, layout.Range{Off: 4096, Len: 4096}
	recall := func(epoch, number uint64, r layout.Range) protocol.Recall {
		return protocol.Recall{Call: protocol.Call{Epoch: epoch}, Number: number, Range: r}
	}
	ends := func(epoch, generation, number uint64, r layout.Range) protocol.Grant {
		return protocol.Grant{Call: protocol.Call{Epoch: epoch}, Generation: generation, Size: 8192, Range: r, Ends: number}
	}
	if err := old.Recall(ctx, recall(1, 7, first)); err != nil || !im.view.Load().Waits(first) {
		t.Fatal(err)
	}
	v.term.Store(newTerm(nil, 2))
	next := im.attachment(v.term.Load())
	if err := next.Recall(ctx, recall(2, 7, second)); err != nil || !im.view.Load().Waits(second) {
		t.Fatal("RecallBeforeChange: I/O goes on by the old view in a range that the new term took back", err)
	}
	if old.Publish(ends(1, 2, 7, second)); !im.view.Load().Waits(second) {
		t.Fatal("EpochOrder: an old coordinator's grant ended a new one's recall")
	}
	if err := old.Recall(ctx, recall(1, 8, second)); !errors.Is(err, protocol.ErrStale) {
		t.Fatal("EpochOrder: an old coordinator was given something back:", err)
	}
	if err := next.begin(wholeGrant(2), 1); err != nil {
		t.Fatal(err)
	}
	if view := im.view.Load(); view.Waits(first) || !view.Waits(second) {
		t.Fatal("a recall of the old term goes on, or one of the new has ended")
	}
	if next.Publish(ends(2, 2, 7, second)); im.view.Load().Waits(second) {
		t.Fatal("not granted")
	}
	if err := next.Recall(ctx, recall(2, 7, second)); err != nil || im.view.Load().Waits(second) {
		t.Fatal("a recall that was asked again after its end would never end", err)
	}
	if err := old.Recall(ctx, recall(1, 9, first)); err != nil || im.view.Load().Waits(first) {
		t.Fatal("what was left holds nothing", err)
	}
}

// registrar is a coordinator's connection that notes which holders were taken off it.
type registrar struct {
	Coordinator
	detached []protocol.HolderID
}

func (r *registrar) Detach(_ context.Context, _ protocol.Call, h protocol.HolderID) error {
	r.detached = append(r.detached, h)
	return nil
}

// TestDetachGoesToWhoGranted: each connection numbers holders anew, also in the same epoch. A detachment that went to
// another one than granted would take a living holder off, which then hears of no recall.
func TestDetachGoesToWhoGranted(t *testing.T) {
	first, second := &registrar{}, &registrar{}
	v := testVolume(1)
	v.opts.Redirected = time.Second
	v.term.Store(newTerm(first, 1))
	im := newImage(v, "a")
	old := im.attachment(v.term.Load())
	if err := old.begin(wholeGrant(1), 1); err != nil {
		t.Fatal(err)
	}
	v.term.Store(newTerm(second, 1)) // another connection, after this node was counted out
	next := im.attachment(v.term.Load())
	if err := next.begin(wholeGrant(1), 1); err != nil {
		t.Fatal(err)
	}
	if err := v.depart(t.Context(), old); err != nil || len(second.detached) != 0 || len(first.detached) != 0 {
		t.Fatalf("%v: the old holder's end was told to %v and %v", err, first.detached, second.detached)
	}
	if err := v.depart(t.Context(), next); err != nil || len(second.detached) != 1 || second.detached[0] != 1 {
		t.Fatalf("%v: the new holder's end was told to %v", err, second.detached)
	}
}

// TestGrantedWhilePausedDoesNotCount: the node may have been counted out since.
func TestGrantedWhilePausedDoesNotCount(t *testing.T) {
	v := testVolume(1)
	im := newImage(v, "a")
	a := im.attachment(v.term.Load())
	if err := a.begin(wholeGrant(1), 1); err != nil || im.view.Load().Paused {
		t.Fatal(err)
	}
	v.images[1] = im
	v.pause(LeaseLost)
	if !im.view.Load().Paused {
		t.Fatal("not paused")
	}
	b := im.attachment(v.term.Load())
	v.pausing.Store(0)
	v.pauses.Add(1)
	if err := b.begin(wholeGrant(1), 2); err != nil || !im.view.Load().Paused || !im.astray.Load() {
		t.Fatal("I/O goes on by a grant of before the Resume", err)
	}
	if err := im.attachment(v.term.Load()).begin(wholeGrant(1), 3); err != nil || im.view.Load().Paused || im.astray.Load() {
		t.Fatal("still paused", err)
	}
}

func TestStates(t *testing.T) {
	for _, c := range []struct {
		s              Status
		redirected     Reason
		paused, noPath bool
		want           State
	}{
		{want: Direct},
		{s: Status{Orphan: true}, want: Direct},
		{s: Status{Waiting: 1}, want: Paused},
		{redirected: UserRequest, want: Redirected},
		{redirected: NoDiskConnectivity, want: Redirected},
		{redirected: NoDiskConnectivity, noPath: true, want: Unavailable},
		{redirected: NoDiskConnectivity, s: Status{Orphan: true}, want: Unavailable},
		{redirected: UserRequest, noPath: true, want: Redirected},
		{paused: true, want: Paused},
		{paused: true, redirected: UserRequest, want: Paused},
	} {
		if got := stateOf(c.s, c.redirected, c.paused, c.noPath); got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
}
