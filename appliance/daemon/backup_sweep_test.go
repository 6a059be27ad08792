package daemon

import (
	"context"
	"testing"
	"time"

	"lunar/appliance/api"
)

// TestSweepWithoutDatabase: a sweep while the cluster database is away ends with an error.
func TestSweepWithoutDatabase(t *testing.T) {
	b := newBench(t)
	device := b.disk()
	b.start()
	_, err := b.client.AddVolume(t.Context(), api.AddVolume{Device: device, Format: "xfs"})
	must(t, err)
	v := b.daemon.node.sortedVolumes()[0]
	must(t, b.daemon.node.sweepBackups(t.Context(), v))
	must(t, b.daemon.db.Close())
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := b.daemon.node.sweepBackups(ctx, v); err == nil {
		t.Error("swept without knowing which backups are under way")
	}
}
