package cluster

import (
	"slices"
	"time"
)

// Volume is a back-end LUN with its file system.
type Volume struct {
	ID            string    `json:"id"`                      // made once, 16 hex digits; everything refers to it
	Name          string    `json:"name"`                    // unique, can change
	WWID          string    `json:"wwid"`                    // the LUN's identity, unique
	Device        string    `json:"device,omitempty"`        // where the LUN was last seen; a hint only
	FileSystem    string    `json:"fileSystem"`              // xfs or ext4
	Epoch         uint64    `json:"epoch"`                   // number of the present coordinator's term
	AllowUnfenced bool      `json:"allowUnfenced,omitempty"` // several nodes may use it although its LUN has no reservations
	Ejecting      bool      `json:"ejecting,omitempty"`      // no node takes it any more
	Redirected    []string  `json:"redirected,omitempty"`
	OffLine       []string  `json:"offLine,omitempty"` // nodes that take no part in it, by the user's wish
	Created       time.Time `json:"created"`
	Mending       *Mending  `json:"mending,omitempty"` // it is repaired, and not to be mounted before that is done

	Hooks map[string]Hook `json:"hooks,omitempty"` // by the image's path

	Unended []UnendedBackup `json:"unended,omitempty"`
}

// UnendedBackup is a backup that has a snapshot with a name of its own, and has not ended in order: the snapshot is to be
// kept only then. Who coordinates the volume removes it when the backup's hold has gone.
type UnendedBackup struct {
	ID       string `json:"id"`
	Snapshot string `json:"snapshot"` // its name; another one may have it later
	Set      uint64 `json:"set"`      // what tells it from that one
	Taken    int64  `json:"taken"`    // and when it was taken, nanoseconds since 1970
}

// Mending is a repair that has begun to write. Who coordinates the volume next ends it first.
type Mending struct {
	Node  string    `json:"node"`
	Epoch uint64    `json:"epoch"`
	Since time.Time `json:"since"`
	Force bool      `json:"force,omitempty"` // the log is given up
}

// RedirectedOn tells whether the user asked for redirected I/O on a node.
func (v *Volume) RedirectedOn(node string) bool { return slices.Contains(v.Redirected, node) }

// SetRedirected records or withdraws the user's wish for redirected I/O on a node.
func (v *Volume) SetRedirected(node string, on bool) {
	v.Redirected = slices.DeleteFunc(v.Redirected, func(n string) bool { return n == node })
	if on {
		v.Redirected = append(v.Redirected, node)
		slices.Sort(v.Redirected)
	}
}

// Target is an iSCSI target with its LUN map and its access rules.
type Target struct {
	Name    string    `json:"name"`           // IQN, EUI or NAA name
	LUNs    []LUN     `json:"luns,omitempty"` // ordered by Number
	Created time.Time `json:"created"`

	Restricted bool     `json:"restricted,omitempty"` // only the initiators of Allow may log in
	Allow      []string `json:"allow,omitempty"`      // initiator names, sorted
	CHAP       *CHAP    `json:"chap,omitempty"`       // nil: no authentication
}

// LUN maps a number to an image. NAA and Serial are made when it is mapped and never change, so
// that an initiator sees one and the same disk after every restart and on every node.
type LUN struct {
	Number   uint16 `json:"number"`
	VolumeID string `json:"volumeId"`
	Path     string `json:"path"`   // inside the volume
	NAA      string `json:"naa"`    // 16 hex digits, NAA 3h (locally assigned), SPC-4 §7.8.6.6
	Serial   string `json:"serial"` // 16 hex digits
}

// CHAP holds the credentials of RFC 7143 §12.1. Secrets are sealed by DB.Seal.
type CHAP struct {
	User         string `json:"user"`
	Sealed       []byte `json:"sealed"`
	MutualUser   string `json:"mutualUser,omitempty"`
	MutualSealed []byte `json:"mutualSealed,omitempty"`
}

// LUN finds a LUN by number.
func (t *Target) LUN(number uint16) (LUN, bool) {
	i, ok := slices.BinarySearchFunc(t.LUNs, number, compareLUN)
	if !ok {
		return LUN{}, false
	}
	return t.LUNs[i], true
}

func compareLUN(l LUN, number uint16) int { return int(l.Number) - int(number) }

// freeLUN is the lowest number that is not mapped.
func (t *Target) freeLUN() uint16 {
	for i, l := range t.LUNs {
		if int(l.Number) != i {
			return uint16(i)
		}
	}
	return uint16(len(t.LUNs))
}

// Event is one line of the operation log.
type Event struct {
	Revision int64     `json:"-"` // where it stands in the log; rises
	Time     time.Time `json:"time"`
	Node     string    `json:"node"`
	Kind     string    `json:"kind"` // noun.verb, such as volume.add
	Volume   string    `json:"volume,omitempty"`
	Target   string    `json:"target,omitempty"`
	Epoch    uint64    `json:"epoch,omitempty"`  // of the coordinator's term that it is about
	Reason   string    `json:"reason,omitempty"` // why a coordinator was chosen, moved or lost
	Text     string    `json:"text"`
}
