package cluster

import (
	"cmp"
	"hash/fnv"
	"slices"
	"time"
)

// The stagger: the best candidate campaigns at once, the next ones a little later each, so that the
// failure of the best costs no more than that.
const (
	stagger    = 100 * time.Millisecond
	maxStagger = 300 * time.Millisecond
)

// View is the cluster's coordination at one revision. It is not changed after it was handed out.
type View struct {
	Revision int64
	Nodes    map[string]Presence // those with a session
	Seats    map[string]Seat     // by volume ID; those that were ever taken, or that a node reaches

	Holds map[string]map[string]Hold // by volume ID and reason
}

// eligible tells whether the node can coordinate the volume: it is there and reaches the LUN.
func (v *View) eligible(node, volume string) bool { return v.Nodes[node].Paths[volume] }

// Rank orders the nodes that can coordinate a volume, best first: whom the user named, nodes that
// are not draining or stopping, fewest volumes coordinated, and then an order of the volume's own.
func (v *View) Rank(volume string) []string { return v.rank(volume, nil) }

func (v *View) rank(volume string, more map[string]int) []string {
	var out []string
	for node := range v.Nodes {
		if v.eligible(node, volume) {
			out = append(out, node)
		}
	}
	next := v.Seats[volume].Next
	slices.SortFunc(out, func(a, b string) int {
		return cmp.Or(
			cmp.Compare(v.class(a, next), v.class(b, next)),
			cmp.Compare(v.Nodes[a].Coordinates+more[a], v.Nodes[b].Coordinates+more[b]),
			cmp.Compare(mix(volume, a), mix(volume, b)),
			cmp.Compare(a, b))
	})
	return out
}

func (v *View) class(node, next string) int {
	switch {
	case v.Nodes[node].Stopping:
		return 3 // only if nobody else is left
	case v.Nodes[node].Draining:
		return 2
	case node == next:
		return 0
	}
	return 1
}

func mix(volume, node string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(volume + "/" + node))
	return h.Sum64()
}

// delay is how long the candidate of a rank waits after a seat became vacant.
func delay(rank int) time.Duration { return min(time.Duration(rank)*stagger, maxStagger) }

// The reasons for which a coordinator is asked to hand over.
const (
	LeaveByOrder  = "by order"
	LeaveNoPath   = "its node lost the path to the LUN"
	LeaveDraining = "its node is draining"
)

// leave tells whether the seat's holder, which is node, has to hand over, to whom, and why. Without
// a better node it stays.
func (v *View) leave(node string, s Seat) (next, reason string, ok bool) {
	best := ""
	for _, other := range v.Rank(s.Volume) {
		if other != node {
			best = other
			break
		}
	}
	if o := s.Order; o != nil && o.Epoch == s.Coordinator.Epoch && o.To != node {
		if o.To != "" && v.eligible(o.To, s.Volume) {
			return o.To, LeaveByOrder, true
		}
		if o.To == "" && best != "" && !v.Nodes[best].Draining {
			return best, LeaveByOrder, true
		}
	}
	if best == "" {
		return "", "", false
	}
	if reached, known := v.Nodes[node].Paths[s.Volume]; known && !reached {
		return best, LeaveNoPath, true
	}
	if v.Nodes[node].Draining && !v.Nodes[best].Draining {
		return best, LeaveDraining, true
	}
	return "", "", false
}

// elector decides when a node campaigns, from views and the time alone.
type elector struct {
	node   string
	vacant map[string]time.Duration // since when, by volume
	holds  map[string]hold
}

// hold keeps the node from a volume after a failure, so that others have their turn.
type hold struct {
	until, step time.Duration
}

// The hold doubles from failure to failure, until the volume is open.
const (
	firstHold   = time.Second
	longestHold = 30 * time.Second
)

func newElector(node string) *elector {
	return &elector{node: node, vacant: map[string]time.Duration{}, holds: map[string]hold{}}
}

// failed notes that a term of this node ended before it was open, or that a campaign failed.
func (e *elector) failed(volume string, now time.Duration) {
	h := e.holds[volume]
	h.step = min(max(2*h.step, firstHold), longestHold)
	h.until = now + h.step
	e.holds[volume] = h
}

// pause keeps the node from a volume until the next view is likely to be here.
func (e *elector) pause(volume string, now time.Duration) {
	h := e.holds[volume]
	h.until = max(h.until, now+campaignPause)
	e.holds[volume] = h
}

func (e *elector) opened(volume string) { delete(e.holds, volume) }

// plan names the volumes for which to campaign now, and when to ask again, 0: at the next view.
// Volumes that become vacant together are dealt out among all candidates.
func (e *elector) plan(v *View, now time.Duration, busy func(volume string) bool) (campaign []string, again time.Duration) {
	more := map[string]int{}
	for _, volume := range e.vacancies(v, now) {
		ranked := v.rank(volume, more)
		if len(ranked) == 0 {
			continue
		}
		more[ranked[0]]++
		i := slices.Index(ranked, e.node)
		if i < 0 || busy(volume) {
			continue
		}
		at := max(e.vacant[volume]+delay(i), e.holds[volume].until)
		if at <= now {
			campaign = append(campaign, volume)
		} else if again == 0 || at < again {
			again = at
		}
	}
	return campaign, again
}

// vacancies are the vacant volumes in order; it notes since when.
func (e *elector) vacancies(v *View, now time.Duration) []string {
	var out []string
	for volume, seat := range v.Seats {
		if seat.Coordinator != nil {
			delete(e.vacant, volume)
			continue
		}
		if _, known := e.vacant[volume]; !known {
			e.vacant[volume] = now
		}
		out = append(out, volume)
	}
	for volume := range e.vacant {
		if _, known := v.Seats[volume]; !known {
			delete(e.vacant, volume)
		}
	}
	slices.Sort(out)
	return out
}
