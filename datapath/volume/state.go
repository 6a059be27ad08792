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
	Paused      State = "Paused"      // I/O waits for a change of the file system
	Unavailable State = "Unavailable" // neither the disk nor the coordinator answers
)

// Reason says why I/O is redirected; reasons are bits.
type Reason uint32

// Reasons.
const (
	UserRequest Reason = 1 << iota
	NoDiskConnectivity
	Backup
	Maintenance
	InitialisingLayout
)

var reasonNames = []string{"UserRequest", "NoDiskConnectivity", "Backup", "Maintenance", "InitialisingLayout"}

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
	Waiting         int64  `json:"waiting"`  // I/Os that wait for a change of the file system
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
	s := Status{State: Direct, Reason: reasons, Images: images, Waiting: v.parked.Load(),
		DirectRead: v.count(directRead), DirectWrite: v.count(directWrite),
		RedirectedRead: v.count(redirectedRead), RedirectedWrite: v.count(redirectedWrite),
		Metadata: v.count(metadata)}
	switch {
	case reasons&NoDiskConnectivity != 0 && (v.deaf.Load() || v.mute.Load()):
		s.State = Unavailable
	case reasons != 0:
		s.State = Redirected
	case s.Waiting > 0:
		s.State = Paused
	}
	return s
}
