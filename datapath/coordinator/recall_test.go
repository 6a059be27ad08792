package coordinator_test

import (
	"testing"

	"lunar/datapath/coordinator"
)

// TestEveryHolderIsAsked has a change with several holders; each one's answer has to count.
func TestEveryHolderIsAsked(t *testing.T) {
	v := scratch(t, coordinator.XFS)
	first := v.image(t, "a", 8*mib)
	second, third := v.attach(t, "a"), v.attach(t, "a")
	first.write(t, pattern(4096, 1), 0)
	for i, h := range []*open{first, second, third} {
		if len(h.recalls) != 1 || h.view.Recalls() != 0 || h.layout().Allocated() == 0 {
			t.Errorf("holder %d: %d recalls, %d open, layout %v", i, len(h.recalls), h.view.Recalls(), h.layout().Extents())
		}
	}
}
