package network

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// naming is which setting each segment has.
type naming struct {
	of       []Setting // for each segment
	settings []Setting // all, brought up to date, by name
}

// keep returns the settings that can be used, by name: each name once.
func (g *grouping) keep(settings []Setting) []Setting {
	out := make([]Setting, 0, len(settings))
	for _, s := range settings {
		s.Subnets = slices.Clone(s.Subnets)
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b Setting) int {
		return cmp.Or(compareNames(a.Name, b.Name), cmp.Compare(fmt.Sprint(a), fmt.Sprint(b)))
	})
	return slices.DeleteFunc(slices.CompactFunc(out, func(a, b Setting) bool {
		same := a.Name == b.Name
		if same && !a.Equal(b) {
			g.warn(ProblemSameSettings, []string{a.Name}, "two settings are for the network %s: only the first is used", a.Name)
		}
		return same
	}), g.unusable)
}

// unusable warns of a bad setting; without a name it cannot be used at all.
func (g *grouping) unusable(s Setting) bool {
	if err := s.Validate(); err != nil {
		g.warn(ProblemBadSetting, []string{s.Name}, "%v; the automatic values are used", err)
	}
	return s.Name == ""
}

// claim says how well a setting fits a segment.
type claim struct {
	setting, segment int
	first            int // place in the setting's list of the first subnet that both have
	shared           int // subnets that both have
}

// name gives each segment the setting that fits it best, and new ones to the rest. The subnets that
// a network had last count before those that it had once.
func (g *grouping) name(settings []Setting) naming {
	n := naming{of: make([]Setting, len(g.segments)), settings: settings}
	owner := make([]int, len(g.segments)) // setting + 1
	taken := make([]bool, len(settings))
	for _, c := range g.claims(settings) {
		if owner[c.segment] == 0 && !taken[c.setting] {
			owner[c.segment], taken[c.setting] = c.setting+1, true
		}
	}
	for i, s := range g.segments {
		if owner[i] == 0 {
			n.settings = append(n.settings, Setting{Name: s.newName(n.settings), Interface: s.link})
			owner[i] = len(n.settings)
		}
	}
	for i, s := range g.segments {
		set := &n.settings[owner[i]-1]
		set.Subnets = g.remember(s, set.Subnets)
		n.of[i] = *set
	}
	slices.SortFunc(n.settings, func(a, b Setting) int { return compareNames(a.Name, b.Name) })
	return n
}

func (g *grouping) claims(settings []Setting) []claim {
	var out []claim
	for i, set := range settings {
		for j, seg := range g.segments {
			if c, fits := seg.claimedBy(set); fits {
				c.setting, c.segment = i, j
				out = append(out, c)
			}
		}
	}
	slices.SortFunc(out, func(a, b claim) int {
		return cmp.Or(cmp.Compare(a.first, b.first), cmp.Compare(b.shared, a.shared), cmp.Compare(a.setting, b.setting),
			cmp.Compare(a.segment, b.segment))
	})
	return out
}

func (s *segment) claimedBy(set Setting) (claim, bool) {
	if s.link != "" {
		return claim{}, set.Interface == s.link
	}
	c := claim{first: -1}
	for i, p := range set.Subnets {
		if !slices.Contains(s.subnets, p) {
			continue
		}
		c.shared++
		if c.first < 0 {
			c.first = i
		}
	}
	return c, c.shared > 0
}

// remember puts what the segment has now first, and keeps what it had before unless another has it now.
func (g *grouping) remember(s *segment, before []netip.Prefix) []netip.Prefix {
	out := slices.Clone(s.subnets)
	for _, p := range before {
		elsewhere := slices.ContainsFunc(g.segments, func(o *segment) bool { return slices.Contains(o.subnets, p) })
		if !elsewhere && len(out) < maxSubnets {
			out = append(out, p)
		}
	}
	return out
}

// newName is the interfaces' name when someone chose it, else NetworkN with the first N that is free.
func (s *segment) newName(settings []Setting) string {
	free := func(name string) bool {
		return !slices.ContainsFunc(settings, func(x Setting) bool { return x.Name == name })
	}
	if name := s.commonName(); chosen(name) && free(name) {
		return name
	}
	for i := 1; ; i++ {
		if name := fmt.Sprintf("Network%d", i); free(name) {
			return name
		}
	}
}

// chosen tells whether a person named the interface: the kernel's and udev's names have a digit.
func chosen(name string) bool { return len(name) > 1 && !strings.ContainsAny(name, "0123456789") }
