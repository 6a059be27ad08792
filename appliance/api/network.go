package api

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"time"
)

// The roles of a network.
const (
	RoleNone             = "none"
	RoleCluster          = "cluster"
	RoleClusterAndClient = "cluster-and-client"
)

// The range of a network's metric set by hand.
const (
	MinMetric = 1
	MaxMetric = 0x0FFFFFFF
)

// NetworkState is how a network is, as the node that was asked sees it.
type NetworkState string

// The states of a network.
const (
	NetworkUp          NetworkState = "Up"          // heartbeats of every node on it pass
	NetworkPartitioned NetworkState = "Partitioned" // those of some nodes do
	NetworkDown        NetworkState = "Down"        // of none
	NetworkUnavailable NetworkState = "Unavailable" // the node that was asked is not on it, or nobody else is
)

// Network is what the nodes' interfaces in one subnet make up.
type Network struct {
	Name       string          `json:"name"`
	Metric     uint32          `json:"metric"` // the lowest carries the cluster's traffic
	AutoMetric bool            `json:"autoMetric"`
	Role       string          `json:"role"`
	Subnets    []string        `json:"subnets"`
	State      NetworkState    `json:"state"`
	Gateway    bool            `json:"gateway"`         // some node's default route leaves by it
	Speed      uint32          `json:"speed,omitempty"` // Mbit/s of the slowest link; 0: not known
	MTU        int             `json:"mtu"`             // the smallest, bytes
	Members    []NetworkMember `json:"members"`         // by node number
}

// NetworkMember is a node's interface on a network.
type NetworkMember struct {
	Node      string   `json:"node"`
	Interface string   `json:"interface"`
	Addresses []string `json:"addresses"`
	Up        bool     `json:"up"` // with a carrier
	MTU       int      `json:"mtu"`
	Speed     uint32   `json:"speed,omitempty"` // Mbit/s; 0: not known
}

// Networks is what `network list` prints.
type Networks struct {
	Node     string    `json:"node"`               // who answers
	Method   string    `json:"method,omitempty"`   // what stamps its heartbeats: kernel or socket; empty: it sends none
	Fallback string    `json:"fallback,omitempty"` // why not the kernel
	Networks []Network `json:"networks"`
	Warnings []string  `json:"warnings,omitempty"` // mistakes in the set-up that could be worked around
}

// SetNetwork changes a network; what is nil stays.
type SetNetwork struct {
	Role   *string `json:"role,omitempty"`
	Metric *uint32 `json:"metric,omitempty"` // 0: automatic
}

// Heartbeats is what a node knows of its peers by their heartbeats.
type Heartbeats struct {
	Node      string          `json:"node"`
	Time      time.Time       `json:"time"`
	Method    string          `json:"method,omitempty"` // kernel or socket; empty: it sends none
	Fallback  string          `json:"fallback,omitempty"`
	Interval  time.Duration   `json:"intervalNs"`  // between two heartbeats of a path
	Threshold time.Duration   `json:"thresholdNs"` // of silence, after which a path is lost
	Paths     []HeartbeatPath `json:"paths"`       // by peer, network and family
}

// RTTBuckets is how many classes of round trips are counted: element i has those of 2^i to 2^(i+1) ns.
const RTTBuckets = 32

// HeartbeatPath is one way to a peer. Times are in ns; a negative one is never.
type HeartbeatPath struct {
	Peer    string        `json:"peer"`
	Network string        `json:"network"`
	Family  string        `json:"family"` // IPv4 or IPv6
	Local   string        `json:"local,omitempty"`
	Remote  string        `json:"remote,omitempty"`
	State   string        `json:"state"`          // up, suspect, new or lost
	Health  string        `json:"health"`         // of the peer: healthy, daemon stalled, lost or unknown
	Down    string        `json:"down,omitempty"` // why it is lost, when not for silence
	Route   bool          `json:"route"`          // the cluster's traffic to the peer goes over this network
	Last    time.Duration `json:"lastNs"`         // since the last sign of life
	Daemon  time.Duration `json:"daemonNs"`       // since the peer's lunard last beat

	Sent       uint64 `json:"sent"`
	Beats      uint64 `json:"beats"`
	Answers    uint64 `json:"answers"`
	Gaps       uint64 `json:"gaps"` // missing sequence numbers
	Reordered  uint64 `json:"reordered"`
	Duplicates uint64 `json:"duplicates"`
	Replayed   uint64 `json:"replayed"`
	Forged     uint64 `json:"forged"`
	Restarts   uint64 `json:"restarts"`

	Jitter  time.Duration      `json:"jitterNs"`
	LastRTT time.Duration      `json:"rttNs"`
	MinRTT  time.Duration      `json:"rttMinNs"`
	RTT     [RTTBuckets]uint32 `json:"rtt"`
}

// Quantile is the round trip that a share of all, 0 to 1, do not exceed, as the upper end of its class; 0 without any.
func (p *HeartbeatPath) Quantile(share float64) time.Duration {
	var total, sum uint64
	for _, n := range p.RTT {
		total += uint64(n)
	}
	for i, n := range p.RTT {
		if sum += uint64(n); total > 0 && float64(sum) >= share*float64(total) {
			return time.Duration(1) << (i + 1)
		}
	}
	return 0
}

// Outcome is what a check found.
type Outcome string

// The outcomes of a check.
const (
	Pass    Outcome = "PASS"
	Warning Outcome = "WARNING"
	Failure Outcome = "FAILURE"
)

// Check is one finding of `cluster validate`.
type Check struct {
	Outcome Outcome `json:"outcome"`
	Name    string  `json:"check"`
	Found   string  `json:"found"`            // in words
	Advice  string  `json:"advice,omitempty"` // what to do, unless it passed
}

// Validation is what `cluster validate` prints.
type Validation struct {
	Node   string    `json:"node"` // that checked
	Time   time.Time `json:"time"`
	Checks []Check   `json:"checks"`
}

// Count is how many checks had that outcome.
func (v *Validation) Count(o Outcome) int {
	n := 0
	for i := range v.Checks {
		if v.Checks[i].Outcome == o {
			n++
		}
	}
	return n
}

// Networks lists the cluster's networks.
func (c *Client) Networks(ctx context.Context) (Networks, error) {
	return call[Networks](ctx, c, http.MethodGet, "/v1/networks", nil)
}

// SetNetwork changes a network's role or metric.
func (c *Client) SetNetwork(ctx context.Context, name string, r SetNetwork) (Network, error) {
	return call[Network](ctx, c, http.MethodPatch, "/v1/networks/"+url.PathEscape(name), r)
}

// Heartbeats is a look at the heartbeats of the node.
func (c *Client) Heartbeats(ctx context.Context) (Heartbeats, error) {
	return call[Heartbeats](ctx, c, http.MethodGet, "/v1/heartbeats", nil)
}

// ValidateCluster looks for what would make the cluster fail when it is needed; it takes some seconds.
func (c *Client) ValidateCluster(ctx context.Context) (Validation, error) {
	return call[Validation](ctx, c, http.MethodPost, "/v1/cluster/validate", nil)
}

// UnmarshalJSON refuses what is no outcome, as another version might send.
func (o *Outcome) UnmarshalJSON(data []byte) error {
	var text string
	if err := json.Unmarshal(data, &text); err != nil {
		return err
	}
	switch *o = Outcome(text); *o {
	case Pass, Warning, Failure:
		return nil
	}
	return Errorf(Failed, "%q is no outcome of a check", text)
}
