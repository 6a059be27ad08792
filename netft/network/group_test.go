package network

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

// iface is an interface that runs, of 10 Gbit/s.
func iface(name string, addresses ...string) Interface {
	i := Interface{Index: 1, Name: name, MTU: 1500, Speed: 10000, Up: true, Carrier: true}
	for _, a := range addresses {
		i.Addresses = append(i.Addresses, netip.MustParsePrefix(a))
	}
	return i
}

func node(number uint16, interfaces ...Interface) Node {
	for k := range interfaces {
		interfaces[k].Index = k + 2
	}
	return Node{Number: number, Name: fmt.Sprintf("n%d", number), Interfaces: interfaces}
}

// seedNodes are nodes with the four networks of the seeds.
func seedNodes(count int) []Node {
	var out []Node
	for n := 1; n <= count; n++ {
		client := iface("Client", fmt.Sprintf("192.168.0.%d/24", n))
		client.Gateway4 = true
		out = append(out, node(uint16(n), client,
			iface("Cluster", fmt.Sprintf("10.1.0.%d/24", n), fmt.Sprintf("fd01::%d/64", n)),
			iface("iSCSI", fmt.Sprintf("10.3.0.%d/24", n)),
			iface("LM", fmt.Sprintf("10.2.0.%d/24", n))))
	}
	return out
}

// table is a line for each network: name, metric, auto, role, subnets.
func table(v View) string {
	var b strings.Builder
	for _, n := range v.Networks {
		fmt.Fprintf(&b, "%s %d %t %s %v\n", n.Name, n.Metric, !n.Manual, n.Role, n.Subnets)
	}
	return b.String()
}

func problems(v View) []Problem {
	var out []Problem
	for _, w := range v.Warnings {
		out = append(out, w.Problem)
	}
	return out
}

func expect(t *testing.T, what, got, want string) {
	t.Helper()
	if strings.TrimSpace(got) != strings.TrimSpace(want) {
		t.Fatalf("%s:\n%s\nwant:\n%s", what, got, want)
	}
}

