package cluster

import "time"

// Backup is what other nodes know of a backup that holds a volume: whoever coordinates it suspends changes of its
// images meanwhile.
type Backup struct {
	ID       string        `json:"id"`              // 8 hex digits
	Snapshot string        `json:"snapshot"`        // that it shows
	Since    string        `json:"since,omitempty"` // an earlier snapshot, of an incremental one
	Wait     time.Duration `json:"wait,omitempty"`  // of a change, before it fails
	Until    time.Time     `json:"until"`           // it has ended then, whatever happens
}
