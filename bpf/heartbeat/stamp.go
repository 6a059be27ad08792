package heartbeat

import (
	"net/netip"
	"time"
)

// Family is the IP version of a path.
type Family uint8

// The families.
const (
	IPv4 Family = 4
	IPv6 Family = 6
)

// Path is one way between this node and a peer.
type Path struct {
	Peer    uint16 // the peer's node number
	Network uint16 // as given to Attach, and in the heartbeats
	Family  Family
}

// RTTBuckets is the length of Stamp.RTT: bucket i counts round trips of 2^i to 2^(i+1) ns, the last also all above.
const RTTBuckets = 32

// Stamp is what the kernel knows of a path. Times are readings of CLOCK_MONOTONIC, as Now gives; 0: never.
type Stamp struct {
	Path
	// Incarnation and Sequence are the highest pair that was accepted.
	Incarnation, Sequence uint64
	// Confirmed says that an answer to a beat of ours bore Incarnation; until then the beats may be a recording.
	Confirmed bool
	// Silent says that the path was reported silent and has not come back.
	Silent bool
	// FirstSeen and LastBeat are when the first and the last new beat of the peer's daemon came.
	FirstSeen, LastBeat time.Duration
	// LastAnswer is when the peer's kernel, or its daemon, last answered a beat of ours: the node lives, in both ways.
	LastAnswer time.Duration
	// Daemon is the last time at which the peer's daemon is known to have lived: LastBeat, or the time of an
	// answer less the age that the answer gave.
	Daemon time.Duration
	// LastSent is when our daemon's last beat left on this path.
	LastSent time.Duration
	// Beats and Answers were accepted, Sent is our own beats.
	Beats, Answers, Sent uint64
	// Gaps is how many sequence numbers were skipped. Reordered ones came later: Gaps-Reordered were lost.
	Gaps, Reordered uint64
	// Duplicates came twice. Replayed are older than could be a mistake of the network. Unsolicited are answers to
	// nothing that was asked. Forged have a wrong tag and claim to be of this path. Restarts are new incarnations.
	Duplicates, Replayed, Unsolicited, Forged, Restarts uint64
	// Jitter is the interarrival jitter of RFC 3550, §6.4.1.
	Jitter time.Duration
	// LastRTT and MinRTT are from the departure of a beat to the arrival of its answer, less the answer's hold.
	LastRTT, MinRTT time.Duration
	// RTT is the histogram of round trips.
	RTT [RTTBuckets]uint32
	// Source is where the last new beat came from, without a zone; the zero Addr before there was one.
	Source netip.Addr
}

// Node is what the kernel knows of this node.
type Node struct {
	// Daemon is when a beat of our daemon last left.
	Daemon time.Duration
	// LastTick is when the timer last ticked; LateTick, when it last came late: before then + its threshold, judge nobody.
	LastTick, LateTick time.Duration
	// MaxLate is by how much a tick came late at most.
	MaxLate time.Duration
	// Ticks and LateTicks count them.
	Ticks, LateTicks uint64
	// Answered is how many beats the kernel answered.
	Answered uint64
	// Forged have a wrong tag; Foreign are of another cluster or node, or not ours at all; Malformed have the right tag
	// and a field that is not allowed; Misplaced came by another network or family than they say; Unknown are of a path
	// that SetPaths did not name.
	Forged, Foreign, Malformed, Misplaced, Unknown uint64
	// LostEvents did not fit into the ring.
	LostEvents uint64
}

// EventKind says what happened.
type EventKind uint32

// The events, and what Value is.
const (
	// FirstSeen: the path's first beat came. Value is its incarnation.
	FirstSeen EventKind = iota + 1
	// Returned: a sign of life after silence. Value is how long it lasted, in ns.
	Returned
	// Silent: no sign of life for Options.Silent ticks. Value is for how long, in ns.
	Silent
	// Restarted: the peer's daemon has a new incarnation, which is Value.
	Restarted
	// Forged: a wrong tag; reported once a second at most. Value is how many there were in all.
	Forged
	// LateTick: this kernel stood still. Value is by how much the tick came late, in ns. It has no path.
	LateTick
)

// String is the name as it stands in a log.
func (k EventKind) String() string {
	names := [...]string{"unknown", "first seen", "returned", "silent", "restarted", "forged", "late tick"}
	if int(k) >= len(names) {
		return names[0]
	}
	return names[k]
}

// Event is one thing that happened, in the order in which the kernel saw it.
type Event struct {
	At    time.Duration // CLOCK_MONOTONIC
	Kind  EventKind
	Path  Path
	Value uint64
}
