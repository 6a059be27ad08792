package api

import "time"

// State of a volume on a node.
type State string

// The states of INTERFACE: how the node reaches the volume.
const (
	Direct      State = "Direct"
	Redirected  State = "Redirected"
	Paused      State = "Paused"
	StateAbsent State = "Unavailable"
)

// AddVolume makes a block device a volume.
type AddVolume struct {
	Device string `json:"device"`           // path of a block device
	Name   string `json:"name,omitempty"`   // default: the next free VolumeN
	Format string `json:"format,omitempty"` // xfs or ext4: make a new file system; empty: keep the one that is there
	Force  bool   `json:"force,omitempty"`  // format a device that holds something
	// AllowUnfenced lets several nodes use a device that has no reservations.
	AllowUnfenced bool `json:"allowUnfenced,omitempty"`
}

// MoveVolume makes another node the coordinator.
type MoveVolume struct {
	To string `json:"to,omitempty"` // node; empty: the best one
}

// MovedVolume tells who coordinates a volume after its move.
type MovedVolume struct {
	Volume string `json:"volume"`
	Node   string `json:"node"`
	Epoch  uint64 `json:"epoch"`
}

// Volume is one line of the list.
type Volume struct {
	Name        string    `json:"name"`
	WWID        string    `json:"wwid"`
	Device      string    `json:"device,omitempty"`
	FileSystem  string    `json:"fileSystem"`
	Size        int64     `json:"size"` // bytes, 0 while unavailable
	Free        int64     `json:"free"` // bytes
	Coordinator string    `json:"coordinator,omitempty"`
	State       State     `json:"state"`
	Reason      string    `json:"reason,omitempty"`
	Epoch       uint64    `json:"epoch"`
	Fencing     string    `json:"fencing,omitempty"` // how a node that is out is kept from writing, in words
	Created     time.Time `json:"created"`
}

// Count is a number of I/Os and their bytes.
type Count struct {
	IOs   uint64 `json:"ios"`
	Bytes uint64 `json:"bytes"`
}

// Counters are a volume's I/Os on a node since its start.
type Counters struct {
	DirectRead      Count `json:"directRead"`
	DirectWrite     Count `json:"directWrite"`
	RedirectedRead  Count `json:"redirectedRead"`
	RedirectedWrite Count `json:"redirectedWrite"`
	Metadata        Count `json:"metadata"`
}

// VolumeNode is a volume as one node has it.
type VolumeNode struct {
	Node   string `json:"node"`
	State  State  `json:"state"`
	Reason string `json:"reason,omitempty"`
	Counters
}

// VolumeDetail is what `volume show` prints.
type VolumeDetail struct {
	Volume
	Nodes []VolumeNode `json:"nodes"`
}

// RenameVolume gives a volume another name.
type RenameVolume struct {
	Name string `json:"name"`
}

// RedirectVolume switches redirected I/O by the user's request on or off, on this node.
type RedirectVolume struct {
	On bool `json:"on"`
}
