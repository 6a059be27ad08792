package coordinator_test

import (
	"sync"
	"testing"

	"lunar/datapath/coordinator"
	"lunar/datapath/device/loopdev"
)

// TestShutdownBesideClose: who ends a term from without finds the mount or nothing, never another file that has its
// descriptor's number by then.
func TestShutdownBesideClose(t *testing.T) {
	d := format(t, coordinator.XFS, 400<<20, loopdev.Options{})
	for epoch := range uint64(4) {
		v := mountAt(t, d, epoch+1)
		var both sync.WaitGroup
		both.Go(func() {
			for range 20 {
				if err := v.Shutdown(); err != nil {
					t.Error(err)
				}
			}
		})
		both.Go(func() {
			if err := v.Handover(ctx); err != nil {
				t.Log(err) // the shutdown came first
			}
		})
		both.Wait()
	}
}
