package network

import (
	"crypto/sha256"
	"encoding/binary"
	"net/netip"
	"slices"
)

// Network is one cluster network: the interfaces of the nodes that reach each other over it.
type Network struct {
	Name string `json:"name"` // unique
	// Subnets are sorted, IPv4 first; of a network with link-local addresses alone, those.
	Subnets []netip.Prefix `json:"subnets"`
	Role    Role           `json:"role"` // never RoleAuto
	Metric  uint32         `json:"metric"`
	Manual  bool           `json:"manual"`  // the metric was set by hand; its opposite is Windows' AutoMetric
	Gateway bool           `json:"gateway"` // a default route of some node leaves by it
	Speed   uint32         `json:"speed"`   // Mbit/s of the slowest link that tells; 0 is unknown
	MTU     int            `json:"mtu"`     // bytes, the smallest
	Members []Member       `json:"members"` // by number, one for each node
}

// Member is a node's interface on a network.
type Member struct {
	Number    uint16    `json:"number"`
	Node      string    `json:"node"`
	Interface Interface `json:"interface"`
}

// ID is a number for the network that all nodes agree on while they agree on its name. It is
// never 0.
func (n Network) ID() uint32 {
	sum := sha256.Sum256([]byte("lunar network " + n.Name))
	return max(1, binary.BigEndian.Uint32(sum[:]))
}

// Member returns the node's interface on the network, false when it has none.
func (n Network) Member(number uint16) (Member, bool) {
	i, ok := slices.BinarySearchFunc(n.Members, number, func(m Member, x uint16) int { return int(m.Number) - int(x) })
	if !ok {
		return Member{}, false
	}
	return n.Members[i], true
}

// View is what Group makes of the nodes' interfaces.
type View struct {
	Networks []Network // in the order of the list: by name, numbers in it as numbers
	// Settings are those given, with new networks added and subnets brought up to date, sorted by
	// name. The caller stores them when they differ from what it gave.
	Settings []Setting
	Warnings []Warning // sorted
}

// Find returns the network of that name.
func (v View) Find(name string) (Network, bool) {
	i := slices.IndexFunc(v.Networks, func(n Network) bool { return n.Name == name })
	if i < 0 {
		return Network{}, false
	}
	return v.Networks[i], true
}

// Problem is a kind of Warning.
type Problem string

// What Group warns of.
const (
	ProblemOverlap      Problem = "overlapping-subnets" // subnets overlap and are not equal
	ProblemTwoInOne     Problem = "two-interfaces"      // a node has two interfaces in one network
	ProblemDuplicate    Problem = "duplicate-address"   // two nodes have one address
	ProblemSameMetric   Problem = "same-metric"         // two networks have one metric
	ProblemSplit        Problem = "split-network"       // subnets are together on one node, apart on another
	ProblemMTU          Problem = "different-mtu"       // the members' MTUs differ
	ProblemBadSetting   Problem = "bad-setting"         // a setting is not valid and is not used
	ProblemNoNetwork    Problem = "no-cluster-network"  // no network is enabled for the cluster
	ProblemSameSettings Problem = "same-name"           // two settings have one name
	ProblemSameNumber   Problem = "same-number"         // two nodes have one number
)

// Warning is a mistake in the set-up that Group could work around.
type Warning struct {
	Problem  Problem  `json:"problem"`
	Message  string   `json:"message"` // what is wrong, what is done about it, and what to do
	Networks []string `json:"networks,omitempty"`
}
