package coordinator_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lunar/datapath/coordinator"
	"lunar/datapath/device/loopdev"
	"lunar/datapath/layout"
	"lunar/datapath/layout/protocol"
)

// take takes a snapshot.
func (v *volume) take(t testing.TB, name string, paths ...string) time.Duration {
	t.Helper()
	hold, err := v.Snapshot(ctx, v.meta(), name, paths)
	if err != nil {
		t.Fatal(err)
	}
	return hold
}

// snapshots lists the snapshots as PATH@NAME.
func (v *volume) snapshots(t testing.TB) (names []string) {
	t.Helper()
	all, err := v.Snapshots(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range all {
		names = append(names, s.Path+"@"+s.Name)
	}
	return names
}

// content is what an image of a snapshot has, by a clone of it.
func (v *volume) content(t testing.TB, name, path string, n int) []byte {
	t.Helper()
	to := "content-of-" + name
	if err := v.CloneSnapshot(ctx, v.meta(), name, path, to); err != nil {
		t.Fatal(err)
	}
	o := v.attach(t, to)
	p := o.read(t, 0, n)
	if err := errors.Join(v.Detach(ctx, o.call, o.id), v.Delete(ctx, v.meta(), to)); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestSnapshotKeepsWhatWasThere(t *testing.T) {
	v := scratch(t, coordinator.XFS)
	a, b := v.image(t, "a", 16*mib), v.image(t, "dir/b", 8*mib)
	before := pattern(4*mib, 1)
	a.write(t, before, 0)
	b.write(t, before, 0)
	if err := v.Create(ctx, v.meta(), "closed", protocol.CreateOptions{Size: mib}); err != nil {
		t.Fatal(err)
	}
	if hold := v.take(t, "s1", "a", "dir/b", "closed"); hold <= 0 || hold > 10*time.Second {
		t.Fatal("hold", hold)
	}
	if got := v.snapshots(t); !slices.Equal(got, []string{"a@s1", "closed@s1", "dir/b@s1"}) {
		t.Fatal(got)
	}
	for _, o := range []*open{a, b} {
		if !o.layout().Is(layout.Range{Len: 4 * mib}, isShared) || o.view.Recalls() != 0 {
			t.Fatalf("SnapshotFixed: granted for writing: %v", o.layout().Extents())
		}
		o.write(t, pattern(8192, 9), 4096)
	}
	if !bytes.Equal(v.content(t, "s1", "a", 4*mib), before) || !bytes.Equal(v.content(t, "s1", "dir/b", 4*mib), before) {
		t.Fatal("SnapshotFixed: the snapshot changed")
	}
	list, err := v.List(ctx)
	if err != nil || len(list) != 3 {
		t.Fatal("a snapshot's files are no images", list, err)
	}
	all, _ := v.Snapshots(ctx)
	if s := all[0]; s.Size != 16*mib || s.Exclusive != 8192 || s.Hold <= 0 || time.Since(time.Unix(0, s.Taken)) > time.Minute {
		t.Errorf("%+v", s)
	}
}

func TestSnapshotRefusals(t *testing.T) {
	v := scratch(t, coordinator.XFS)
	a := v.image(t, "a", mib)
	a.write(t, pattern(mib, 1), 0)
	v.take(t, "taken", "a")
	recalls := len(a.recalls)
	many := make([]string, protocol.MaxSnapshotImages+1)
	for i := range many {
		many[i] = fmt.Sprint("i", i)
	}
	for _, c := range []struct {
		name  string
		paths []string
		want  error
	}{
		{"taken", []string{"a"}, coordinator.ErrExists},
		{"s", []string{"a", "none"}, coordinator.ErrNotFound},
		{"s", []string{"a", "a"}, unix.EINVAL},
		{"s", nil, unix.EINVAL},
		{"s", many, unix.EINVAL},
		{"s", []string{"../a"}, coordinator.ErrPath},
		{"s", []string{".lunar/snapshots/taken/a"}, coordinator.ErrPath},
		{"", []string{"a"}, protocol.ErrSnapshotName},
		{".", []string{"a"}, protocol.ErrSnapshotName},
		{"..", []string{"a"}, protocol.ErrSnapshotName},
		{"x/../../y", []string{"a"}, protocol.ErrSnapshotName},
		{"a@b", []string{"a"}, protocol.ErrSnapshotName},
		{strings.Repeat("n", 65), []string{"a"}, protocol.ErrSnapshotName},
	} {
		if _, err := v.Snapshot(ctx, v.meta(), c.name, c.paths); !errors.Is(err, c.want) {
			t.Errorf("%q of %.3q: %v", c.name, c.paths, err)
		}
	}
	if len(a.recalls) != recalls {
		t.Error("I/O was held for what was refused")
	}
	if got := v.snapshots(t); !slices.Equal(got, []string{"a@taken"}) {
		t.Error(got)
	}
	for _, p := range []string{".lunar", ".lunar/x", ".lunar/snapshots/taken/a"} {
		if err := v.Create(ctx, v.meta(), p, protocol.CreateOptions{Size: mib}); !errors.Is(err, coordinator.ErrPath) {
			t.Errorf("create %s: %v", p, err)
		}
	}
	for _, p := range []string{".lunar", ".lunar/x", ".lunar/snapshots", ".lunar/snapshots/taken"} {
		if _, _, err := v.Attach(ctx, "n1", p, forgetful{}); !errors.Is(err, coordinator.ErrPath) {
			t.Errorf("open %s: %v", p, err)
		}
	}
	for what, err := range map[string]error{
		"delete":     v.DeleteSnapshot(ctx, v.meta(), "none", ""),
		"delete one": v.DeleteSnapshot(ctx, v.meta(), "taken", "b"),
		"clone":      v.CloneSnapshot(ctx, v.meta(), "taken", "b", "c"),
		"revert":     v.Revert(ctx, v.meta(), "none", "a"),
	} {
		if !errors.Is(err, coordinator.ErrNotFound) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := v.Revert(ctx, v.meta(), "taken", "a"); !errors.Is(err, coordinator.ErrInUse) {
		t.Error("revert of an open image:", err)
	}
	if _, err := v.Diff(ctx, "a", "taken", "none"); !errors.Is(err, coordinator.ErrNotFound) {
		t.Error("diff:", err)
	}
}

func TestSnapshotOnExt4SaysWhatToDo(t *testing.T) {
	v := scratch(t, coordinator.Ext4)
	a := v.image(t, "a", mib)
	a.write(t, pattern(mib, 1), 0)
	recalls := len(a.recalls)
	_, err := v.Snapshot(ctx, v.meta(), "s", []string{"a"})
	if !errors.Is(err, coordinator.ErrUnsupported) || !strings.Contains(err.Error(), "XFS") || len(a.recalls) != recalls {
		t.Fatal(err, len(a.recalls)-recalls)
	}
	if got := v.snapshots(t); got != nil {
		t.Error(got)
	}
}

func TestSnapshotOnFullVolumeHoldsNothing(t *testing.T) {
	v := scratch(t, coordinator.XFS)
	a := v.image(t, "a", mib)
	a.write(t, pattern(mib, 1), 0)
	for i := 0; ; i++ {
		space, err := v.Space(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if space.Free < 16*mib {
			break
		}
		if err := v.Create(ctx, v.meta(), fmt.Sprint("fill", i), protocol.CreateOptions{Size: 8 * mib, Thick: true}); err != nil {
			t.Fatal(err)
		}
	}
	recalls := len(a.recalls)
	_, err := v.Snapshot(ctx, v.meta(), "s", []string{"a"})
	if !errors.Is(err, coordinator.ErrNoSpace) || !strings.Contains(err.Error(), "free 16777216") || len(a.recalls) != recalls {
		t.Fatal(err, len(a.recalls)-recalls)
	}
}

// A holder that does not let go of one image ends the hold of all.
func TestSnapshotHoldIsReleasedOnError(t *testing.T) {
	v := scratch(t, coordinator.XFS)
	var all []*open
	for i := range 5 {
		o := v.image(t, fmt.Sprint("i", i), mib)
		o.write(t, pattern(mib, byte(i)), 0)
		all = append(all, o)
	}
	all[3].refuse = unix.EIO
	if _, err := v.Snapshot(ctx, v.meta(), "s", []string{"i0", "i1", "i2", "i3", "i4"}); !errors.Is(err, coordinator.ErrRecall) {
		t.Fatal(err)
	}
	all[3].refuse = nil
	for i, o := range all {
		if !o.layout().Is(layout.Range{Len: mib}, layout.State.Writable) || o.view.Recalls() != 0 {
			t.Errorf("image %d is held: %d recalls, %v", i, o.view.Recalls(), o.layout().Extents())
		}
		o.write(t, pattern(4096, 7), 0)
	}
	if got := v.snapshots(t); got != nil {
		t.Error(got)
	}
	v.take(t, "s", "i3", "i0")
}

// TestSnapshotIsOfOneInstant has writers go through several images in turn, each write after the one
// before was acknowledged: no snapshot may have a record without those before it.
func TestSnapshotIsOfOneInstant(t *testing.T) {
	v := scratch(t, coordinator.XFS)
	const images, records = 6, 16
	var all []*open
	var paths []string
	for i := range images {
		paths = append(paths, fmt.Sprint("i", i))
		all = append(all, v.image(t, paths[i], 4*mib))
	}
	stop := make(chan struct{})
	var wrote atomic.Int64
	var writers sync.WaitGroup
	for w := range 3 {
		writers.Go(func() {
			for n := 1; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				o := all[n%images]
				if err := v.Write(ctx, o.call, bytes.Repeat([]byte{byte(n), byte(n >> 8)}, 256), int64(w*records+n%records)*65536%(4*mib), false); err != nil {
					t.Error(err)
					return
				}
				wrote.Add(1)
			}
		})
	}
	for i := range 10 {
		before := wrote.Load()
		eventually(t, "writes", func() bool { return wrote.Load() > before+50 })
		t.Log("hold", v.take(t, fmt.Sprint("s", i), paths...))
	}
	close(stop)
	writers.Wait()
	for i := range 10 {
		v.checkRecords(t, fmt.Sprint("s", i), images, records)
	}
}

func (v *volume) checkRecords(t *testing.T, name string, images, records int) {
	t.Helper()
	content := map[int][]byte{}
	for i := range images {
		content[i] = v.content(t, name, fmt.Sprint("i", i), 4*mib)
	}
	for w := range 3 {
		at := func(n int) int { // the record that the place of record n has
			p := content[n%images][int64(w*records+n%records)*65536%(4*mib):]
			return int(p[0]) | int(p[1])<<8
		}
		last := 0
		for i := range images * records {
			last = max(last, at(i))
		}
		for n := last; n > 0 && n > last-records; n-- {
			if at(n) < n {
				t.Fatalf("%s: writer %d: record %d is there, its predecessor %d is not: %d", name, w, last, n, at(n))
			}
		}
	}
}

// TestSnapshotsAndCopiesDoNotWaitInACircle has both want several images at once.
func TestSnapshotsAndCopiesDoNotWaitInACircle(t *testing.T) {
	v := scratch(t, coordinator.XFS)
	a, b := v.image(t, "a", 8*mib), v.image(t, "b", 8*mib)
	a.write(t, pattern(mib, 1), 0)
	b.write(t, pattern(mib, 2), 0)
	limited, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	var all sync.WaitGroup
	for _, pair := range [][2]*open{{a, b}, {b, a}} {
		all.Go(func() {
			for range 20 {
				if err := v.Copy(limited, pair[1].call, 4*mib, pair[0].call, layout.Range{Len: mib}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for i := range 20 {
		v.take(t, fmt.Sprint("s", i), "b", "a")
	}
	all.Wait()
}

func TestSnapshotDiff(t *testing.T) {
	v := scratch(t, coordinator.XFS)
	a := v.image(t, "a", 16*mib)
	a.write(t, pattern(4*mib, 1), 0)
	v.take(t, "s1", "a")
	a.write(t, pattern(4096, 2), 64<<10)
	a.write(t, pattern(8192, 2), 2*mib)
	if err := v.Unmap(ctx, a.call, []layout.Range{{Off: 3 * mib, Len: 65536}}); err != nil {
		t.Fatal(err)
	}
	v.take(t, "s2", "a")
	if err := v.Resize(ctx, v.meta(), "a", 17*mib, false); err != nil {
		t.Fatal(err)
	}
	v.take(t, "s3", "a")
	for _, c := range []struct {
		from, to string
		want     []layout.Range
	}{
		{"s1", "s1", nil},
		{"s1", "s2", []layout.Range{{Off: 64 << 10, Len: 4096}, {Off: 2 * mib, Len: 8192}, {Off: 3 * mib, Len: 65536}}},
		{"s2", "s1", []layout.Range{{Off: 64 << 10, Len: 4096}, {Off: 2 * mib, Len: 8192}, {Off: 3 * mib, Len: 65536}}},
		{"s2", "s3", []layout.Range{{Off: 16 * mib, Len: mib}}},
	} {
		if got, err := v.Diff(ctx, "a", c.from, c.to); err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%s to %s: %v, %v, want %v", c.from, c.to, got, err, c.want)
		}
	}
}

func TestRevertGivesBackWhatWas(t *testing.T) {
	v := scratch(t, coordinator.XFS)
	o := v.image(t, "d/a", 4*mib)
	before := pattern(4*mib, 1)
	o.write(t, before, 0)
	v.take(t, "s", "d/a")
	o.write(t, pattern(mib, 2), mib)
	if err := errors.Join(v.Resize(ctx, v.meta(), "d/a", 8*mib, false), v.Detach(ctx, o.call, o.id)); err != nil {
		t.Fatal(err)
	}
	if err := v.Revert(ctx, v.meta(), "s", "d/a"); err != nil {
		t.Fatal(err)
	}
	o = v.attach(t, "d/a")
	if o.layout().Size() != 4*mib || !bytes.Equal(o.read(t, 0, 4*mib), before) {
		t.Fatal("the image is not what it was")
	}
	o.write(t, pattern(mib, 3), 0)
	if !bytes.Equal(v.content(t, "s", "d/a", 4*mib), before) {
		t.Fatal("SnapshotFixed: a write after the revert changed the snapshot")
	}
}

func TestDeleteSnapshot(t *testing.T) {
	v := scratch(t, coordinator.XFS)
	for _, p := range []string{"a", "d/b"} {
		if err := v.Create(ctx, v.meta(), p, protocol.CreateOptions{Size: mib}); err != nil {
			t.Fatal(err)
		}
	}
	v.take(t, "s1", "a", "d/b")
	v.take(t, "s2", "a", "d/b")
	for _, c := range []struct {
		name, path string
		left       []string
	}{
		{"s1", "d/b", []string{"a@s1", "a@s2", "d/b@s2"}},
		{"s1", "a", []string{"a@s2", "d/b@s2"}},
		{"s2", "", nil},
	} {
		if err := v.DeleteSnapshot(ctx, v.meta(), c.name, c.path); err != nil {
			t.Fatal(err)
		}
		if got := v.snapshots(t); !slices.Equal(got, c.left) {
			t.Fatal(got, "want", c.left)
		}
	}
	v.take(t, "s1", "a") // the name is free again
	all, _ := v.Snapshots(ctx)
	m := v.meta()
	m.Image = all[0].Set + 1
	if err := v.DeleteSnapshot(ctx, m, "s1", ""); !errors.Is(err, coordinator.ErrNotFound) {
		t.Error("deleted another snapshot of the same name:", err)
	}
}

// snapshotChange is a change that is cut off at every step and tried again. Before it there are the images
// a and d/b, both in the snapshot "old".
type snapshotChange struct {
	name   string
	change func(v *volume, m protocol.Meta) error
	after  []string // the snapshots
	images []string
}

var snapshotChanges = []snapshotChange{
	{"create", func(v *volume, m protocol.Meta) error {
		_, err := v.Snapshot(ctx, m, "new", []string{"a", "d/b"})
		return err
	}, []string{"a@new", "d/b@new", "a@old", "d/b@old"}, []string{"a", "d/b"}},
	{"delete", func(v *volume, m protocol.Meta) error { return v.DeleteSnapshot(ctx, m, "old", "") }, nil, []string{"a", "d/b"}},
	{"delete one", func(v *volume, m protocol.Meta) error { return v.DeleteSnapshot(ctx, m, "old", "d/b") },
		[]string{"a@old"}, []string{"a", "d/b"}},
	{"clone", func(v *volume, m protocol.Meta) error { return v.CloneSnapshot(ctx, m, "old", "d/b", "c") },
		[]string{"a@old", "d/b@old"}, []string{"a", "c", "d/b"}},
	{"revert", func(v *volume, m protocol.Meta) error { return v.Revert(ctx, m, "old", "d/b") },
		[]string{"a@old", "d/b@old"}, []string{"a", "d/b"}},
}

// TestSnapshotChangesOnce has the power fail at every step: what was acknowledged is there, what was not
// is there whole or not at all, and the next coordinator's retry finds it or does it.
func TestSnapshotChangesOnce(t *testing.T) {
	dev := format(t, coordinator.XFS, 400*mib, loopdev.Options{})
	epoch := uint64(1)
	for _, c := range snapshotChanges {
		t.Run(c.name, func(t *testing.T) {
			all := 0
			for cut := 0; cut <= all; cut++ {
				all = max(all, mountAt(t, dev, epoch).snapshotOnce(t, c, cut))
				epoch += 2
			}
			if all == 0 {
				t.Error("steps reached:", all)
			}
			t.Log(all, "steps")
		})
	}
}

func (v *volume) snapshotOnce(t *testing.T, c snapshotChange, cut int) int {
	t.Helper()
	for _, p := range []string{"a", "d/b"} {
		o := v.image(t, p, mib)
		o.write(t, pattern(mib, 1), 0)
		if p == "d/b" { // the other one is open, and so held
			v.Detach(ctx, o.call, o.id)
		}
	}
	v.take(t, "old", "a", "d/b")
	m := v.meta()
	var steps atomic.Int64
	v.OnStep(func(string) {
		if int(steps.Add(1)) == cut {
			v.Shutdown()
		}
	})
	err := c.change(v, m)
	n := int(steps.Load())
	if (err == nil) == (cut > 0 && n >= cut) {
		t.Fatalf("cut at %d of %d: %v", cut, n, err)
	}
	v.OnStep(nil)
	v.Shutdown() // also after it was acknowledged: durable
	if err := v.Handover(ctx); err != nil {
		t.Fatal(err)
	}
	next := mountAt(t, v.dev, v.Epoch()+1)
	defer next.Close(ctx)
	got := next.snapshots(t)
	if whole := slices.Equal(got, c.after); !whole && (cut == 0 || !slices.Equal(got, []string{"a@old", "d/b@old"})) {
		t.Fatalf("cut at step %d: %q", cut, got)
	}
	m.Epoch, m.Retry = next.Epoch(), true
	for range 2 {
		if err := c.change(next, m); err != nil {
			t.Fatalf("cut at step %d, retry: %v", cut, err)
		}
	}
	if got := next.snapshots(t); !slices.Equal(got, c.after) {
		t.Fatalf("cut at step %d, after the retry: %q", cut, got)
	}
	for _, s := range c.after {
		path, name, _ := strings.Cut(s, "@")
		if !bytes.Equal(next.content(t, name, path, mib), pattern(mib, 1)) {
			t.Fatalf("cut at step %d: %s has another content", cut, s)
		}
	}
	for _, s := range got {
		if err := next.DeleteSnapshot(ctx, next.meta(), s[strings.Index(s, "@")+1:], ""); err != nil && !errors.Is(err, coordinator.ErrNotFound) {
			t.Fatal(err)
		}
	}
	for _, s := range next.snapshots(t) {
		_, name, _ := strings.Cut(s, "@")
		if err := next.DeleteSnapshot(ctx, next.meta(), name, ""); err != nil && !errors.Is(err, coordinator.ErrNotFound) {
			t.Fatal(err)
		}
	}
	next.expect(t, c.images)
	return n
}

// dawdling is a holder whose drain lasts until another has its image back, or for a while.
type dawdling struct {
	forgetful
	released chan struct{}
	early    atomic.Bool
}

func (d *dawdling) Recall(context.Context, protocol.Recall) error {
	select {
	case <-d.released: // what is written to the other now, and to this one next, would be torn apart
		d.early.Store(true)
	case <-time.After(200 * time.Millisecond):
	}
	return nil
}

// telling is a holder that tells when it is granted its image again.
type telling struct {
	forgetful
	granted chan struct{}
}

func (h telling) Publish(protocol.Grant) { close(h.granted) }

// No image goes on before all are held.
func TestSnapshotWaitsForTheLastHolder(t *testing.T) {
	v := scratch(t, coordinator.XFS)
	quick := telling{granted: make(chan struct{})}
	slow := &dawdling{released: quick.granted}
	for p, h := range map[string]protocol.Holder{"a": quick, "b": slow} {
		if err := v.Create(ctx, v.meta(), p, protocol.CreateOptions{Size: mib}); err != nil {
			t.Fatal(err)
		}
		g, id, err := v.Attach(ctx, "n1", p, h)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { v.Detach(ctx, g.Call, id) })
	}
	if hold := v.take(t, "s", "a", "b"); hold < 200*time.Millisecond || slow.early.Load() {
		t.Fatal("an image was released before the other was held; hold", hold)
	}
	<-quick.granted
}
