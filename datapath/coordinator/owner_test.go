package coordinator_test

import (
	"errors"
	"testing"

	"lunar/datapath/coordinator"
	"lunar/datapath/device/loopdev"
	"lunar/datapath/layout/protocol"
)

// A volume that another cluster has not ejected is refused, and so is a term older than the last one.
func TestOwner(t *testing.T) {
	for _, fs := range []coordinator.FSType{coordinator.XFS, coordinator.Ext4} {
		t.Run(string(fs), func(t *testing.T) {
			dev := format(t, fs, 400*mib, loopdev.Options{})
			open := func(cluster string, epoch uint64, force bool) error {
				c, err := coordinator.Open(ctx, dev, coordinator.Options{Cluster: cluster, Epoch: epoch, TakeOver: force})
				if err != nil {
					return err
				}
				return c.Close(ctx)
			}
			for _, step := range []struct {
				cluster string
				epoch   uint64
				force   bool
				want    error
			}{
				{"", 1, false, nil},
				{"a", 5, false, nil},
				{"a", 6, false, nil},
				{"a", 6, false, protocol.ErrStale},
				{"a", 4, false, coordinator.ErrStaleEpoch},
				{"b", 9, false, coordinator.ErrForeign},
				{"", 9, false, coordinator.ErrForeign},
				{"b", 1, true, nil},
				{"a", 7, false, coordinator.ErrForeign},
			} {
				if err := open(step.cluster, step.epoch, step.force); !errors.Is(err, step.want) {
					t.Fatalf("%+v: %v", step, err)
				}
			}
			c, err := coordinator.Open(ctx, dev, coordinator.Options{Cluster: "b", Epoch: 2})
			if err == nil {
				err = errors.Join(c.Disown(), c.Close(ctx))
			}
			if err != nil {
				t.Fatal(err)
			}
			if err := open("a", 1, false); err != nil {
				t.Fatalf("after it was ejected: %v", err)
			}
		})
	}
}
