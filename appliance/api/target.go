package api

import "time"

// CreateTarget makes an iSCSI target without LUNs.
type CreateTarget struct {
	Name string `json:"name"` // iSCSI name
}

// Target is an iSCSI target.
type Target struct {
	Name       string    `json:"name"`
	LUNs       []LUN     `json:"luns"`
	Restricted bool      `json:"restricted"`      // only the initiators of Allow may log in
	Allow      []string  `json:"allow,omitempty"` // initiator names
	CHAP       *CHAP     `json:"chap,omitempty"`
	Sessions   int       `json:"sessions"`
	Reason     string    `json:"reason,omitempty"` // why nobody may log in now
	Created    time.Time `json:"created"`
}

// LUN is a mapped image.
type LUN struct {
	Number uint16 `json:"number"`
	Image  string `json:"image"` // VOLUME/PATH, or VOLUME/PATH@SNAPSHOT
	Size   int64  `json:"size"`
	NAA    string `json:"naa"`
	Serial string `json:"serial"`
	State  string `json:"state"`            // Online or Unavailable
	Reason string `json:"reason,omitempty"` // why it is Unavailable

	ReadOnly bool `json:"readOnly,omitempty"` // writes are refused as protected: it is of a snapshot
}

// The states of a LUN.
const (
	LUNOnline      = "Online"
	LUNUnavailable = "Unavailable"
)

// CHAP tells the user names; secrets are never given out.
type CHAP struct {
	User       string `json:"user"`
	MutualUser string `json:"mutualUser,omitempty"`
}

// Map exports an image in a target, or one of a snapshot, which is read-only.
type Map struct {
	Image string  `json:"image"`         // VOLUME/PATH or VOLUME/PATH@SNAPSHOT
	LUN   *uint16 `json:"lun,omitempty"` // nil: the lowest free number
}

// SetCHAP sets credentials: those of the initiator, or with Mutual those by which the target
// proves itself. Remove takes them away, all of them unless Mutual.
type SetCHAP struct {
	User   string `json:"user,omitempty"`
	Secret string `json:"secret,omitempty"`
	Mutual bool   `json:"mutual,omitempty"`
	Remove bool   `json:"remove,omitempty"`
}

// Sessions are the iSCSI sessions of the nodes that answered.
type Sessions struct {
	Sessions []Session `json:"sessions"`
	Silent   []string  `json:"silent,omitempty"` // nodes that are present but did not answer
}

// Session is an iSCSI session.
type Session struct {
	Node      string    `json:"node"`
	Initiator string    `json:"initiator"`
	Alias     string    `json:"alias,omitempty"`
	Target    string    `json:"target,omitempty"` // empty: a discovery session
	Remote    string    `json:"remote"`           // host:port
	Local     string    `json:"local"`
	ISID      string    `json:"isid"` // 12 hex digits
	TSIH      uint16    `json:"tsih"`
	Lane      int       `json:"lane"`
	InFlight  int       `json:"inFlight"`
	Commands  uint64    `json:"commands"` // since Since
	Read      uint64    `json:"read"`     // bytes
	Written   uint64    `json:"written"`  // bytes
	Since     time.Time `json:"since"`
}

// Event is one line of the log.
type Event struct {
	Time   time.Time `json:"time"`
	Node   string    `json:"node"`
	Kind   string    `json:"kind"`
	Volume string    `json:"volume,omitempty"`
	Target string    `json:"target,omitempty"`
	Epoch  uint64    `json:"epoch,omitempty"`  // of the coordinator's term that it is about
	Reason string    `json:"reason,omitempty"` // why, in the words of `volume show`
	Text   string    `json:"text"`
}

// Version is what a binary says of itself.
type Version struct {
	Version string `json:"version"`
	Commit  string `json:"commit,omitempty"`
	Go      string `json:"go"`
	Node    string `json:"node,omitempty"` // set by a node
}
