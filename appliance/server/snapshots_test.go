package server

import (
	"context"
	"testing"

	"lunar/appliance/api"
)

func (f *fake) Snapshots(_ context.Context, volume string) ([]api.Snapshot, error) {
	return []api.Snapshot{}, f.note("snapshots %s", volume)
}

func (f *fake) CreateSnapshot(_ context.Context, r api.CreateSnapshot) (api.SnapshotSet, error) {
	return api.SnapshotSet{}, f.note("snapshot %q %s", r.Images, r.Name)
}

func (f *fake) DeleteSnapshot(_ context.Context, volume, path, name string, force bool) error {
	return f.note("delete snapshot %s %q %s %v", volume, path, name, force)
}

func (f *fake) Revert(_ context.Context, volume, path, name string, force bool) (api.Image, error) {
	return api.Image{}, f.note("revert %s %s %s %v", volume, path, name, force)
}

func (f *fake) Diff(_ context.Context, volume, path, from, to string) (api.SnapshotDiff, error) {
	return api.SnapshotDiff{}, f.note("diff %s %s %s %s", volume, path, from, to)
}

func TestSnapshotCalls(t *testing.T) {
	c, f, _ := serve(t)
	ctx := context.Background()
	for _, row := range []struct {
		call func() error
		want string
	}{
		{func() error { _, err := c.Snapshots(ctx, "V"); return err }, "snapshots V"},
		{func() error {
			_, err := c.CreateSnapshot(ctx, api.CreateSnapshot{Images: []string{"V/a", "V/b"}, Name: "s"})
			return err
		}, `snapshot ["V/a" "V/b"] s`},
		{func() error { return c.DeleteSnapshot(ctx, "V/d/a@b.img@s", true) }, `delete snapshot V "d/a@b.img" s true`},
		{func() error { return c.DeleteSnapshot(ctx, "V@s", false) }, `delete snapshot V "" s false`},
		{func() error { _, err := c.Revert(ctx, "V/d/a@s", true); return err }, "revert V d/a s true"},
		{func() error { _, err := c.Diff(ctx, "V/d/a@s", "V/d/a@t"); return err }, "diff V d/a s t"},
	} {
		if err := row.call(); err != nil || f.calls[len(f.calls)-1] != row.want {
			t.Errorf("%v: %q, want %q", err, f.calls, row.want)
		}
	}
	for _, name := range []string{"", "V", "V/a", "@s", "V/@s", "V/a@", "/a@s"} {
		if err := c.DeleteSnapshot(ctx, name, true); api.CodeOf(err) != api.Invalid {
			t.Errorf("%q: %v", name, err)
		}
	}
}
