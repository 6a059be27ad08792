package daemon

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"lunar/appliance/api"
	"lunar/appliance/cluster"
	"lunar/appliance/fence"
	"lunar/netft/network"
)

// findings are what `cluster validate` judges.
type findings struct {
	self    string
	family  cluster.Family
	members []cluster.Member
	facts   map[string]facts // by node
	missing map[string]error // nodes that did not answer
	clocks  map[string]clock // of the others
	view    network.View
	volumes map[string]string // ID → name

	out []api.Check
}

// The limits of what is found.
const (
	clockWarn = time.Second // events of several nodes are hard to put in order
	clockFail = time.Minute // certificates may not be good yet
)

// checks judges all; the order is that of the output.
func (in *findings) checks() []api.Check {
	for _, check := range []func(){
		in.nodes, in.versions, in.clocksAgree, in.redundant, in.heartbeats, in.mtu, in.duplicates, in.settings, in.open, in.dedicated,
		in.ipv6, in.diskPaths, in.reservations,
	} {
		check()
	}
	return in.out
}

// add notes findings of one check, or that there are none.
func (in *findings) add(name, good string, bad []api.Check) {
	if len(bad) == 0 {
		bad = []api.Check{{Outcome: api.Pass, Found: good}}
	}
	for _, c := range bad {
		c.Name = name
		in.out = append(in.out, c)
	}
}

func warning(advice, format string, args ...any) api.Check {
	return api.Check{Outcome: api.Warning, Found: fmt.Sprintf(format, args...), Advice: advice}
}

func failure(advice, format string, args ...any) api.Check {
	return api.Check{Outcome: api.Failure, Found: fmt.Sprintf(format, args...), Advice: advice}
}

func (in *findings) nodes() {
	var bad []api.Check
	for _, name := range slices.Sorted(maps.Keys(in.missing)) {
		bad = append(bad, failure("start lunard there, or see `lunarctl cluster status`; what follows is without it",
			"node %s does not answer: %v", name, in.missing[name]))
	}
	in.add("nodes", fmt.Sprintf("all %d nodes answer", len(in.members)), bad)
}

func (in *findings) versions() {
	by := map[string][]string{}
	for _, name := range slices.Sorted(maps.Keys(in.facts)) {
		v := in.facts[name].Version
		by[v] = append(by[v], name)
	}
	var bad []api.Check
	if len(by) > 1 {
		var parts []string
		for _, v := range slices.Sorted(maps.Keys(by)) {
			parts = append(parts, fmt.Sprintf("%s on %s", v, strings.Join(by[v], ", ")))
		}
		bad = append(bad, warning("bring all nodes to one version, one after the other", "the versions differ: %s", strings.Join(parts, "; ")))
	}
	in.add("versions", "all nodes run version "+in.facts[in.self].Version, bad)
}

func (in *findings) clocksAgree() {
	var bad []api.Check
	worst := time.Duration(0)
	for _, name := range slices.Sorted(maps.Keys(in.clocks)) {
		c := in.clocks[name]
		off := c.ahead.Abs()
		worst = max(worst, off+c.unknown)
		word := "ahead of"
		if c.ahead < 0 {
			word = "behind"
		}
		const advice = "set up time synchronisation (chrony or systemd-timesyncd) on every node"
		switch sure := off - c.unknown; {
		case sure > clockFail:
			bad = append(bad, failure(advice, "the clock of %s is %v %s that of %s", name, short(off), word, in.self))
		case sure > clockWarn:
			bad = append(bad, warning(advice, "the clock of %s is %v %s that of %s", name, short(off), word, in.self))
		}
	}
	in.add("clocks", fmt.Sprintf("the clocks differ by less than %v", max(short(worst), time.Millisecond)), bad)
}

// redundant looks for the loss of one network that would cut two nodes off each other.
func (in *findings) redundant() {
	var bad []api.Check
	in.pairs(func(a, b *cluster.Member) {
		switch shared := sharedNetworks(in.view.Networks, a.Number, b.Number); len(shared) {
		case 0:
			bad = append(bad, failure("bring an interface up on both, in one subnet, on a network with role cluster or cluster-and-client",
				"%s and %s have no network in common that works", a.Name, b.Name))
		case 1:
			bad = append(bad, warning("give both an interface on a second network, on another switch",
				"%s is the only network between %s and %s: its loss cuts them off each other", shared[0].Name, a.Name, b.Name))
		}
	})
	in.add("networks:single-point-of-failure", "any two nodes have at least two networks", bad)
}

