package daemon

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lunar/appliance/api"
)

// hooked is a file to which an image's hook writes a line per phase.
type hooked struct {
	t    *testing.T
	file string
}

func newHooked(t *testing.T) *hooked {
	t.Helper()
	t.Setenv("GORACE", "atexit_sleep_ms=0") // of the processes that run hooks
	return &hooked{t, filepath.Join(t.TempDir(), "told")}
}

func (h *hooked) says(words string) string { return fmt.Sprintf("echo %s >>%s", words, h.file) }

// hook is one of disk.img that writes down what it is told.
func (h *hooked) hook() api.Hook {
	words := h.says("$LUNAR_PHASE $LUNAR_SNAPSHOT $LUNAR_RESULT")
	return api.Hook{Image: "Volume1/disk.img", Before: words, After: words, LimitNS: int64(time.Minute)}
}

func (h *hooked) told() string {
	text, _ := os.ReadFile(h.file)
	return strings.ReplaceAll(strings.TrimSpace(string(text)), "\n", ", ")
}

func (h *hooked) wants(want string) {
	h.t.Helper()
	if got := h.told(); got != want {
		h.t.Errorf("the hooks wrote %q, want %q", got, want)
	}
	_ = os.Remove(h.file)
}

func (b *bench) snapshot(name string, noHooks bool) (api.SnapshotSet, error) {
	return b.client.CreateSnapshot(b.t.Context(), api.CreateSnapshot{Images: []string{"Volume1/disk.img"}, Name: name, NoHooks: noHooks})
}

// without wants there to be no snapshot of that name.
func (b *bench) without(name string) {
	b.t.Helper()
	all, err := b.client.Snapshots(b.t.Context(), "Volume1")
	must(b.t, err)
	for _, s := range all {
		if s.Name == name {
			b.t.Errorf("there is a snapshot %s", name)
		}
	}
}

func TestHooks(t *testing.T) {
	b := newBench(t)
	b.start()
	b.served(b.disk())
	ctx := t.Context()
	h := newHooked(t)
	_, err := b.client.Hook(ctx, "Volume1/disk.img")
	refused(t, err, api.NotFound, "has no hook", "lunarctl image hook")
	b.badHooks()

	set, err := b.client.SetHook(ctx, h.hook())
	must(t, err)
	if shown, err := b.client.Hook(ctx, "Volume1/disk.img"); err != nil || shown != set || shown.Node != "n1" {
		t.Errorf("%+v %v, want %+v", shown, err, set)
	}
	b.restart()
	taken, err := b.snapshot("s1", false)
	if err != nil || taken.Hooks != 1 || len(taken.Warnings) != 0 {
		t.Errorf("%+v %v", taken, err)
	}
	h.wants("before s1, after s1 taken")
	_, err = b.snapshot("s1", false)
	refused(t, err, api.Exists)
	h.wants("before s1, after s1 failed")
	_, err = b.snapshot("s2", true)
	must(t, err)
	h.wants("")
	b.backedUp(h)
	b.failingHooks(h)
	must(t, b.client.ClearHook(ctx, "Volume1/disk.img"))
	refused(t, b.client.ClearHook(ctx, "Volume1/disk.img"), api.NotFound)
}

// backedUp has the hook run around a backup's snapshot, or not.
func (b *bench) backedUp(h *hooked) {
	b.t.Helper()
	for _, row := range []struct {
		begin api.BeginBackup
		want  string
	}{
		{api.BeginBackup{Volume: "Volume1", Snapshot: "b1"}, "before b1, after b1 taken"},
		{api.BeginBackup{Volume: "Volume1", Snapshot: "b2", NoHooks: true}, ""},
	} {
		_, err := b.client.BeginBackup(b.t.Context(), row.begin)
		must(b.t, err)
		h.wants(row.want)
		must(b.t, b.client.EndBackup(b.t.Context(), "Volume1"))
	}
}

func (b *bench) badHooks() {
	b.t.Helper()
	for _, row := range []struct {
		hook api.Hook
		code api.Code
	}{
		{api.Hook{Image: "Volume1/disk.img"}, api.Invalid},
		{api.Hook{Image: "Volume1/disk.img", Before: "x", LimitNS: 1}, api.Invalid},
		{api.Hook{Image: "Volume1/disk.img", Agent: "relative"}, api.Invalid},
		{api.Hook{Image: "Volume1/disk.img", Before: "x", Node: "n9"}, api.NotFound},
		{api.Hook{Image: "Volume1/none.img", Before: "x"}, api.NotFound},
		{api.Hook{Image: "Volume2/disk.img", Before: "x"}, api.NotFound},
	} {
		_, err := b.client.SetHook(b.t.Context(), row.hook)
		refused(b.t, err, row.code)
	}
}

// failingHooks has each part of a hook fail.
func (b *bench) failingHooks(h *hooked) {
	b.t.Helper()
	ctx := b.t.Context()
	failing := h.hook()
	failing.Before += "; echo the database does not stop; false"
	_, err := b.client.SetHook(ctx, failing)
	must(b.t, err)
	_, err = b.snapshot("s3", false)
	refused(b.t, err, api.Refused, "the database does not stop", "--no-hooks")
	h.wants("before s3, after s3 failed")
	b.without("s3")

	failing = h.hook()
	failing.After += "; false"
	_, err = b.client.SetHook(ctx, failing)
	must(b.t, err)
	taken, err := b.snapshot("s4", false)
	if err != nil || len(taken.Warnings) != 1 || !strings.Contains(taken.Warnings[0], "the hook after the snapshot failed") {
		b.t.Errorf("%+v %v", taken, err)
	}
	h.wants("before s4, after s4 taken")
}

