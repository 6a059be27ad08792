package detector

import (
	"fmt"
	"time"
)

// Family is the IP version of a path.
type Family uint8

// The families.
const (
	IPv4 Family = 4
	IPv6 Family = 6
)

// String is IPv4 or IPv6.
func (f Family) String() string { return fmt.Sprintf("IPv%d", uint8(f)) }

// Path is one way to a peer.
type Path struct {
	Peer    uint16 // the peer's node number
	Network uint16 // as in the heartbeats
	Family  Family
}

// Watched is a path to judge.
type Watched struct {
	Path
	// Routed tells that the two ends lie in different subnets.
	Routed bool
	// Down tells that it cannot work now, and why: the interface here has no carrier, or is gone. The path is Lost
	// at once; the node's own silence goes on counting by the threshold. "" is a path that may work.
	Down string
}

// Stamp is what the node has heard on a path so far. Times are readings of the monotonic clock; 0 is never.
type Stamp struct {
	Path
	// Seen is when the last sign of life came: a new heartbeat of the peer's daemon, or an answer to one of ours.
	// Heartbeats of a daemon that never answered may be a recording and do not count.
	Seen time.Duration
	// Heard is when the peer was last known to have received a heartbeat of ours: when its answer came.
	Heard time.Duration
	// Daemon is the last time at which the peer's daemon is known to have beaten: when its heartbeat came, or
	// the time of an answer less the age that the answer gave.
	Daemon time.Duration
	// Incarnation is the peer's daemon's, higher with each of its starts. 0 is not known.
	Incarnation uint64
	// Gaps is how many heartbeats were missing from the sequence, for the evidence.
	Gaps uint64
}

// Span is some time: from From to To.
type Span struct{ From, To time.Duration }

// Tick is the moment of a judgement.
type Tick struct {
	Now time.Duration
	// Kernel tells that the kernel stamps heartbeats whether this process runs or not. A tick that comes late then
	// means grace, and no span that nobody observed.
	Kernel bool
	// Blind is a span not reported before in which nothing was stamped, as the kernel stood still. Zero is none.
	Blind Span
	// Gone are networks on which peers say themselves that they have no carrier.
	Gone []Gone
}

// Gone is a peer's word that its interface on a network went down.
type Gone struct {
	Peer    uint16
	Network uint16
}

// State is the state of a path, or the best of a network's two.
type State uint8

// The states, from worst to best.
const (
	None     State = iota // not watched
	Lost                  // given up, or Down
	Unproven              // nothing was heard yet, for less than the threshold
	Suspect               // heartbeats were missed, or pass again and have not for long enough
	Up                    // heartbeats pass in both directions
)

// String is the state's name in a log.
func (s State) String() string {
	return nameOf([]string{"none", "lost", "unproven", "suspect", "up"}, int(s))
}

// Health is the state of a peer.
type Health uint8

// The states of a peer.
const (
	Unknown Health = iota // nothing was heard yet, for less than the threshold
	Healthy               // node and daemon live
	Stalled               // the node lives, its daemon does not beat
	Dead                  // silent on all networks
)

// String is the health's name in a log.
func (h Health) String() string {
	return nameOf([]string{"unknown", "healthy", "daemon stalled", "lost"}, int(h))
}

// Kind is what a Verdict says.
type Kind uint8

// The verdicts.
const (
	PathUp        Kind = iota + 1 // heartbeats pass
	PathSuspect                   // some were missed, or a lost path's pass again
	PathLost                      // none for the threshold, or the path is down
	NetworkUp                     // a path of this network to the peer is Up
	NetworkDown                   // none is
	NodeAlive                     // the node lives: first heard of, or back
	NodeLost                      // silent on all networks for the threshold; only this may evict or fence
	DaemonStalled                 // the node lives, its daemon has not beaten for the threshold
	DaemonAlive                   // it beats again
	NodeRestarted                 // the daemon has a new incarnation
)

// String is the verdict's name in a log.
func (k Kind) String() string {
	return nameOf([]string{
		"", "path up", "path suspect", "path lost", "network up", "network down", "node alive", "node lost",
		"daemon stalled", "daemon alive", "node restarted",
	}, int(k))
}

func nameOf(names []string, i int) string {
	if i < len(names) {
		return names[i]
	}
	return fmt.Sprintf("unknown %d", i)
}

// Verdict is a change, with what it rests on.
type Verdict struct {
	Kind Kind
	At   time.Duration
	Path // of a path: all; of a network: no family; of a node or daemon: the peer alone
	// Silence is the time without a sign of life that was observed, of the path, or the shortest of the peer's.
	// For DaemonStalled and DaemonAlive, that of the daemon.
	Silence time.Duration
	// Threshold is what Silence was held against.
	Threshold time.Duration
	// Unobserved is how much of the silence nobody observed; it is not in Silence.
	Unobserved time.Duration
	// Reason is why a path is Lost when it is not for its silence: Watched.Down.
	Reason string
	// Incarnation is the peer's, the new one for NodeRestarted.
	Incarnation uint64
	// Evidence is all paths of the peer, sorted.
	Evidence []Evidence
}

// Evidence is what was known of a path at a verdict.
type Evidence struct {
	Stamp
	State     State
	Silence   time.Duration // observed, since Seen, or since it is watched
	Unheard   time.Duration // observed, since Heard, or since it is watched
	Threshold time.Duration
	Down      string
}
