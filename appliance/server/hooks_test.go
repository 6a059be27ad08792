package server

import (
	"context"
	"testing"

	"lunar/appliance/api"
)

func (f *fake) Hook(_ context.Context, volume, path string) (api.Hook, error) {
	return api.Hook{}, f.note("hook %s %s", volume, path)
}

func (f *fake) SetHook(_ context.Context, volume, path string, h api.Hook) (api.Hook, error) {
	return h, f.note("set hook %s %s %s %s %s", volume, path, h.Before, h.After, h.Agent)
}

func (f *fake) ClearHook(_ context.Context, volume, path string) error {
	return f.note("clear hook %s %s", volume, path)
}

func TestHookCalls(t *testing.T) {
	c, f, _ := serve(t)
	ctx := context.Background()
	for _, row := range []struct {
		call func() error
		want string
	}{
		{func() error { _, err := c.Hook(ctx, "V/d/a"); return err }, "hook V d/a"},
		{func() error { _, err := c.SetHook(ctx, api.Hook{Image: "V/d/a", Before: "b", After: "c"}); return err }, "set hook V d/a b c "},
		{func() error { return c.ClearHook(ctx, "V/d/a") }, "clear hook V d/a"},
	} {
		if err := row.call(); err != nil || f.calls[len(f.calls)-1] != row.want {
			t.Errorf("%v: %q, want %q", err, f.calls, row.want)
		}
	}
	if _, err := c.SetHook(ctx, api.Hook{Image: "V"}); api.CodeOf(err) != api.Invalid {
		t.Error(err)
	}
}
