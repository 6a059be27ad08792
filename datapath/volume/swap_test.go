package volume

import (
	"errors"
	"testing"

	"lunar/datapath/layout/protocol"
)

// TestDoubtfulSwap: a try that may have taken effect is made again in its own term alone.
func TestDoubtfulSwap(t *testing.T) {
	for name, c := range map[string]struct {
		first         error
		epoch         uint64
		made, isRetry bool
		want          error
	}{
		"no answer, same term":  {protocol.ErrUnreachable, 5, true, true, nil},
		"no answer, next term":  {protocol.ErrUnreachable, 6, false, false, protocol.ErrOutcome},
		"failed, next term":     {errors.New("cut off"), 6, false, false, protocol.ErrOutcome},
		"refused, next term":    {protocol.ErrStale, 6, true, false, nil},
		"never sent, next term": {protocol.ErrUnsent, 6, true, false, nil},
		"never sent, same term": {protocol.ErrUnsent, 5, true, false, nil},
	} {
		s := swap{once: protocol.Once{Node: "n1", Slot: 2, Serial: 3}}
		if err := s.try(protocol.Call{Epoch: 5}, func(protocol.Call) error { return c.first }); !errors.Is(err, c.first) {
			t.Fatal(err)
		}
		made := false
		err := s.try(protocol.Call{Epoch: c.epoch}, func(call protocol.Call) error {
			if made = true; call.Retry != c.isRetry || call.Once != s.once {
				t.Errorf("%s: %+v", name, call)
			}
			return nil
		})
		if made != c.made || !errors.Is(err, c.want) {
			t.Errorf("%s: made %v, %v", name, made, err)
		}
	}
}

// TestSlots are used again, each by one at a time, with greater serials; there is an end to them.
func TestSlots(t *testing.T) {
	s, err := newSwaps()
	if err != nil {
		t.Fatal(err)
	}
	var all []*swap
	used := map[uint32]bool{}
	for range protocol.MaxSlots {
		w, err := s.begin("n1")
		if err != nil || used[w.once.Slot] || w.once.Slot >= protocol.MaxSlots || w.once.Node != "n1" {
			t.Fatal(w, err)
		}
		used[w.once.Slot] = true
		all = append(all, w)
	}
	if _, err := s.begin("n1"); !errors.Is(err, ErrBusy) {
		t.Fatal(err)
	}
	s.end(all[7])
	w, err := s.begin("n1")
	if err != nil || w.once.Slot != all[7].once.Slot || w.once.Serial <= all[len(all)-1].once.Serial {
		t.Fatal(w, err)
	}
	later, err := newSwaps()
	if err != nil || later.serial <= w.once.Serial {
		t.Fatal("a volume that is opened again numbers anew", err)
	}
}