func (in *findings) pairs(do func(a, b *cluster.Member)) {
	for i := range in.members {
		for j := i + 1; j < len(in.members); j++ {
			do(&in.members[i], &in.members[j])
		}
	}
}

func (in *findings) heartbeats() {
	var bad []api.Check
	for _, name := range slices.Sorted(maps.Keys(in.facts)) {
		f := in.facts[name]
		for _, s := range f.Silent {
			bad = append(bad, failure("look for a firewall (UDP 3343), a switch or a cable; `lunarctl trace heartbeat` shows when they pass",
				"%s gets no heartbeats of %s over %s by %s", name, s.Peer, s.Network, s.Family))
		}
		switch {
		case f.Method == "" && len(in.members) > 1:
			bad = append(bad, warning("its journal says why", "%s sends no heartbeats: only its silence in the database tells that it is lost", name))
		case f.Fallback != "":
			bad = append(bad, warning("a loaded machine may judge later",
				"heartbeats of %s are stamped by its sockets, not by its kernel: %s", name, f.Fallback))
		}
	}
	in.add("networks:heartbeats", "heartbeats pass on every network, stamped by the kernels", bad)
}

func (in *findings) mtu() {
	var bad []api.Check
	for _, w := range in.view.Warnings {
		if w.Problem == network.ProblemMTU {
			bad = append(bad, api.Check{Outcome: api.Failure, Found: w.Message})
		}
	}
	probes := 0
	for _, name := range slices.Sorted(maps.Keys(in.facts)) {
		for _, p := range in.facts[name].Probes {
			probes++
			switch {
			case p.Err != "":
				bad = append(bad, warning("look for a firewall between them, if the network is to be used",
					"%s over %s to %s could not be probed: %s", name, p.Network, p.Peer, p.Err))
			case !p.Large:
				bad = append(bad, failure("set one MTU on both interfaces and on every switch port between them",
					"datagrams of %d bytes, the MTU of %s there, do not reach %s over %s", p.Size, name, p.Peer, p.Network))
			}
		}
	}
	in.add("networks:mtu", fmt.Sprintf("datagrams of full size passed on %d of %d ways", probes, probes), bad)
}

func (in *findings) duplicates() {
	var bad []api.Check
	for _, w := range in.view.Warnings {
		if w.Problem == network.ProblemDuplicate {
			bad = append(bad, api.Check{Outcome: api.Failure, Found: w.Message})
		}
	}
	for _, w := range in.view.Networks {
		for _, m := range w.Members {
			for _, d := range m.Interface.Duplicates {
				bad = append(bad, failure("give one of the two another address",
					"%s of %s on %s is another machine's too: the kernel does not use it", d.Addr(), m.Node, m.Interface.Name))
			}
		}
	}
	in.add("networks:duplicate-addresses", "no address is there twice", bad)
}

// settings passes the rest of what grouping found.
func (in *findings) settings() {
	var bad []api.Check
	for _, w := range in.view.Warnings {
		switch w.Problem {
		case network.ProblemMTU, network.ProblemDuplicate:
		case network.ProblemNoNetwork:
			bad = append(bad, api.Check{Outcome: api.Failure, Found: w.Message})
		default:
			bad = append(bad, api.Check{Outcome: api.Warning, Found: w.Message})
		}
	}
	in.add("networks:settings", "subnets, roles and metrics fit together", bad)
}

// open looks for clients on networks that are the cluster's.
func (in *findings) open() {
	var bad []api.Check
	for _, w := range in.view.Networks {
		if w.Role != network.RoleCluster {
			continue
		}
		if w.Gateway {
			bad = append(bad, warning("take the default route off it, or give it the role cluster-and-client",
				"network %s has role cluster, and a default route leaves by it: machines outside reach it", w.Name))
		}
		for _, name := range slices.Sorted(maps.Keys(in.facts)) {
			if i := slices.IndexFunc(in.facts[name].Sessions, func(a string) bool { return lies(a, w.Subnets) }); i >= 0 {
				bad = append(bad, warning("let initiators log in over another network, or give this one the role cluster-and-client",
					"network %s has role cluster, and initiators are logged in over it, to %s of %s", w.Name, in.facts[name].Sessions[i], name))
			}
		}
	}
	in.add("networks:open-to-clients", "no client is on a network of the cluster alone", bad)
}

func lies(address string, subnets []netip.Prefix) bool {
	a, err := netip.ParseAddr(address)
	return err == nil && slices.ContainsFunc(subnets, func(p netip.Prefix) bool { return p.Contains(a.Unmap().WithZone("")) })
}

