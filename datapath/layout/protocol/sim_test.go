package protocol

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// seeds that TestSimulation runs, and the one that it replays: LUNAR_SEEDS and LUNAR_SEED.
func setting(t *testing.T, name string, otherwise uint64) uint64 {
	t.Helper()
	s := os.Getenv(name)
	if s == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// TestSimulation runs the coordinators' and the holders' state machines over a model of file system,
// device, network and machines; one seed decides everything that happens.
func TestSimulation(t *testing.T) {
	if seed := setting(t, "LUNAR_SEED", 0); seed != 0 {
		s := newSim(seed, mutant{})
		s.trace = t.Logf
		if err := s.run(); err != nil {
			t.Fatal(err)
		}
		return
	}
	tally := map[string]int{}
	for seed := uint64(1); seed <= setting(t, "LUNAR_SEEDS", 1500); seed++ {
		if err := simulate(seed, mutant{}, tally); err != nil {
			t.Fatalf("LUNAR_SEED=%d: %v", seed, err)
		}
	}
	t.Log(tally)
}

// simulate runs one seed, with faults and then without, until nothing is left to happen.
func simulate(seed uint64, m mutant, tally map[string]int) error {
	s := newSim(seed, m)
	defer func() {
		for name, n := range s.tally {
			if tally != nil {
				tally[name] += n
			}
		}
	}()
	return s.run()
}

func (s *sim) run() error {
	for step := 0; step < 20_000; step++ {
		s.calm = step >= simSteps
		if !s.step() && s.calm {
			break
		}
		if err := s.check(); err != nil {
			return fmt.Errorf("step %d: %w", step, err)
		}
	}
	return s.ended()
}

func finds(err error, invariants string) bool {
	return slices.ContainsFunc(strings.Fields(invariants), func(name string) bool { return strings.Contains(err.Error(), name) })
}

// TestMutants leaves out one rule at a time: the simulation has to find out.
func TestMutants(t *testing.T) {
	for name, c := range map[string]struct {
		mutant
		want string // invariants, any of which is a find
		from uint64 // the first seed, one that finds it soon
	}{
		"commit before grant":       {mutant{noCommit: true}, "CommitBeforeGrant", 1},
		"commit of what is freed":   {mutant{lazyFree: true}, "ReadAfterWrite CommitBeforeGrant", 160},
		"fence before mount":        {mutant{mountFirst: true}, "OneMount", 1},
		"barrier":                   {mutant{noBarrier: true}, "ExclusiveWrite RecallBeforeChange ReadAfterWrite Atomic", 1},
		"barrier before allocation": {mutant{allocEarly: true}, "ReadAfterWrite NoLeak RecallBeforeChange Atomic", 1081},
		"drain":                     {mutant{noDrain: true}, "RecallBeforeChange Atomic", 1},
		"fence on time-out":         {mutant{expelOnly: true}, "ExclusiveWrite RecallBeforeChange Atomic", 1},
		"abort":                     {mutant{noAbort: true}, "RecallBeforeChange ExclusiveWrite", 36},
		"epoch check":               {mutant{noEpoch: true}, "ExclusiveWrite RecallBeforeChange CommitBeforeGrant ReadAfterWrite", 1065},
		"hello after the last I/O":  {mutant{earlyHello: true}, "RecallBeforeChange ExclusiveWrite", 1049},
		"lease":                     {mutant{noLease: true}, "ReadAfterWrite", 822},
		"fence of reads":            {mutant{readsPass: true}, "ReadAfterWrite NoLeak RecallBeforeChange", 436},
		"key":                       {mutant{noKey: true}, "Once", 1},
		"one try at a time":         {mutant{lateTry: true}, "ReadAfterWrite", 142},
		"recall before compare":     {mutant{keepNoRecall: true}, "Atomic", 1},
	} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			for seed := c.from; seed < c.from+2000; seed++ {
				if err := simulate(seed, c.mutant, nil); err != nil && finds(err, c.want) {
					t.Logf("seed %d: %v", seed, err)
					return
				}
			}
			t.Fatal("not found")
		})
	}
}
