package network

import (
	"fmt"
	"math/rand"
	"net/netip"
	"reflect"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// pool has subnets that are apart, that overlap, and that are link-local.
var pool = []string{"10.0.0.%d/24", "10.0.1.%d/24", "10.0.1.%d/16", "192.168.7.%d/24", "fd00::%d/64", "fd01::%d/64", "fe80::%d/64",
	"169.254.9.%d/16", "172.16.0.%d/12"}

func drawNodes(t *rapid.T) []Node {
	count := rapid.IntRange(0, 4).Draw(t, "nodes")
	var out []Node
	for n := 1; n <= count; n++ {
		x := Node{Number: uint16(n), Name: fmt.Sprintf("n%d", n)}
		for _, name := range rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"eth0", "eth1", "LM", "Cluster"}), 0, 3, rapid.ID).Draw(t, "names") {
			i := Interface{Name: name, Index: len(x.Interfaces) + 1, MTU: rapid.SampledFrom([]int{1500, 9000}).Draw(t, "mtu"),
				Up: true, Carrier: rapid.Bool().Draw(t, "carrier"), Gateway4: rapid.IntRange(0, 4).Draw(t, "gateway") == 0,
				Speed: rapid.SampledFrom([]uint32{0, 1000, 10000}).Draw(t, "speed")}
			for _, f := range rapid.SliceOfNDistinct(rapid.SampledFrom(pool), 0, 3, rapid.ID).Draw(t, "addresses") {
				i.Addresses = append(i.Addresses, netip.MustParsePrefix(fmt.Sprintf(f, 10*n+len(x.Interfaces))))
			}
			x.Interfaces = append(x.Interfaces, i)
		}
		out = append(out, x)
	}
	return out
}

func drawSettings(t *rapid.T) []Setting {
	var out []Setting
	for i := range rapid.IntRange(0, 3).Draw(t, "settings") {
		s := Setting{Name: rapid.SampledFrom([]string{"LM", "Network1", "Network2", "X"}).Draw(t, "name"),
			Role: Role(rapid.IntRange(0, 3).Draw(t, "role")), Manual: rapid.Bool().Draw(t, "manual"), Metric: uint32(1000 + i%2)}
		for _, f := range rapid.SliceOfN(rapid.SampledFrom(pool), 0, 3).Draw(t, "subnets") {
			if p := netip.MustParsePrefix(fmt.Sprintf(f, 1)).Masked(); !slices.Contains(s.Subnets, p) {
				s.Subnets = append(s.Subnets, p)
			}
		}
		out = append(out, s)
	}
	return out
}

// shuffled is the same in another order.
func shuffled(nodes []Node, settings []Setting, seed int64) ([]Node, []Setting) {
	r := rand.New(rand.NewSource(seed))
	nodes, settings = slices.Clone(nodes), slices.Clone(settings)
	r.Shuffle(len(nodes), func(i, j int) { nodes[i], nodes[j] = nodes[j], nodes[i] })
	r.Shuffle(len(settings), func(i, j int) { settings[i], settings[j] = settings[j], settings[i] })
	for k := range nodes {
		list := slices.Clone(nodes[k].Interfaces)
		r.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
		nodes[k].Interfaces = list
	}
	return nodes, settings
}

func TestOrderDoesNotMatter(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		nodes, settings := drawNodes(t), drawSettings(t)
		want := Group(nodes, settings)
		got := Group(shuffled(nodes, settings, rapid.Int64().Draw(t, "seed")))
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("another order gives\n%+v\nwant\n%+v", got, want)
		}
		again := Group(nodes, want.Settings)
		if table(again) != table(want) || !reflect.DeepEqual(again.Settings, want.Settings) {
			t.Fatalf("its own settings change the view:\n%s%v\n%s%v", table(want), want.Settings, table(again), again.Settings)
		}
	})
}

// TestNamesNeverSwap lets a cluster change at random and keeps its settings.
func TestNamesNeverSwap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		before := Group(drawNodes(t), nil)
		for range 4 {
			after := Group(drawNodes(t), before.Settings)
			checkStep(t, before, after)
			before = after
		}
	})
}

func checkStep(t *rapid.T, before, after View) {
	for _, n := range after.Networks {
		i := slices.IndexFunc(before.Settings, func(s Setting) bool { return s.Name == n.Name })
		if i < 0 {
			continue // new
		}
		if s := before.Settings[i]; s.Interface == "" && !sharesSubnet(n.Subnets, s.Subnets) {
			t.Fatalf("the name %s went from %v to %v", n.Name, s.Subnets, n.Subnets)
		}
	}
	for _, old := range before.Networks {
		for _, n := range after.Networks {
			link := slices.ContainsFunc(old.Subnets, func(p netip.Prefix) bool { return p.Addr().IsLinkLocalUnicast() })
			if !link && slices.Equal(old.Subnets, n.Subnets) && n.Name != old.Name {
				t.Fatalf("%v was %s and is %s\n%v\n%v", n.Subnets, old.Name, n.Name, before.Settings, after.Settings)
			}
		}
	}
}

func sharesSubnet(a, b []netip.Prefix) bool {
	return slices.ContainsFunc(a, func(p netip.Prefix) bool { return slices.Contains(b, p) })
}

// TestEachInterfaceOnce holds the shape of a view: unique names, one member a node, no network of role auto.
func TestEachInterfaceOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := Group(drawNodes(t), drawSettings(t))
		names, ids := map[string]bool{}, map[uint32]bool{}
		for _, n := range v.Networks {
			if names[n.Name] || ids[n.ID()] || n.Role == RoleAuto || n.Metric < MinMetric || len(n.Members) == 0 || len(n.Subnets) == 0 {
				t.Fatalf("%+v", n)
			}
			names[n.Name], ids[n.ID()] = true, true
			for i := 1; i < len(n.Members); i++ {
				if n.Members[i-1].Number >= n.Members[i].Number {
					t.Fatalf("members of %s: %+v", n.Name, n.Members)
				}
			}
		}
	})
}

func TestChooseIsTheSameFromBothEnds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := Group(drawNodes(t), drawSettings(t))
		down := rapid.SampledFrom([]string{"", "Network1", "LM"}).Draw(t, "down")
		passes := func(n string) bool { return n != down }
		a, okA := Choose(v.Networks, 1, 2, passes)
		b, okB := Choose(v.Networks, 2, 1, passes)
		if okA != okB || a.Cluster.Network != b.Cluster.Network {
			t.Fatalf("from 1: %v, from 2: %v", a.Cluster, b.Cluster)
		}
		for _, p := range Paths(v.Networks, 1, 2) {
			if okA && passes(p.Network) && p.Metric < a.Cluster.Metric {
				t.Fatalf("%s is cheaper than %s", p.Network, a.Cluster.Network)
			}
		}
	})
}
