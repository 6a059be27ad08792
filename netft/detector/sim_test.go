package detector

import (
	"flag"
	"fmt"
	"os"
	"reflect"
	"strconv"
	"testing"
	"time"
)

var (
	oneSeed = flag.Uint64("seed", 0, "simulate this seed alone, and print its verdicts")
	seeds   = flag.Int("seeds", 2000, "how many seeds to simulate")
)

// TestSimulation runs histories of faults, and holds each verdict against the truth. -seed replays one.
func TestSimulation(t *testing.T) {
	tally := map[string]int{}
	if *oneSeed != 0 {
		if err := simulate(*oneSeed, 0, tally, t.Logf); err != nil {
			t.Fatal(err)
		}
		return
	}
	for seed := range uint64(seedCount(t)) {
		if err := simulate(seed+1, 0, tally, nil); err != nil {
			t.Fatalf("go test ./netft/detector -run TestSimulation -seed %d: %v", seed+1, err)
		}
	}
	t.Logf("%v", tally)
	for _, what := range []string{
		"node lost", "node alive", "daemon stalled", "daemon alive", "node restarted", "path up", "path suspect", "path lost",
		"network up", "network down", "loss", "one way in", "one way out", "network cut", "flapping", "death", "daemon stalled",
		"observer stopped", "observer's kernel stood still", "observer busy", "duplicates and reordering", "interface gone",
		"dead in time", "starved verdicts", "64 peers",
	} {
		if tally[what] == 0 {
			t.Errorf("no seed had %q", what)
		}
	}
}

func seedCount(t *testing.T) int {
	if n, err := strconv.Atoi(os.Getenv("LUNAR_SEEDS")); err == nil {
		return n
	}
	if raceDetector {
		return *seeds / 10
	}
	return *seeds
}

// TestSimulationRepeats proves that a seed is enough to see a history again.
func TestSimulationRepeats(t *testing.T) {
	var runs [2][]string
	for i := range runs {
		log := func(f string, args ...any) { runs[i] = append(runs[i], fmt.Sprintf(f, args...)) }
		for seed := range uint64(30) {
			if err := simulate(seed+1, 0, map[string]int{}, log); err != nil {
				t.Fatal(err)
			}
		}
	}
	if !reflect.DeepEqual(runs[0], runs[1]) {
		t.Error("two runs differ")
	}
}

// TestMutants leaves out one rule at a time: the simulation has to find out.
func TestMutants(t *testing.T) {
	for name, left := range map[string]rule{
		"grace": ruleGrace, "unobserved time": ruleUnobserved, "daemon apart from kernel": ruleDaemon, "both ways": ruleBothWays,
		"hold": ruleHold, "all paths": ruleAllPaths, "bounded grace": ruleBounded, "what was heard stays": ruleKeepSeen,
	} {
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(*seeds) {
				if err := simulate(seed+1, left, map[string]int{}, nil); err != nil {
					t.Logf("seed %d: %v", seed+1, err)
					return
				}
			}
			t.Errorf("%d seeds did not find that it was left out", *seeds)
		})
	}
}

func simulate(seed uint64, left rule, tally map[string]int, log func(string, ...any)) error {
	w := newWorld(seed, left, tally, log)
	if len(w.peers) == 64 {
		tally["64 peers"]++
	}
	if log != nil {
		log("profile %+v kernel %v answers %v", w.profile, w.kernel, w.answers)
	}
	return w.run()
}

