package daemon

import (
	"strings"
	"testing"

	"lunar/appliance/api"
)

// TestLogTellsStates wants what a node's way to a volume becomes in the cluster's log, with epoch and reason, once each.
func TestLogTellsStates(t *testing.T) {
	b := newBench(t)
	b.start()
	b.served(b.disk())
	ctx := t.Context()
	events := func(kind string) (out []api.Event) {
		must(t, b.client.Log(ctx, "Volume1", false, func(e api.Event) error {
			if e.Kind == kind {
				out = append(out, e)
			}
			return nil
		}))
		return out
	}
	has := func(kind string, words ...string) {
		t.Helper()
		eventually(t, 0, kind+" "+strings.Join(words, " "), func() bool {
			all := events(kind)
			if len(all) == 0 {
				return false
			}
			last := all[len(all)-1]
			for _, w := range words {
				if !strings.Contains(last.Text, w) {
					return false
				}
			}
			return last.Node == "n1" && last.Volume == "Volume1" && last.Epoch == 1 && !last.Time.IsZero()
		})
	}
	has("coordinator.chosen", "node n1 coordinates volume Volume1 (epoch 1)")
	has("volume.direct-io", "CanUseDirectIO is true for volume Volume1 on node n1, by /dev/loop")
	has("volume.state", "volume Volume1 is Direct on node n1")
	must(t, b.client.RedirectVolume(ctx, "Volume1", true))
	has("volume.state", "volume Volume1 is Redirected on node n1 (UserRequest); it was Direct")
	if all := events("volume.state"); all[len(all)-1].Reason != "UserRequest" {
		t.Errorf("%+v", all)
	}
	must(t, b.client.RedirectVolume(ctx, "Volume1", false))
	has("volume.state", "volume Volume1 is Direct on node n1; it was Redirected (UserRequest)")
	if all := events("volume.state"); len(all) != 3 {
		t.Errorf("%+v", all)
	}
}

// A pause that passes is not told; one that lasts is.
func TestNarratorLeavesMomentsOut(t *testing.T) {
	var told narrator
	direct, paused := wayTo{state: api.Direct, direct: true}, wayTo{state: api.Paused, direct: true}
	for i, row := range []struct {
		now  wayTo
		news bool
	}{{direct, true}, {direct, false}, {paused, false}, {direct, false}, {paused, false}, {paused, true}, {paused, false}, {direct, true}} {
		if _, first, news := told.news("v", row.now); news != row.news || news && first != (i == 0) {
			t.Errorf("%d: %t, first %t", i, news, first)
		}
	}
}
