package volume

import (
	"strings"
	"sync/atomic"
)

// State is how this node reaches the volume, in Windows' words (Get-ClusterSharedVolumeState).
type State string

// States.
const (
	Direct      State = "Direct"      // I/O goes to the disk by layout
	Redirected  State = "Redirected"  // I/O goes through the coordinator
	Paused      State = "Paused"      // I/O waits: for a change of the file system, or for a Resume
	Unavailable State = "Unavailable" // neither the disk nor the coordinator answers
)

// Reason says why I/O is redirected, or waits; reasons are bits.
type Reason uint32

// Reasons.
const (
	UserRequest Reason = 1 << iota
	NoDiskConnectivity
	Backup
	Maintenance
	InitialisingLayout
	Fenced    // I/O waits: a reservation keeps this node out
	LeaseLost // I/O waits: this node cannot renew its lease
)

var reasonNames = []string{"UserRequest", "NoDiskConnectivity", "Backup", "Maintenance", "InitialisingLayout", "Fenced", "LeaseLost"}

// String lists the reasons' names, "" when there is none.
func (r Reason) String() string {
	var names []string
	for i, name := range reasonNames {
		if r&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	return strings.Join(names, ",")
}

// Count is a number of I/Os and their bytes.
type Count struct {
	IOs   int64 `json:"ios"`
	Bytes int64 `json:"bytes"`
}

// Status is a volume as this node sees it.
type Status struct {
	State           State  `json:"state"`
	Reason          Reason `json:"reason"`
	DirectRead      Count  `json:"direct_read"`
	DirectWrite     Count  `json:"direct_write"`
	RedirectedRead  Count  `json:"redirected_read"`
	RedirectedWrite Count  `json:"redirected_write"`
	Metadata        Count  `json:"metadata"` // calls to the coordinator that are no I/O; bytes unmapped
	Images          int    `json:"images"`   // open here
	Waiting         int64  `json:"waiting"`  // I/Os that wait for a change of the file system, or a Resume
	Epoch           uint64 `json:"epoch"`    // of the latest coordinator
	Orphan          bool   `json:"orphan"`   // there is no coordinator now
	Stranded        int    `json:"stranded"` // operations that wait for one
	Astray          int    `json:"astray"`   // images whose I/O waits until the coordinator has attached them
}

// class is what a counter counts.
type class uint8

const (
	directRead class = iota
	directWrite
	redirectedRead
	redirectedWrite
	metadata
	numClasses
)

// counters is one lane's share; padded, so that lanes do not share its cache lines.
type counters struct {
	ios, bytes [numClasses]atomic.Int64
	_          [48]byte
}

func (c *counters) add(k class, bytes int64) {
	c.ios[k].Add(1)
	c.bytes[k].Add(bytes)
}

func (v *Volume) count(k class) (sum Count) {
	for i := range v.counters {
		sum.IOs += v.counters[i].ios[k].Load()
		sum.Bytes += v.counters[i].bytes[k].Load()
	}
	return sum
}

// Status tells state and counters.
func (v *Volume) Status() Status {
	v.mu.Lock()
	reasons, images := v.reasons, len(v.images)
	v.mu.Unlock()
	t := v.term.Load()
	v.stranded.mu.Lock()
	stranded := len(v.stranded.all)
	v.stranded.mu.Unlock()
	s := Status{Reason: reasons | Reason(v.pausing.Load()), Images: images, Waiting: v.parked.Load(),
		Epoch: t.epoch, Orphan: t.c == nil, Stranded: stranded, Astray: len(v.astray()),
		DirectRead: v.count(directRead), DirectWrite: v.count(directWrite),
		RedirectedRead: v.count(redirectedRead), RedirectedWrite: v.count(redirectedWrite),
		Metadata: v.count(metadata)}
	s.State = stateOf(s, reasons, v.pausing.Load() != 0, v.deaf.Load() || v.mute.Load())
	return s
}

// stateOf names what the facts come to; noPath: the coordinator does not reach the disk either.
func stateOf(s Status, redirected Reason, paused, noPath bool) State {
	switch {
	case redirected&NoDiskConnectivity != 0 && (noPath || s.Orphan):
		return Unavailable
	case paused:
		return Paused
	case redirected != 0:
		return Redirected
	case s.Waiting > 0:
		return Paused
	}
	return Direct
}
