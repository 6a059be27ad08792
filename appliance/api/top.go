package api

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"time"
)

// The bounds and defaults of TopQuery.
const (
	MinTopWindow     = 100 * time.Millisecond
	MaxTopWindow     = time.Minute
	DefaultTopWindow = time.Second
	DefaultTopLimit  = 20
	MaxTopLimit      = 1000
)

// TopOrder says which LUNs and initiators come first.
type TopOrder string

// The orders of a Top.
const (
	ByIOPS      TopOrder = "iops"
	ByBandwidth TopOrder = "bandwidth"
	ByLatency   TopOrder = "latency" // the 99th percentile of all commands
)

// TopQuery asks for a Top. Zero values stand for the defaults.
type TopQuery struct {
	Window time.Duration // how long to look; the call takes so long
	Limit  int           // of LUNs, and of initiators
	Order  TopOrder      // default ByIOPS
}

// Top is the cluster's I/O during a window that ends at Time. Its lists are bounded by the query's limit, the busiest
// first; nodes and volumes are by name, and all there.
type Top struct {
	Node       string         `json:"node"` // who answers
	Time       time.Time      `json:"time"`
	Window     time.Duration  `json:"windowNs"`
	Nodes      []TopNode      `json:"nodes"`
	Volumes    []TopVolume    `json:"volumes"`
	LUNs       []TopLUN       `json:"luns"`
	Initiators []TopInitiator `json:"initiators"`

	LUNsActive       int `json:"lunsActive"`       // with I/O in the window, before the limit
	InitiatorsActive int `json:"initiatorsActive"` // likewise

	Silent []string `json:"silent,omitempty"` // nodes that are present but did not answer
	Notes  []string `json:"notes,omitempty"`  // what is not known, and why, in sentences
}

// Flow is one kind of command during a window. Latencies are from the command's arrival to the sending of its answer; they
// are 0 without any command, and right to a factor of two, Max excepted.
type Flow struct {
	IOPS      float64       `json:"iops"`
	Bandwidth float64       `json:"bytesPerSecond"`
	P50       time.Duration `json:"p50Ns"`
	P99       time.Duration `json:"p99Ns"`
	Max       time.Duration `json:"maxNs"` // the upper end of its class of Histogram
}

// Rates are what initiators do. Other is all but reads and writes: flushes, unmaps, inquiries.
type Rates struct {
	Read  Flow `json:"read"`
	Write Flow `json:"write"`
	Other Flow `json:"other"`
	All   Flow `json:"all"`
}

// Split is how I/O reached a volume, in I/Os a second: direct to the LUN, or redirected through the coordinator. Besides
// initiators' it has that of files in /ClusterStorage.
type Split struct {
	DirectRead      float64 `json:"directRead"`
	DirectWrite     float64 `json:"directWrite"`
	RedirectedRead  float64 `json:"redirectedRead"`
	RedirectedWrite float64 `json:"redirectedWrite"`
}

// TopNode is a node.
type TopNode struct {
	Node     string `json:"node"`
	Sessions int    `json:"sessions"`
	Rates
	Split Split  `json:"split"`
	Trace string `json:"trace"` // how commands are timed: on, or off and why
}

// TopVolume is a volume, on all nodes.
type TopVolume struct {
	Volume      string `json:"volume"`
	Coordinator string `json:"coordinator,omitempty"`
	Rates
	Split Split `json:"split"`
}

// TopLUN is a LUN, on all nodes.
type TopLUN struct {
	Target string   `json:"target"`
	LUN    uint16   `json:"lun"`
	Image  string   `json:"image,omitempty"` // VOLUME/PATH; empty: it is not mapped any more
	Volume string   `json:"volume,omitempty"`
	Nodes  []string `json:"nodes"` // through which it was used
	Rates
}

// TopInitiator is an initiator, at all nodes.
type TopInitiator struct {
	Initiator string        `json:"initiator"`
	Nodes     []string      `json:"nodes"`
	RTT       time.Duration `json:"rttNs,omitempty"` // of its connections, median, by the kernel; 0: not known
	Rates
}

// Top watches the I/O of the whole cluster for a while.
func (c *Client) Top(ctx context.Context, q TopQuery) (Top, error) {
	return call[Top](ctx, c, http.MethodGet, "/v1/top?"+q.Values().Encode(), nil)
}

// Values is q as the call carries it.
func (q *TopQuery) Values() url.Values {
	v := url.Values{}
	if q.Window != 0 {
		v.Set("window", q.Window.String())
	}
	if q.Limit != 0 {
		v.Set("limit", fmt.Sprint(q.Limit))
	}
	if q.Order != "" {
		v.Set("order", string(q.Order))
	}
	return v
}

// Fill sets the defaults, and refuses what is out of bounds.
func (q *TopQuery) Fill() error {
	if q.Window == 0 {
		q.Window = DefaultTopWindow
	}
	if q.Limit == 0 {
		q.Limit = DefaultTopLimit
	}
	if q.Order == "" {
		q.Order = ByIOPS
	}
	switch {
	case q.Window < MinTopWindow || q.Window > MaxTopWindow:
		return Errorf(Invalid, "a window of %v is not between %v and %v", q.Window, MinTopWindow, MaxTopWindow)
	case q.Limit < 1 || q.Limit > MaxTopLimit:
		return Errorf(Invalid, "a limit of %d is not between 1 and %d", q.Limit, MaxTopLimit)
	case q.Order != ByIOPS && q.Order != ByBandwidth && q.Order != ByLatency:
		return Errorf(Invalid, "%q is no order: give %s, %s or %s", q.Order, ByIOPS, ByBandwidth, ByLatency)
	}
	return nil
}

// ParseTopQuery reads what Values wrote, sets the defaults, and refuses what is out of bounds.
func ParseTopQuery(v url.Values) (q TopQuery, err error) {
	f := form{values: v}
	q = TopQuery{Window: f.duration("window"), Limit: f.number("limit"), Order: TopOrder(v.Get("order"))}
	if f.err != nil {
		return q, f.err
	}
	err = q.Fill()
	return q, err
}
