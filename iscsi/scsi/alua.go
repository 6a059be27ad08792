package scsi

import (
	"fmt"
	"slices"
	"sync/atomic"
)

// AccessState is the asymmetric access state of a target port group (SPC-4 §5.15.2.4), numbered as
// in REPORT TARGET PORT GROUPS.
type AccessState uint8

// The asymmetric access states that are supported.
const (
	ActiveOptimized    AccessState = 0x0
	ActiveNonOptimized AccessState = 0x1
	Standby            AccessState = 0x2
	Unavailable        AccessState = 0x3
	Transitioning      AccessState = 0xF
)

// PortGroup is one target port group of a logical unit. Every node that exports the unit reports the
// same groups, those of the other nodes too, so that initiators see all paths.
type PortGroup struct {
	ID        uint16
	State     AccessState
	Preferred bool
	Ports     []uint16 // relative target port identifiers, unique among the target's groups
}

// defaultGroup is the group of every port that no PortGroup names.
const defaultGroup = 1

const (
	maxPortGroups = 64
	maxGroupPorts = 64
)

var (
	senseTransition  = sense{key: notReady, code: 0x040A}
	senseStandby     = sense{key: notReady, code: 0x040B}
	senseUnavailable = sense{key: notReady, code: 0x040C}
)

// portGroups is immutable.
type portGroups struct {
	list   []PortGroup
	byPort map[uint16]*PortGroup
	active bool // every group lets every command in
}

// noGroups are those of a unit that was given none: all ports are in the default group.
var noGroups = &portGroups{active: true}

// unitALUA is the asymmetric access state of a LogicalUnit: it follows from which node has a direct path.
type unitALUA struct{ groups atomic.Pointer[portGroups] }

func (u *unitALUA) load() *portGroups {
	if g := u.groups.Load(); g != nil {
		return g
	}
	return noGroups
}

func newPortGroups(list []PortGroup) (*portGroups, error) {
	g := &portGroups{byPort: map[uint16]*PortGroup{}, active: true}
	if len(list) > maxPortGroups {
		return nil, fmt.Errorf("%w: %d target port groups, at most %d", ErrBadOption, len(list), maxPortGroups)
	}
	for _, e := range list {
		e.Ports = slices.Clone(e.Ports)
		g.list = append(g.list, e)
	}
	for i := range g.list {
		if err := g.add(&g.list[i], g.list[:i]); err != nil {
			return nil, err
		}
	}
	return g, nil
}

func (g *portGroups) add(e *PortGroup, before []PortGroup) error {
	switch {
	case e.State > Unavailable && e.State != Transitioning:
		return fmt.Errorf("%w: target port group %d: access state %Xh", ErrBadOption, e.ID, e.State)
	case slices.ContainsFunc(before, func(o PortGroup) bool { return o.ID == e.ID }):
		return fmt.Errorf("%w: target port group %d twice", ErrBadOption, e.ID)
	case len(e.Ports) > maxGroupPorts:
		return fmt.Errorf("%w: target port group %d has %d ports, at most %d", ErrBadOption, e.ID, len(e.Ports), maxGroupPorts)
	}
	g.active = g.active && e.State <= ActiveNonOptimized
	for _, port := range e.Ports {
		if port == 0 || g.byPort[port] != nil {
			return fmt.Errorf("%w: relative target port %d is zero or in two groups", ErrBadOption, port)
		}
		g.byPort[port] = e
	}
	return nil
}

// SetPortGroups replaces the unit's target port groups; it may be called from any goroutine. Without
// any, all ports are in the active/optimized group 1. Every I_T nexus gets the unit attention
// ASYMMETRIC ACCESS STATE CHANGED if anything is new. The error is ErrBadOption, and then nothing
// changes.
func (lu *LogicalUnit) SetPortGroups(list []PortGroup) error {
	groups, err := newPortGroups(list)
	if err != nil {
		return fmt.Errorf("set port groups of %s: %w", lu.storeName(), err)
	}
	old := lu.alua.groups.Swap(groups)
	if old == nil && len(list) == 0 || old != nil && slices.EqualFunc(old.list, groups.list, PortGroup.equal) {
		return nil
	}
	lu.attention(attnALUAChanged, nil)
	return nil
}

func (g PortGroup) equal(o PortGroup) bool {
	return g.ID == o.ID && g.State == o.State && g.Preferred == o.Preferred && slices.Equal(g.Ports, o.Ports)
}

// checkALUA tells whether c's port may execute it in its asymmetric access state; if not, s says
// why.
func (c *Command) checkALUA() (s sense, ok bool) {
	groups := c.lu.alua.load()
	if groups.active {
		return senseNone, true
	}
	group := groups.byPort[c.Nexus.port]
	if group == nil {
		return senseNone, true
	}
	return group.State.check(c.row)
}

// check is what SPC-4 §5.15.2.4 lets through in each state: in the unavailable state less than in
// standby, where reservations are still served.
func (a AccessState) check(r *row) (sense, bool) {
	switch a {
	case Standby:
		return senseStandby, r.has(passALUA)
	case Unavailable:
		return senseUnavailable, r.has(passALUA) && r.class != classOwn
	case Transitioning:
		return senseTransition, r.has(passALUA) && r.class != classOwn
	}
	return senseNone, true
}

// targetPortGroup is the target port group of a relative target port, for VPD page 83h.
func (lu *LogicalUnit) targetPortGroup(port uint16) (group uint16, ok bool) {
	groups := lu.alua.load()
	if len(groups.list) == 0 {
		return defaultGroup, true
	}
	if g := groups.byPort[port]; g != nil {
		return g.ID, true
	}
	return 0, false
}

// portGroups lists the groups as the command's port sees them: without groups, one with the ports in
// use.
func (c *Command) portGroups() []PortGroup {
	if groups := c.lu.alua.load(); len(groups.list) > 0 {
		return groups.list
	}
	return []PortGroup{{ID: defaultGroup, State: ActiveOptimized, Ports: c.target.portsInUse(c.Nexus.port)}}
}

// ports lists the relative target ports that lead to the unit, ascending; the command's is one of them.
func (c *Command) ports() []uint16 {
	all := []uint16{c.Nexus.port}
	for _, g := range c.portGroups() {
		all = append(all, g.Ports...)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

func (t *Target) portsInUse(port uint16) []uint16 {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := []uint16{port}
	for n := range t.nexuses {
		all = append(all, n.port)
	}
	slices.Sort(all)
	all = slices.Compact(all)
	return all[:min(len(all), maxGroupPorts)]
}