// A hook follows its image's name, and goes with it.
func TestHookFollowsItsImage(t *testing.T) {
	b := newBench(t)
	b.start()
	b.served(b.disk())
	ctx := t.Context()
	_, err := b.client.CreateImage(ctx, api.CreateImage{Image: "Volume1/a.img", Size: 1 << 20})
	must(t, err)
	_, err = b.client.SetHook(ctx, api.Hook{Image: "Volume1/a.img", After: "true"})
	must(t, err)
	_, err = b.client.ChangeImage(ctx, "Volume1/a.img", api.ChangeImage{Name: "Volume1/b.img"})
	must(t, err)
	_, err = b.client.Hook(ctx, "Volume1/a.img")
	refused(t, err, api.NotFound)
	_, err = b.client.Hook(ctx, "Volume1/b.img")
	must(t, err)
	must(t, b.client.DeleteImage(ctx, "Volume1/b.img", true))
	_, err = b.client.CreateImage(ctx, api.CreateImage{Image: "Volume1/b.img", Size: 1 << 20})
	must(t, err)
	_, err = b.client.Hook(ctx, "Volume1/b.img")
	refused(t, err, api.NotFound)
}

// TestDaemonKilledWithinAHook kills lunard while an application is stopped: it goes on at once, and the next lunard tells.
func TestDaemonKilledWithinAHook(t *testing.T) {
	p := newProcess(t)
	device := disk(t)
	p.start(nil, nil)
	c, h := p.client(), newHooked(t)
	ctx := t.Context()
	_, err := c.AddVolume(ctx, api.AddVolume{Device: device, Format: "xfs"})
	must(t, err)
	_, err = c.CreateImage(ctx, api.CreateImage{Image: "Volume1/disk.img", Size: 1 << 20})
	must(t, err)
	stopped := h.hook()
	stopped.Before += "; sleep 1"
	_, err = c.SetHook(ctx, stopped)
	must(t, err)
	failed := make(chan error, 1)
	go func() {
		_, err := c.CreateSnapshot(context.WithoutCancel(ctx), api.CreateSnapshot{Images: []string{"Volume1/disk.img"}, Name: "s"})
		failed <- err
	}()
	eventually(t, 10*time.Second, "the hook before", func() bool { return h.told() != "" })
	must(t, p.cmd.Process.Kill())
	_ = p.end(10 * time.Second)
	if err := <-failed; err == nil {
		t.Error("a snapshot of a daemon that was killed")
	}
	c.Close()
	eventually(t, 10*time.Second, "the hook after", func() bool { return h.told() == "before s, after s unknown" })
	p.start(nil, nil)
	c = p.client()
	defer c.Close()
	eventually(t, 10*time.Second, "the log tells of the hook", func() bool {
		found := false
		err := c.Log(ctx, "", false, func(e api.Event) error {
			found = found || e.Kind == "snapshot.hook" && strings.Contains(e.Text, "the daemon was gone before")
			return nil
		})
		return err == nil && found
	})
	h.wants("before s, after s unknown")
	must(t, p.cmd.Process.Signal(os.Interrupt))
	must(t, p.end(20*time.Second))
}

// TestHookOfAnotherNode has a snapshot that one node takes run a hook of another.
func TestHookOfAnotherNode(t *testing.T) {
	if !apart(t) {
		return
	}
	c := newNodes(t, 2)
	defer c.stop()
	first, second := c.all[0], c.all[1]
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	_, err := first.client.AddVolume(ctx, api.AddVolume{Device: c.loops[0].Path, Format: "xfs", AllowUnfenced: true})
	must(t, err)
	_, err = first.client.CreateImage(ctx, api.CreateImage{Image: "Volume1/disk.img", Size: 1 << 20})
	must(t, err)
	h := newHooked(t)
	there := h.hook()
	there.Node = "n2"
	there.Before += "; " + h.says("$PPID") // of the node's own keeper
	_, err = first.client.SetHook(ctx, there)
	must(t, err)
	eventually(t, 10*time.Second, "the volume is on both nodes", func() bool { _, err := second.client.Image(ctx, "Volume1/disk.img"); return err == nil })
	taken, err := first.snapshot("s1", false)
	if err != nil || taken.Hooks != 1 || len(taken.Warnings) != 0 {
		t.Errorf("%+v %v", taken, err)
	}
	if told := h.told(); !strings.HasPrefix(told, "before s1, ") || !strings.HasSuffix(told, "after s1 taken") {
		t.Error(told)
	}
	_ = os.Remove(h.file)
	there.Before = "echo it does not stop; false"
	_, err = second.client.SetHook(ctx, there)
	must(t, err)
	_, err = first.snapshot("s2", false)
	refused(t, err, api.Refused, "it does not stop", "node n2")
	h.wants("after s2 failed")
	first.without("s2")
}
