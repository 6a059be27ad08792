package server

import (
	"context"
	"errors"
	"testing"

	"lunar/appliance/api"
)

// TestAttachedBackup has a caller hear of the end, and another one go away.
func TestAttachedBackup(t *testing.T) {
	c, f, _ := serve(t)
	reason, err := c.AttachedBackup(t.Context(), api.BeginBackup{Volume: "short"}, func(b api.Backup) error {
		if b.ID != "b1" {
			t.Errorf("%+v", b)
		}
		return nil
	})
	if err != nil || reason != "by order" {
		t.Errorf("%q, %v", reason, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	_, err = c.AttachedBackup(ctx, api.BeginBackup{Volume: "long"}, func(api.Backup) error { cancel(); return nil })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("who went away: %v", err)
	}
	if id := <-f.awaited; id != "b1" {
		t.Errorf("backup %s was awaited", id)
	}
}
