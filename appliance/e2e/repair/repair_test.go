package repair

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lunar/appliance/api"
	"lunar/appliance/e2e/cluster/load"
	"lunar/appliance/e2e/lab"
)

// TestRepairUnderLoad finds and repairs damage while initiators write through all nodes, by an order to a node that
// does not coordinate the volume; then it defragments the image and trims the volume. No I/O fails, none waits for longer
// than was printed, and every node was redirected meanwhile.
func TestRepairUnderLoad(t *testing.T) {
	b := newBench(t)
	b.fragment()
	b.damage()
	b.load()
	b.working()
	coordinator, err := b.Coordinator(b.ctx)
	check(t, err)
	other := b.Others(coordinator)[0]
	began := time.Now()
	var steps []string
	r, err := b.repair(other, api.Repair{}, func(s api.RepairStep) { steps = append(steps, s.Phase) })
	check(t, err)
	ended := time.Now()
	t.Logf("%d steps: %+v", len(steps), r)
	if !r.Damaged || !r.Repaired || len(r.Findings) == 0 || r.Coordinator != coordinator.Name || len(steps) < 10 {
		t.Errorf("%+v, %q", r, steps)
	}
	b.directAgain(ended)
	b.working()
	b.waitedNoLonger(began, r.Waited())
	for _, n := range b.Nodes {
		if log, err := os.ReadFile(n.LogPath); err != nil || !bytes.Contains(log, []byte("reasons=Maintenance")) {
			t.Errorf("node %s was not redirected: %v", n.Name, err)
		}
	}
	out, err := lab.Run(b.ctx, filepath.Join(b.lab.Bin, "lunarctl"), "--socket", other.Socket, "volume", "repair", lab.ClusterVolume, "--check-only")
	if err != nil || !strings.Contains(out, "xfs, clean") {
		t.Errorf("after the repair: %v, %s", err, out)
	}
	t.Log(out)

	began = time.Now()
	r, err = b.repair(other, api.Repair{NoCheck: true, Trim: true, Defragment: []string{lab.ClusterImage}}, func(api.RepairStep) {})
	check(t, err)
	t.Logf("%+v", r)
	if d := r.Defragmented[0]; d.Before < 20 || d.After*2 > d.Before || d.Moved < pieces*mib {
		t.Errorf("%+v", d)
	}
	if r.Trimmed == 0 {
		t.Errorf("nothing was trimmed: %+v", r)
	}
	b.working()
	b.waitedNoLonger(began, time.Second)
	b.finish()
	for _, n := range b.Nodes {
		b.fragmented(n)
	}
	check(t, b.Eject(b.ctx))
	check(t, b.Stop())
	check(t, b.Repair(b.ctx))
}

// directAgain waits until every node's I/O is direct, at most 2 s after since.
func (b *bench) directAgain(since time.Time) {
	b.t.Helper()
	for _, n := range b.Nodes {
		check(b.t, n.AwaitState(b.ctx, api.Direct, 2*time.Second+slack()))
	}
	b.t.Logf("all nodes are direct %v after the end", time.Since(since).Round(time.Millisecond))
}

// waitedNoLonger compares what initiators saw with what was printed.
func (b *bench) waitedNoLonger(began time.Time, printed time.Duration) {
	b.t.Helper()
	now := time.Now()
	late := b.fleet.Record.Longest(load.Machine, began, now, nil).Took
	for _, kind := range []load.Kind{load.Direct, load.Redirected, load.Metadata} {
		o := b.fleet.Record.Longest(kind, began, now, nil)
		b.t.Logf("%s: longest %v, through %s; bar %v; this machine late by up to %v", kind, o.Took.Round(time.Millisecond), o.Path,
			printed.Round(time.Millisecond), late.Round(time.Millisecond))
		if o.Took > printed+4*late+slack() {
			b.t.Errorf("%s I/O waited for %v, the bar is %v", kind, o.Took, printed)
		}
	}
	if n := b.fleet.Record.Count(load.Moved); n > 0 {
		b.t.Errorf("%d times an initiator lost its path", n)
	}
}

// The steps that are told: of the redirection and the check, of the repair after it, and with the check after that.
const (
	stepsOfCheck  = 7
	stepsOfRepair = 4 // the first ones
	stepsInAll    = 20
)

// TestRepairIsCutOff kills or stops the coordinator's daemon at a random moment of the repair. Another node ends the repair before it
// mounts the volume; nothing that was acknowledged is lost, and the file system is clean.
func TestRepairIsCutOff(t *testing.T) {
	b := newBench(t)
	seed := rand.Uint64()
	random := rand.New(rand.NewPCG(seed, 1))
	ended := 0
	for i := range runs() {
		at := stepsOfCheck + random.IntN(stepsOfRepair) // what is told is a little behind
		if i%4 == 3 {
			at = 1 + random.IntN(stepsInAll)
		}
		how := (*lab.ClusterNode).Kill
		if i%3 == 2 {
			how = (*lab.ClusterNode).Freeze // its guard ends it
		}
		if b.cutOff(at, how) {
			ended++
		}
	}
	t.Logf("seed %d: of %d repairs that were cut off another node ended %d", seed, runs(), ended)
	check(t, b.Eject(b.ctx))
	check(t, b.Stop())
	check(t, b.Repair(b.ctx))
}

// cutOff cuts a repair off at a step, and tells whether another node had to end it.
func (b *bench) cutOff(at int, how func(*lab.ClusterNode)) (ended bool) {
	b.t.Helper()
	b.damage()
	b.load()
	b.working()
	coordinator, err := b.Coordinator(b.ctx)
	check(b.t, err)
	other := b.Others(coordinator)[0]
	seen := 0
	_, err = b.repair(coordinator, api.Repair{}, func(api.RepairStep) {
		if seen++; seen == at {
			how(coordinator)
		}
	})
	if err == nil { // it was faster
		how(coordinator)
	}
	check(b.t, lab.Poll(time.Minute, func() error {
		now, err := b.Coordinator(b.ctx)
		if err == nil && now == coordinator {
			err = fmt.Errorf("node %s is still the coordinator", now.Name)
		}
		return err
	}))
	b.working()
	check(b.t, coordinator.Restart(b.ctx))
	ended = b.event("was cut off, was ended by node")
	r, err := b.repair(other, api.Repair{}, func(api.RepairStep) {})
	check(b.t, err)
	if ended && r.Damaged {
		b.t.Errorf("a repair that another node ended has left damage: %+v", r)
	}
	b.t.Logf("cut off at step %d; ended by another node: %v; damage was left: %v", at, ended, r.Damaged)
	b.finish()
	b.fleet = nil
	return ended
}

// event tells whether the cluster's log has a line with these words since it was asked last.
func (b *bench) event(words string) bool {
	b.t.Helper()
	found := false
	check(b.t, b.Nodes[0].API.Log(b.ctx, lab.ClusterVolume, false, func(e api.Event) error {
		found = found || bytes.Contains([]byte(e.Text), []byte(words)) && e.Time.After(b.asked)
		return nil
	}))
	b.asked = time.Now()
	return found
}