func (in *findings) dedicated() {
	var bad []api.Check
	own := slices.ContainsFunc(in.view.Networks, func(w network.Network) bool { return w.Role == network.RoleCluster })
	if !own && len(in.members) > 1 {
		bad = append(bad, warning("give the nodes a network of their own, and `lunarctl network set NAME --role cluster`",
			"no network is for the cluster alone: redirected I/O shares its way with clients"))
	}
	in.add("networks:dedicated", "there is a network for the cluster alone", bad)
}

func (in *findings) ipv6() {
	var bad []api.Check
	for _, name := range slices.Sorted(maps.Keys(in.facts)) {
		const advice = "sysctl net.ipv6.conf.all.disable_ipv6=0, and take it out of /etc/sysctl.d; link-local addresses are enough"
		switch {
		case in.facts[name].IPv6:
		case in.family == cluster.FamilyIPv6:
			bad = append(bad, failure(advice, "IPv6 is off on %s, and the cluster's addresses are IPv6", name))
		default:
			bad = append(bad, warning(advice, "IPv6 is off on %s: a network whose IPv4 addresses are wrong is lost to it", name))
		}
	}
	in.add("networks:ipv6", "IPv6 is on everywhere", bad)
}

// diskPaths looks whether every node that may coordinate reaches every LUN, and the same one.
func (in *findings) diskPaths() {
	var bad []api.Check
	in.eachVolume(func(id, name string) {
		wwids := map[string]string{}
		for _, node := range in.servers() {
			v, ok := in.facts[node].Volumes[id]
			switch {
			case !ok || v.State == api.StateAbsent:
				bad = append(bad, failure("make the LUN visible there (zoning, initiator, multipath); `lunarctl volume show` tells when it is",
					"%s does not reach the LUN of %s: %s", node, name, orUnknown(v.Reason)))
			case v.State != api.Direct:
				bad = append(bad, warning("`lunarctl volume show` tells more", "%s has %s %s: %s", node, name, v.State, orUnknown(v.Reason)))
			}
			if v.WWID != "" {
				wwids[v.WWID] = node
			}
		}
		if len(wwids) > 1 {
			bad = append(bad, failure("eject the volume before anything is written: the nodes would write to different disks",
				"the nodes have different LUNs as %s: %s", name, pairsOf(wwids)))
		}
	})
	good := fmt.Sprintf("every node reaches the LUNs of %d volumes", len(in.volumes))
	if len(in.volumes) == 0 {
		good = "there are no volumes yet"
	}
	in.add("disk-paths", good, bad)
}

func (in *findings) eachVolume(do func(id, name string)) {
	ids := slices.SortedFunc(maps.Keys(in.volumes), func(a, b string) int { return strings.Compare(in.volumes[a], in.volumes[b]) })
	for _, id := range ids {
		do(id, in.volumes[id])
	}
}

// servers are the nodes that answered and may coordinate.
func (in *findings) servers() []string {
	var out []string
	for i := range in.members {
		m := &in.members[i]
		if _, ok := in.facts[m.Name]; ok && !m.Witness() {
			out = append(out, m.Name)
		}
	}
	return out
}

func orUnknown(reason string) string {
	if reason == "" {
		return "it does not say why"
	}
	return reason
}

func pairsOf(wwids map[string]string) string {
	var parts []string
	for _, w := range slices.Sorted(maps.Keys(wwids)) {
		parts = append(parts, fmt.Sprintf("%s on %s", w, wwids[w]))
	}
	return strings.Join(parts, ", ")
}

func (in *findings) reservations() {
	var bad []api.Check
	in.eachVolume(func(id, name string) {
		methods := map[string]bool{}
		for _, node := range in.servers() {
			if m := in.facts[node].Volumes[id].Method; m != "" {
				methods[m] = true
			}
		}
		switch {
		case len(methods) > 1:
			bad = append(bad, failure("give every node the same path to the LUN, and the same [fence] configuration",
				"the nodes fence %s by different means: %s", name, strings.Join(slices.Sorted(maps.Keys(methods)), ", ")))
		case methods[string(fence.Lease)]:
			bad = append(bad, warning("use a LUN with SCSI-3 persistent reservations, or a fence agent ([fence] agent): a virtual machine that is paused is not covered",
				"%s is fenced by lease, the weaker way", name))
		case len(methods) == 0 && len(in.servers()) > 1:
			bad = append(bad, warning("`lunarctl volume show` tells more", "nothing fences %s yet", name))
		}
	})
	good := "every volume is fenced by reservations or an agent"
	if len(in.volumes) == 0 {
		good = "there are no volumes yet"
	}
	in.add("reservations", good, bad)
}