func TestSeedTableByHand(t *testing.T) {
	v := Group(seedNodes(3), []Setting{
		{Name: "Client", Metric: 1000, Manual: true, Subnets: []netip.Prefix{netip.MustParsePrefix("192.168.0.0/24")}},
		{Name: "Cluster", Metric: 100, Manual: true, Subnets: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24")}},
		{Name: "LM", Metric: 110, Manual: true, Subnets: []netip.Prefix{netip.MustParsePrefix("10.2.0.0/24")}},
		{Name: "iSCSI", Role: RoleNone, Subnets: []netip.Prefix{netip.MustParsePrefix("10.3.0.0/24")}},
	})
	expect(t, "networks", table(v), `
Client 1000 false cluster-and-client [192.168.0.0/24]
Cluster 100 false cluster [10.1.0.0/24 fd01::/64]
LM 110 false cluster [10.2.0.0/24]
iSCSI 10000 true none [10.3.0.0/24]`)
	if len(v.Warnings) > 0 {
		t.Fatal(v.Warnings)
	}
}

func TestSeedTableAutomatic(t *testing.T) {
	v := Group(seedNodes(3), []Setting{{Name: "iSCSI", Role: RoleNone, Subnets: []netip.Prefix{netip.MustParsePrefix("10.3.0.0/24")}}})
	expect(t, "networks", table(v), `
Client 10000 true cluster-and-client [192.168.0.0/24]
Cluster 1000 true cluster [10.1.0.0/24 fd01::/64]
LM 1100 true cluster [10.2.0.0/24]
iSCSI 10100 true none [10.3.0.0/24]`)
}

func TestChooseFollowsTheMetric(t *testing.T) {
	v := Group(seedNodes(3), []Setting{{Name: "iSCSI", Role: RoleNone, Subnets: []netip.Prefix{netip.MustParsePrefix("10.3.0.0/24")}}})
	for _, c := range []struct{ down, want string }{
		{"", "Cluster 2000 then LM Client Cluster"},
		{"Cluster", "LM 2200 then Client LM"},
		{"Cluster LM", "Client 20000 then Client"},
		{"LM", "Cluster 2000 then Client Cluster"},
		{"Cluster LM Client", "none"},
	} {
		got := "none"
		choice, ok := Choose(v.Networks, 1, 2, func(n string) bool { return !slices.Contains(strings.Fields(c.down), n) })
		if ok {
			got = fmt.Sprintf("%s %d then", choice.Cluster.Network, choice.Cluster.Metric)
			for _, p := range choice.Migration {
				got += " " + p.Network
			}
			if choice.Cluster.Local.Number != 1 || choice.Cluster.Remote.Number != 2 {
				t.Fatalf("ends of the path: %+v", choice.Cluster)
			}
		}
		if got != c.want {
			t.Errorf("down %q: %s, want %s", c.down, got, c.want)
		}
	}
}

func TestFasterLinkGoesFirstInABand(t *testing.T) {
	nodes := seedNodes(2)
	for _, n := range nodes {
		n.Interfaces[0].Speed = 100000 // Client, with a gateway
		n.Interfaces[3].Speed = 25000  // LM
	}
	expect(t, "networks", table(Group(nodes, nil)), `
Client 10000 true cluster-and-client [192.168.0.0/24]
Cluster 1100 true cluster [10.1.0.0/24 fd01::/64]
LM 1000 true cluster [10.2.0.0/24]
iSCSI 1200 true cluster [10.3.0.0/24]`)
}

func TestOneMetricTwice(t *testing.T) {
	set := []Setting{
		{Name: "Client", Role: RoleNone, Subnets: []netip.Prefix{netip.MustParsePrefix("192.168.0.0/24")}},
		{Name: "LM", Metric: 1000, Manual: true, Subnets: []netip.Prefix{netip.MustParsePrefix("10.2.0.0/24")}},
		{Name: "iSCSI", Metric: 1000, Manual: true, Subnets: []netip.Prefix{netip.MustParsePrefix("10.3.0.0/24")}},
	}
	nodes := seedNodes(2)
	order := func() string {
		v := Group(nodes, set)
		if p := problems(v); !slices.Equal(p, []Problem{ProblemSameMetric, ProblemSameMetric}) {
			t.Fatalf("warnings %v", v.Warnings)
		}
		var names []string
		for _, p := range Paths(v.Networks, 2, 1) {
			names = append(names, p.Network)
		}
		return strings.Join(names, " ")
	}
	expect(t, "by hand before automatic, then by name", order(), "LM iSCSI Cluster")
	nodes[0].Interfaces[2].Speed, nodes[1].Interfaces[2].Speed = 40000, 40000
	expect(t, "the faster first", order(), "iSCSI LM Cluster")
	want := "networks iSCSI and LM both have the metric 1000: iSCSI goes first"
	if w := fmt.Sprint(Group(nodes, set).Warnings); !strings.Contains(w, want) || !strings.Contains(w, "give one of them another metric") {
		t.Fatal(w)
	}
}

func TestSubnetsOfOneInterfaceAreOneNetwork(t *testing.T) {
	v := Group([]Node{
		node(1, iface("eth0", "10.0.0.1/24", "fd00::1/64", "fe80::1/64"), iface("eth1", "10.0.9.1/24")),
		node(2, iface("eth0", "10.0.0.2/24", "fe80::2/64")),
		node(3, iface("ens3", "fd00::3/64", "fe80::3/64")),
	}, nil)
	expect(t, "networks", table(v), "Network1 1000 true cluster [10.0.0.0/24 fd00::/64]\nNetwork2 1100 true cluster [10.0.9.0/24]")
	if got := len(v.Networks[0].Members); got != 3 {
		t.Fatalf("%d members", got)
	}
}

func TestSubnetsApartOnANodeAreTwoNetworks(t *testing.T) {
	v := Group([]Node{
		node(1, iface("eth0", "10.0.0.1/24", "fd00::1/64")),
		node(2, iface("eth0", "10.0.0.2/24"), iface("eth1", "fd00::2/64")),
	}, nil)
	expect(t, "networks", table(v), "Network1 1000 true cluster [10.0.0.0/24]\nNetwork2 1100 true cluster [fd00::/64]")
	if p := problems(v); !slices.Equal(p, []Problem{ProblemSplit}) {
		t.Fatal(v.Warnings)
	}
}

func TestOverlappingSubnets(t *testing.T) {
	v := Group([]Node{node(1, iface("eth0", "10.0.1.1/16")), node(2, iface("eth0", "10.0.1.2/24"))}, nil)
	expect(t, "a wrong prefix length", table(v), "Network1 1000 true cluster [10.0.0.0/16 10.0.1.0/24]")
	if p := problems(v); !slices.Equal(p, []Problem{ProblemOverlap}) {
		t.Fatal(v.Warnings)
	}
	for _, part := range []string{"10.0.0.0/16 (eth0 of node n1)", "10.0.1.0/24 (eth0 of node n2)", "same prefix length"} {
		if !strings.Contains(v.Warnings[0].Message, part) {
			t.Fatalf("%q lacks %q", v.Warnings[0].Message, part)
		}
	}
	v = Group([]Node{node(1, iface("eth0", "10.0.1.1/16"), iface("eth1", "10.0.1.9/24")), node(2, iface("eth0", "10.0.1.2/16"))}, nil)
	expect(t, "two interfaces", table(v), "Network1 1000 true cluster [10.0.0.0/16]\nNetwork2 1100 true cluster [10.0.1.0/24]")
}

func TestLinkLocalInterfacesGoByName(t *testing.T) {
	nodes := []Node{
		node(1, iface("eth0", "10.0.0.1/24", "fe80::1/64"), iface("x0", "fe80::11/64"), iface("y0", "fe80::21/64")),
		node(2, iface("eth0", "10.0.0.2/24", "fe80::2/64"), iface("x0", "fe80::12/64", "169.254.3.4/16")),
		node(3, iface("eth0", "fe80::3/64")),
	}
	v := Group(nodes, nil)
	expect(t, "networks", table(v), "Network1 1000 true cluster [10.0.0.0/24]\nNetwork2 1100 true cluster [169.254.0.0/16 fe80::/64]")
	if len(v.Networks[0].Members) != 3 || len(v.Networks[1].Members) != 2 {
		t.Fatalf("members: %+v", v.Networks)
	}
	again := Group(nodes, v.Settings)
	expect(t, "with the settings", table(again), table(v))
}

func TestNoNetworkOfItsOwnInterfaces(t *testing.T) {
	v := Group([]Node{node(1, iface(ClusterInterface, "fd12::1/64"), iface("lo", "127.0.0.1/8", "::1/128"), iface("wg0", "10.9.9.9/32"))}, nil)
	if len(v.Networks) > 0 || len(v.Settings) > 0 {
		t.Fatal(table(v))
	}
}

func TestAnAddressMovesToAnotherInterface(t *testing.T) {
	before := []Node{node(1, iface("eth0", "10.0.0.1/24"), iface("eth1", "10.0.1.1/24")), node(2, iface("eth0", "10.0.0.2/24"))}
	v := Group(before, nil)
	both := []Node{node(1, iface("eth0", "10.0.0.1/24"), iface("eth1", "10.0.0.1/24", "10.0.1.1/24")), before[1]}
	w := Group(both, v.Settings)
	if m, _ := w.Networks[0].Member(1); m.Interface.Name != "eth0" || !slices.Contains(problems(w), ProblemTwoInOne) {
		t.Fatalf("while it is on both: %+v %v", w.Networks, w.Warnings)
	}
	after := []Node{node(1, iface("eth2", "10.0.0.1/24"), iface("eth1", "10.0.1.1/24")), before[1]}
	x := Group(after, w.Settings)
	if m, _ := x.Networks[0].Member(1); m.Interface.Name != "eth2" || x.Networks[0].Name != "Network1" {
		t.Fatalf("after it moved: %s", table(x))
	}
}

func TestOfTwoInterfacesTheRunningOneIsUsed(t *testing.T) {
	down := iface("eth0", "10.0.0.1/24")
	down.Carrier = false
	v := Group([]Node{node(1, down, iface("eth1", "10.0.0.9/24"))}, nil)
	if m, _ := v.Networks[0].Member(1); m.Interface.Name != "eth1" {
		t.Fatalf("%+v", m)
	}
}

func TestNamesFollowSubnets(t *testing.T) {
	one := Group([]Node{node(1, iface("eth0", "10.0.0.1/24", "fd00::1/64"), iface("eth1", "10.0.1.1/24"))}, nil)
	// The cables are swapped, and the first subnet is renumbered.
	two := Group([]Node{node(1, iface("eth1", "10.9.0.1/24", "fd00::1/64"), iface("eth0", "10.0.1.1/24"))}, one.Settings)
	expect(t, "swapped", table(two), "Network1 1000 true cluster [10.9.0.0/24 fd00::/64]\nNetwork2 1100 true cluster [10.0.1.0/24]")
	// All is gone, then back under other interfaces: nothing was forgotten, and no name is used anew.
	none := Group([]Node{node(1)}, two.Settings)
	three := Group([]Node{node(1, iface("eth7", "10.5.0.1/24"), iface("eth8", "10.0.1.1/24"), iface("eth9", "10.9.0.1/24"))}, none.Settings)
	expect(t, "back", table(three), `Network1 1000 true cluster [10.9.0.0/24]
Network2 1100 true cluster [10.0.1.0/24]
Network3 1200 true cluster [10.5.0.0/24]`)
}

func TestJoinedNetworksPartUnderTheirOldNames(t *testing.T) {
	apart := []Node{node(1, iface("eth0", "10.0.0.1/24")), node(2, iface("eth0", "fd00::2/64"))}
	one := Group(apart, nil)
	together := append(slices.Clone(apart), node(3, iface("eth0", "10.0.0.3/24", "fd00::3/64")))
	two := Group(together, one.Settings)
	expect(t, "joined", table(two), "Network1 1000 true cluster [10.0.0.0/24 fd00::/64]")
	three := Group(apart, two.Settings)
	expect(t, "apart", table(three), "Network1 1000 true cluster [10.0.0.0/24]\nNetwork2 1100 true cluster [fd00::/64]")
}

func TestBadInputIsWorkedAround(t *testing.T) {
	dup := iface("eth0", "10.0.0.1/24")
	dup.Duplicates = []netip.Prefix{netip.MustParsePrefix("fd00::1/64")}
	jumbo := iface("eth0", "10.0.0.1/24")
	jumbo.MTU = 9000
	v := Group([]Node{node(1, dup), node(2, jumbo), node(2, iface("eth1", "10.0.7.1/24"))}, []Setting{
		{Name: "A", Manual: true, Subnets: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24")}},
		{Name: "B", Role: RoleNone}, {Name: "B"}, {}, {Name: "C", Role: 9},
	})
	expect(t, "networks", table(v), "A 1000 true cluster [10.0.0.0/24]")
	want := []Problem{ProblemBadSetting, ProblemBadSetting, ProblemBadSetting, ProblemMTU, ProblemDuplicate, ProblemDuplicate,
		ProblemSameSettings, ProblemSameNumber}
	if got := problems(v); !slices.Equal(got, want) {
		t.Fatalf("warnings %v, want %v", v.Warnings, want)
	}
	none := Group(seedNodes(2)[:1], []Setting{{Name: "x", Role: RoleNone, Subnets: []netip.Prefix{
		netip.MustParsePrefix("192.168.0.0/24"), netip.MustParsePrefix("10.1.0.0/24")}}})
	if len(none.Warnings) > 0 {
		t.Fatal(none.Warnings)
	}
}

func TestNoNetworkForTheCluster(t *testing.T) {
	v := Group([]Node{node(1, iface("eth0", "10.0.0.1/24"))}, []Setting{{Name: "A", Role: RoleNone,
		Subnets: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24")}}})
	if p := problems(v); !slices.Equal(p, []Problem{ProblemNoNetwork}) {
		t.Fatal(v.Warnings)
	}
}

func TestRoleText(t *testing.T) {
	for _, r := range []Role{RoleAuto, RoleNone, RoleCluster, RoleClusterAndClient} {
		text, err := json.Marshal(Setting{Name: "A", Role: r})
		var back Setting
		if err != nil || json.Unmarshal(text, &back) != nil || back.Role != r {
			t.Errorf("%s came back as %s: %s, %v", r, back.Role, text, err)
		}
	}
	var s Setting
	if err := json.Unmarshal([]byte(`{"name":"A","role":"storage"}`), &s); err == nil || !strings.Contains(err.Error(), "cluster-and-client") {
		t.Errorf("an unknown role: %v", err)
	}
	if err := (Setting{Name: "A", Manual: true, Metric: MaxMetric + 1}).Validate(); err == nil {
		t.Error("a metric above the range is taken")
	}
}

func TestClusterAddresses(t *testing.T) {
	a := ClusterAddress("c1", 1)
	if !a.IsPrivate() || a.As16()[0] != 0xfd || a == ClusterAddress("c2", 1) || a.As16()[15] != 1 {
		t.Fatalf("IPv6: %s", a)
	}
	if got := ClusterAddress("lunar", 258).String(); got != "fd00:486a:eea8::102" {
		t.Errorf("the address of a given cluster changed: %s", got)
	}
	seen := map[netip.Addr]bool{}
	for n := 1; n <= count4; n++ {
		b := ClusterAddress4("c1", uint16(n))
		o := b.As4()
		if seen[b] || o[0] != 169 || o[1] != 254 || o[2] == 0 || o[2] == 255 {
			t.Fatalf("number %d: %s", n, b)
		}
		seen[b] = true
	}
	if ClusterAddress("c1", 0).IsValid() || ClusterAddress4("c1", 0).IsValid() || ClusterAddress4("c1", count4+1).IsValid() {
		t.Error("a number without an address got one")
	}
}

func TestNameOrder(t *testing.T) {
	names := []string{"Network10", "LM", "Network2", "Cluster", "Network", "Network02", "a1b", "a"}
	slices.SortFunc(names, compareNames)
	expect(t, "names", strings.Join(names, " "), "Cluster LM Network Network02 Network2 Network10 a a1b")
}

func TestTheLatestSubnetCountsMoreThanManyOld(t *testing.T) {
	set := []Setting{{Name: "N", Subnets: []netip.Prefix{netip.MustParsePrefix("fd00::/64"), netip.MustParsePrefix("10.0.0.0/24"),
		netip.MustParsePrefix("10.0.1.0/24")}}}
	v := Group([]Node{node(1, iface("eth0", "fd00::1/64"), iface("eth1", "10.0.0.1/24", "10.0.1.1/24"))}, set)
	expect(t, "networks", table(v), "N 1000 true cluster [fd00::/64]\nNetwork1 1100 true cluster [10.0.0.0/24 10.0.1.0/24]")
	if s := v.Settings[0].Subnets; len(s) != 1 {
		t.Fatalf("N still remembers what Network1 has: %v", s)
	}
}

func TestNextHop(t *testing.T) {
	ula, four := ClusterAddress("c", 1), ClusterAddress4("c", 1)
	for _, c := range []struct {
		local, remote Interface
		cluster       netip.Addr
		want          string
	}{
		{iface("a", "10.0.0.1/24", "fe80::1/64"), iface("b", "10.0.0.2/24", "fd00::2/64", "fe80::2/64"), ula, "fe80::2"},
		{iface("a", "fe80::1/64"), iface("b", "fd00::2/64"), ula, "fd00::2"},
		{iface("a", "10.0.0.1/24"), iface("b", "10.0.0.2/24", "fe80::2/64"), ula, "invalid IP"},
		{iface("a", "10.0.0.1/24", "fe80::1/64"), iface("b", "10.0.0.2/24"), ula, "invalid IP"},
		{iface("a", "10.0.0.1/24", "fe80::1/64"), iface("b", "10.0.0.2/24", "fe80::2/64"), four, "10.0.0.2"},
		{iface("a", "fe80::1/64"), iface("b", "10.0.0.2/24", "fe80::2/64"), four, "fe80::2"},
	} {
		hop, ok := Path{Local: Member{Interface: c.local}, Remote: Member{Interface: c.remote}}.NextHop(c.cluster)
		if hop.String() != c.want || ok != hop.IsValid() {
			t.Errorf("%v to %v for %s: %s %t, want %s", c.local.Addresses, c.remote.Addresses, c.cluster, hop, ok, c.want)
		}
	}
}