// judge is the observer's tick: the detector's verdicts are held against the truth.
func (w *world) judge() error {
	if until := max(w.stopped, w.frozen); w.now < until {
		w.at(until+w.upTo(w.tick), event{kind: evTick})
		return nil
	}
	w.blindness()
	w.drain()
	for _, v := range w.d.Judge(w.tickNow(), w.stamps()) {
		w.tally[v.Kind.String()]++
		if w.log != nil {
			w.log("%v %v %+v silence %v unobserved %v %s", v.At-time.Hour, v.Kind, v.Path, v.Silence, v.Unobserved, v.Reason)
		}
		if err := w.holds(v); err != nil {
			return fmt.Errorf("%v %+v: %w", v.Kind, v.Path, err)
		}
	}
	w.lastTick = w.now
	next := w.tick
	if w.now < w.busy {
		next += w.lateMin + w.upTo(w.lateMax)
	}
	w.at(w.now+next, event{kind: evTick})
	return w.overdue()
}

func (w *world) tickNow() Tick {
	t := Tick{Now: w.now, Kernel: w.kernel}
	if w.kernel && w.reported < len(w.blind) {
		t.Blind = w.blind[len(w.blind)-1]
		w.reported = len(w.blind)
	}
	return t
}

// blindness notes what the observer missed since its last tick.
func (w *world) blindness() {
	late := w.tick + w.profile.Interval/2
	if w.now-w.lastTick <= late {
		if w.now >= w.lastLate+w.profile.Period {
			w.lateFrom = 0
		}
		return
	}
	if w.lateFrom == 0 {
		w.lateFrom = w.now
	}
	w.lastLate = w.now
	if !w.kernel || w.frozen > w.lastTick {
		w.blind = append(w.blind, Span{w.lastTick + late, w.now})
	}
}

// holds is what must be true of a verdict.
func (w *world) holds(v Verdict) error {
	n := w.find(v.Peer)
	worse := v.Kind == NodeLost || v.Kind == DaemonStalled || v.Kind == PathSuspect && w.byPath[v.Path].state == Up ||
		v.Kind == PathLost && v.Reason == ""
	starved := w.now == w.lastLate && w.lastLate-w.lateFrom >= w.profile.Threshold()
	if worse && w.lastLate != 0 && w.now < w.lastLate+w.profile.Period {
		if !starved {
			return fmt.Errorf("within a period of a late tick, %v ago", w.now-w.lastLate)
		}
		w.tally["starved verdicts"]++
	}
	switch v.Kind {
	case NodeLost:
		n.lost, n.stall = true, false
		return w.mayBeLost(n)
	case NodeAlive:
		n.lost = false
		if n.alive == 0 {
			n.alive = w.now
		}
		if silent := w.now - n.recorded - w.gone(n.recorded); silent >= w.profile.Threshold() {
			return fmt.Errorf("nothing came for %v", silent)
		}
	case DaemonStalled:
		n.stall = true
		return w.mayBeStalled(n)
	case DaemonAlive:
		n.stall = false
		if w.now < n.stalled && w.now-n.stalledAt > w.profile.Threshold()+w.profile.Period {
			return fmt.Errorf("it was stopped %v ago", w.now-n.stalledAt)
		}
	case NodeRestarted:
		n.told++
	case PathUp, PathSuspect, PathLost:
		return w.pathHolds(v)
	}
	return nil
}

func (w *world) mayBeLost(n *node) error {
	if silent := w.now - n.recorded - w.gone(n.recorded); silent < w.profile.Threshold()-time.Millisecond {
		return fmt.Errorf("its silence was observed for %v only", silent)
	}
	for _, l := range w.links {
		if l.owner == n && l.in != 0 && !n.dead && n.stalled <= w.now && n.stalled+w.profile.Threshold() < w.now &&
			w.now-l.in >= w.profile.Threshold() {
			return fmt.Errorf("its heartbeats pass on %+v", l.Path)
		}
	}
	return nil
}

func (w *world) mayBeStalled(n *node) error {
	if n.dead && w.now-n.diedAt > w.profile.Threshold() || n.stalledAt != 0 && w.now-n.stalled < w.profile.Threshold() {
		return nil
	}
	for _, l := range w.links {
		if l.owner == n && l.in != 0 && w.now-l.in >= w.profile.Threshold() {
			return fmt.Errorf("its daemon's heartbeats pass on %+v", l.Path)
		}
	}
	return nil
}

