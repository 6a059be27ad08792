package coordinator_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"lunar/datapath/coordinator"
	"lunar/datapath/device/loopdev"
	"lunar/datapath/layout/protocol"
)

// onceChange is a change of the name space that is cut off at every step and tried again.
type onceChange struct {
	name   string
	fs     []coordinator.FSType
	change func(v *volume, m protocol.Meta) error
	image  string   // that it is about
	after  []string // paths
}

var onceChanges = []onceChange{
	{"create", fileSystems, func(v *volume, m protocol.Meta) error {
		return v.Create(ctx, m, "new/dir/b", protocol.CreateOptions{Size: mib})
	}, "", []string{"a", "new/dir/b"}},
	{"create thick", fileSystems, func(v *volume, m protocol.Meta) error {
		return v.Create(ctx, m, "b", protocol.CreateOptions{Size: mib, Eager: true})
	}, "", []string{"a", "b"}},
	{"clone", []coordinator.FSType{coordinator.XFS}, func(v *volume, m protocol.Meta) error {
		return v.Clone(ctx, m, "a", "b")
	}, "", []string{"a", "b"}},
	{"rename", fileSystems, func(v *volume, m protocol.Meta) error { return v.Rename(ctx, m, "a", "deep/b") }, "a", []string{"deep/b"}},
	{"delete", fileSystems, func(v *volume, m protocol.Meta) error { return v.Delete(ctx, m, "a") }, "a", nil},
	{"resize", fileSystems, func(v *volume, m protocol.Meta) error { return v.Resize(ctx, m, "a", 2*mib, false) }, "a", []string{"a"}},
}

// TestOnce has the power fail at every step of every change; the next coordinator's retry finds what
// the earlier one did, or does it.
func TestOnce(t *testing.T) {
	for _, fs := range fileSystems {
		dev := format(t, fs, 400*mib, loopdev.Options{})
		epoch := uint64(1)
		for _, c := range onceChanges {
			if !slices.Contains(c.fs, fs) {
				continue
			}
			t.Run(string(fs)+"/"+c.name, func(t *testing.T) {
				all := 0
				for cut := 0; cut <= all; cut++ {
					steps := mountAt(t, dev, epoch).once(t, c, cut)
					all = max(all, steps)
					epoch += 2
				}
				if all == 0 {
					t.Error("no step was reached")
				}
				t.Log(all, "steps")
			})
		}
	}
}

// once runs c with the power failing at step cut, and then again on the next mount; it tells how many
// steps there were.
func (v *volume) once(t *testing.T, c onceChange, cut int) (steps int) {
	t.Helper()
	if err := v.Create(ctx, v.meta(), "a", protocol.CreateOptions{Size: mib}); err != nil {
		t.Fatal(err)
	}
	m := v.meta()
	if c.image != "" {
		st, err := v.Stat(ctx, c.image)
		if err != nil {
			t.Fatal(err)
		}
		m.Image = st.ID
	}
	v.OnStep(func(string) {
		if steps++; steps == cut {
			v.Shutdown()
		}
	})
	err := c.change(v, m)
	if (err == nil) == (cut > 0 && steps >= cut) {
		t.Fatalf("cut at %d of %d: %v", cut, steps, err)
	}
	if err == nil && cut == 0 {
		v.Shutdown() // after it was acknowledged: durable
	}
	if err := v.Close(ctx); err != nil {
		t.Fatal(err)
	}
	next := mountAt(t, v.dev, v.Epoch()+1)
	defer next.Close(ctx)
	m.Epoch, m.Retry = next.Epoch(), true
	for range 2 {
		if err := c.change(next, m); err != nil {
			t.Fatalf("cut at step %d, retry: %v", cut, err)
		}
	}
	next.expect(t, c.after)
	return steps
}

// expect wants these images alone, and deletes them.
func (v *volume) expect(t *testing.T, want []string) {
	t.Helper()
	list, err := v.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, st := range list {
		got = append(got, st.Path)
		if err := v.Delete(ctx, v.meta(), st.Path); err != nil {
			t.Fatal(err)
		}
	}
	if !slices.Equal(got, want) {
		t.Fatalf("%q, want %q", got, want)
	}
}

// TestRetriesMeetOthers: a retry must not mistake what others did meanwhile for its own work.
func TestRetriesMeetOthers(t *testing.T) {
	each(t, func(t *testing.T, v *volume) {
		create := func(m protocol.Meta, path string) error {
			return v.Create(ctx, m, path, protocol.CreateOptions{Size: mib})
		}
		first := v.meta()
		if err := errors.Join(create(first, "a"), create(first, "a")); err != nil {
			t.Fatal(err)
		}
		if err := create(v.meta(), "a"); !errors.Is(err, coordinator.ErrExists) {
			t.Fatal("another key", err)
		}
		ids := map[protocol.ImageID]bool{}
		for range 50 { // the file system uses inode numbers again
			st, err := v.Stat(ctx, "a")
			if err != nil || ids[st.ID] {
				t.Fatal(st.ID, "again", err)
			}
			ids[st.ID] = true
			gone := v.meta()
			gone.Image = st.ID
			if err := v.Delete(ctx, gone, "a"); err != nil {
				t.Fatal(err)
			}
			if err := create(v.meta(), "a"); err != nil {
				t.Fatal(err)
			}
			if err := v.Delete(ctx, gone, "a"); !errors.Is(err, coordinator.ErrNotFound) {
				t.Fatal("deleted another image", err)
			}
			if gone.Retry = true; v.Delete(ctx, gone, "a") != nil || v.Rename(ctx, gone, "a", "b") == nil {
				t.Fatal("a retry went wrong")
			}
		}
		st, _ := v.Stat(ctx, "a")
		move := v.meta()
		move.Image = st.ID
		if err := v.Rename(ctx, move, "a", "b"); err != nil {
			t.Fatal(err)
		}
		if err := create(v.meta(), "a"); err != nil {
			t.Fatal(err)
		}
		if move.Retry = true; v.Rename(ctx, move, "a", "b") != nil {
			t.Fatal("the retry did not find its work")
		}
		v.expect(t, []string{"a", "b"})
	})
}

// TestTriesSideBySide has one create run twice at once.
func TestTriesSideBySide(t *testing.T) {
	v := scratch(t, coordinator.XFS)
	for i := range 20 {
		m, path := v.meta(), fmt.Sprint("f", i)
		errs := make(chan error, 3)
		for range cap(errs) {
			go func() { errs <- v.Create(ctx, m, path, protocol.CreateOptions{Size: mib}) }()
		}
		for range cap(errs) {
			if err := <-errs; err != nil {
				t.Fatal(err)
			}
		}
	}
}
