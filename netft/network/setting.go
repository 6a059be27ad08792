package network

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// The range of a metric set by hand.
const (
	MinMetric = 1
	MaxMetric = 0x0FFFFFFF
)

// Bounds of a Setting.
const (
	maxName    = 64 // bytes
	maxSubnets = 16 // remembered per network, the longest unseen go first
)

// ErrSetting is wrapped by what Setting.Validate returns.
var ErrSetting = errors.New("network: bad setting")

// Setting is what the cluster keeps of a network: its name, what it is known by, and what an
// administrator set.
type Setting struct {
	Name string `json:"name"`
	// Subnets are those that the network was seen with, those of the latest time first.
	Subnets []netip.Prefix `json:"subnets,omitempty"`
	// Interface is the name of the interfaces of a network that has link-local addresses only.
	Interface string `json:"interface,omitempty"`
	Role      Role   `json:"role"`
	Metric    uint32 `json:"metric,omitempty"` // by hand, when Manual
	Manual    bool   `json:"manual,omitempty"`
}

// Validate tells what is wrong with a setting that someone gave.
func (s Setting) Validate() error {
	switch {
	case s.Name == "" || len(s.Name) > maxName:
		return fmt.Errorf("%w: a network's name has 1 to %d bytes, not %d", ErrSetting, maxName, len(s.Name))
	case int(s.Role) >= len(roleNames):
		return fmt.Errorf("%w: network %s has the unknown role %d", ErrSetting, s.Name, s.Role)
	case s.Manual && (s.Metric < MinMetric || s.Metric > MaxMetric):
		return fmt.Errorf("%w: network %s has the metric %d: give %d to %d, or auto",
			ErrSetting, s.Name, s.Metric, MinMetric, MaxMetric)
	}
	return nil
}

// Equal tells whether nothing differs.
func (s Setting) Equal(o Setting) bool {
	return s.Name == o.Name && s.Interface == o.Interface && s.Role == o.Role && s.Metric == o.Metric &&
		s.Manual == o.Manual && slices.Equal(s.Subnets, o.Subnets)
}