func (w *world) pathHolds(v Verdict) error {
	l := w.byPath[v.Path]
	was := l.state
	switch v.Kind {
	case PathUp:
		l.state = Up
		if was != None && w.now-l.gapAt < w.profile.Period {
			return fmt.Errorf("%v after it came back", w.now-l.gapAt)
		}
	case PathSuspect:
		l.state = Suspect
		if was != Up {
			l.gapAt = w.now
		}
	case PathLost:
		l.state = Lost
		all := l.in != 0 && w.now-max(l.in, l.since) >= w.profile.Threshold()+w.profile.Period && l.owner.stalled+w.profile.Threshold() < w.now
		if all && l.slow == 0 && !l.owner.dead && v.Reason == "" {
			return fmt.Errorf("it is clean for %v", w.now-l.in)
		}
	}
	return nil
}

// overdue finds verdicts that had to come by now.
func (w *world) overdue() error {
	for _, n := range w.peers {
		if err := w.nodeOverdue(n); err != nil {
			return fmt.Errorf("node %d: %w", n.number, err)
		}
	}
	for _, l := range w.links {
		oneWay := l.cutIn != l.cutOut && l.loss == 0
		if s := w.d.Path(l.Path); oneWay && s == Up && w.now-max(l.heard, l.since) > w.profile.Leave()+w.profile.Period+w.tick+w.gone(l.heard) &&
			w.now-w.lastLate > 2*w.profile.Period && w.now-w.lastLate > w.profile.Leave() {
			return fmt.Errorf("%+v: up, and no answer for %v", l.Path, w.now-l.heard)
		}
	}
	return nil
}

func (w *world) nodeOverdue(n *node) error {
	p := w.profile
	silent := w.now - n.recorded
	if silent-w.gone(n.recorded) < p.Threshold() {
		n.due = 0
	} else if n.due == 0 {
		n.due = w.now
	}
	timely := w.lastLate < n.recorded
	switch {
	case n.due == 0:
	case timely && silent > p.Threshold()+p.Period && !n.lost:
		return fmt.Errorf("silent for %v, and not lost", silent)
	case w.now-n.due > p.Threshold()+2*p.Period+2*(w.tick+w.lateMin+w.lateMax) && w.stopped < n.due && w.frozen < n.due && !n.lost:
		return fmt.Errorf("silent and observed for %v, and not lost", w.now-n.due)
	case n.dead && n.lost && timely:
		w.tally["dead in time"]++
	}
	return w.stallOverdue(n, p.Threshold()+2*p.Period)
}

func (w *world) stallOverdue(n *node, limit time.Duration) error {
	stalled := w.now < n.stalled && w.now-n.stalledAt > limit && w.lastLate < n.stalledAt && w.now-n.recorded < w.tick
	if stalled && !n.dead && w.d.Peer(n.number) == Healthy {
		return fmt.Errorf("its daemon is stopped for %v, and not stalled", w.now-n.stalledAt)
	}
	return nil
}

// settled is how things are long after the last fault.
func (w *world) settled() error {
	for _, n := range w.peers {
		want := Healthy
		if n.dead {
			want = Dead
		}
		if got := w.d.Peer(n.number); got != want {
			return fmt.Errorf("node %d is %v in the end, and not %v", n.number, got, want)
		}
		if n.told > n.restarts || n.told < boolInt(n.restarts > 0 && n.alive != 0 && n.alive < n.diedAt) && !n.dead {
			return fmt.Errorf("node %d: told of %d restarts of %d", n.number, n.told, n.restarts)
		}
	}
	for _, l := range w.links {
		if s := w.d.Path(l.Path); !l.owner.dead && (s < Suspect || s != Up && len(w.peers) < 64) {
			return fmt.Errorf("%+v is %v in the end", l.Path, s)
		}
	}
	return nil
}
