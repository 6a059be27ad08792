package netft

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"lunar/netft/detector"
	"lunar/netft/network"
)

// Port is the UDP port of heartbeats.
const Port = 3343

// MaxPeers is how many peers a node watches at most.
const MaxPeers = 64

// ErrClosed says that the Fabric was closed.
var ErrClosed = errors.New("netft: closed")

// Peer is another node.
type Peer struct {
	Name   string `json:"name"`
	Number uint16 `json:"number"` // not 0
	// Cluster is its cluster address. The zero Addr: no route is wanted.
	Cluster netip.Addr `json:"cluster"`
	// Interfaces are as the peer published them last.
	Interfaces []network.Interface `json:"interfaces"`
}

// Options are what Start needs. Name, Number, Key and Incarnation are required.
type Options struct {
	Name   string
	Number uint16 // of this node, not 0
	// Cluster is this node's cluster address, which Start puts on network.ClusterInterface. The zero Addr: none,
	// and no routes.
	Cluster netip.Addr
	// Key signs the heartbeats of the cluster.
	Key [16]byte
	// Incarnation is higher than at each earlier start of this node, not 0.
	Incarnation uint64
	// Profile's zero fields take their defaults, see detector.Profile.
	Profile detector.Profile
	// Port is the UDP port of heartbeats; 0 is Port.
	Port uint16
	// StateFile keeps the peers, as last known, for a start without the database. "" keeps nothing.
	StateFile string
	// BPF allows heartbeats to be stamped and answered in the kernel.
	BPF bool
	// Pin is a folder in a bpf file system, see bpf/heartbeat; "" pins nothing. Where it cannot be, nothing is pinned.
	Pin string
	// Verdict is told each verdict, in order, from one goroutine. It never blocks and calls nothing of the Fabric. May be nil.
	Verdict func(Verdict)
	// Changed is called after this node's interfaces, or the networks, have changed. It never blocks. May be nil.
	Changed func()
	Log     *slog.Logger // nil is slog.Default()
}

// Validate tells what is wrong.
func (o Options) Validate() error {
	switch {
	case o.Name == "":
		return errors.New("netft: the node has no name")
	case o.Number == 0:
		return fmt.Errorf("netft: node %s has no number", o.Name)
	case o.Incarnation == 0:
		return fmt.Errorf("netft: node %s has no incarnation", o.Name)
	case o.Key == [16]byte{}:
		return errors.New("netft: no heartbeat key")
	}
	return o.Profile.WithDefaults().Validate()
}

// Verdict is a change of what is known of a peer, and its evidence.
type Verdict struct {
	detector.Verdict
	Time    time.Time // of the wall clock
	Peer    string    // its name
	Network string    // its name; of a verdict on a path or a network
	Method  string    // what stamped the heartbeats: MethodKernel or MethodSocket
	// Networks has the names of the networks in Evidence.
	Networks map[uint16]string
}

// The two ways in which heartbeats are stamped.
const (
	MethodKernel = "kernel"
	MethodSocket = "socket"
)

// PathStats is what is known of a path to a peer. Times are of CLOCK_MONOTONIC, as time since boot; 0 is never.
type PathStats struct {
	Peer    string
	Number  uint16
	Network string
	Family  detector.Family
	// Local and Remote are the addresses between which heartbeats go; the zero Addr when the interface has none.
	Local, Remote netip.Addr
	State         detector.State
	Down          string // why it is down, when it is not for silence
	Health        detector.Health
	// Route tells that the cluster traffic to the peer goes over this network.
	Route bool
	// Last is the time since the last sign of life, Daemon since the peer's daemon last beat; negative is never.
	Last, Daemon time.Duration
	// Sent are our heartbeats, Beats the peer's, Answers its answers to ours.
	Sent, Beats, Answers uint64
	// Gaps are missing sequence numbers; reordered ones come later and count in Reordered too.
	Gaps, Reordered, Duplicates, Replayed, Forged, Unsolicited, Restarts uint64

	Jitter, LastRTT, MinRTT time.Duration
	// RTT counts round trips: element i those of 2^i ns to 2^(i+1) ns.
	RTT [32]uint32
}

// Counters count datagrams which are of no path, since the start.
type Counters struct {
	Forged    uint64 // wrong signature
	Foreign   uint64 // of another cluster, or not ours at all
	Malformed uint64
	Misplaced uint64 // came by another network or family than they say
	Unknown   uint64 // of a node that is no peer
	Unsent    uint64 // of our own, which the kernel would not take
	LateTicks uint64 // times that this machine stood still, or did not let us run
}
