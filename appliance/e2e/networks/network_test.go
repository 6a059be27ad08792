package networks

import (
	"slices"
	"strings"
	"testing"
	"time"

	"lunar/appliance/api"
	"lunar/appliance/e2e/lab"
)

// logTells waits until the cluster's log has such an event about a node.
func (b *bench) logTells(node, kind string) {
	b.t.Helper()
	check(b.t, lab.Poll(settle, func() error {
		text, err := b.Nodes[1].Ctl(b.ctx, "log")
		if err == nil && !slices.ContainsFunc(strings.Split(text, "\n"), func(l string) bool {
			return strings.Contains(l, kind+": ") && (strings.Contains(l, "node "+node+" ") || strings.Contains(l, "node "+node+":"))
		}) {
			err = &missing{kind, text}
		}
		return err
	}))
}

type missing struct{ kind, text string }

func (m *missing) Error() string { return "no " + m.kind + " in the log:\n" + m.text }

// nothingLeft wants that stopped nodes have given their addresses and routes back.
func (b *bench) nothingLeft() {
	b.t.Helper()
	for _, n := range b.Nodes {
		text, err := lab.Run(b.ctx, "ip", "-n", n.Host.Namespace, "-6", "route", "show")
		check(b.t, err)
		if strings.Contains(text, "fd") && strings.Contains(text, "lunar0") {
			b.t.Errorf("node %s keeps routes:\n%s", n.Name, text)
		}
		if text, err := lab.Run(b.ctx, "ip", "-n", n.Host.Namespace, "link", "show", "lunar0"); err == nil {
			b.t.Errorf("node %s keeps its cluster address:\n%s", n.Name, text)
		}
	}
}

// TestColdStart stops all nodes, moves nothing but the daemons, and starts them again: they find each other.
func TestColdStart(t *testing.T) {
	b := newBench(t, "")
	b.awaitNetwork(b.Network, api.NetworkUp, b.Nodes...)
	v := b.validation(b.Nodes[1])
	for name, want := range map[string]api.Outcome{
		"nodes": api.Pass, "versions": api.Pass, "clocks": api.Pass, "networks:single-point-of-failure": api.Pass,
		"networks:mtu": api.Pass, "networks:duplicate-addresses": api.Pass, "networks:ipv6": api.Pass, "networks:dedicated": api.Pass,
		"disk-paths": api.Pass, "reservations": api.Pass,
	} {
		if got, texts := outcome(&v, name); got != want {
			t.Errorf("check %s: %s, want %s: %q", name, got, want, texts)
		}
	}
	check(t, b.Nodes[2].Host.Cut(b.ctx, b.Second))
	check(t, lab.Poll(settle, func() error {
		v = b.validation(b.Nodes[1])
		if got, texts := outcome(&v, "networks:single-point-of-failure"); got != api.Warning {
			return &missing{"warning", strings.Join(texts, "\n")}
		}
		return nil
	}))
	check(t, b.Nodes[2].Host.Mend(b.ctx, b.Second))

	check(t, b.Stop())
	started := make(chan error, len(b.Nodes))
	for _, n := range b.Nodes {
		go func() { started <- n.Start(b.ctx) }()
	}
	for range b.Nodes {
		check(t, <-started)
	}
	check(t, lab.Poll(settle, func() error {
		st, err := b.Nodes[2].API.Cluster(b.ctx)
		if err == nil && st.Living < len(b.Nodes) {
			err = &missing{"voter", st.Reason}
		}
		return err
	}))
	check(t, b.Stop())
	b.nothingLeft()
}

// TestNodeLost pulls all cables of a node: the others conclude so from its silence, without BPF too.
func TestNodeLost(t *testing.T) {
	b := newBench(t, "\n[network]\nprofile = \"fast\"\nbpf = \"off\"\n")
	for _, segment := range []*lab.Network{b.Network, b.Second} {
		b.awaitNetwork(segment, api.NetworkUp, b.Nodes...)
	}
	text, err := b.Nodes[0].Ctl(b.ctx, "network", "list")
	check(t, err)
	if !strings.Contains(text, "stamped by their sockets, not by the kernel: ") {
		t.Errorf("network list does not tell of the fallback:\n%s", text)
	}
	lost := b.Nodes[2]
	began := time.Now()
	check(t, lost.Host.Cut(b.ctx, b.Network))
	check(t, lost.Host.Cut(b.ctx, b.Second))
	check(t, lab.Poll(settle, func() error {
		n, err := b.Nodes[1].API.Node(b.ctx, lost.Name)
		if err == nil && n.Present {
			err = &missing{"eviction", string(n.State)}
		}
		return err
	}))
	t.Logf("node %s is out %v after its cables", lost.Name, time.Since(began).Round(time.Millisecond))
	b.logTells(lost.Name, "network.node-lost")
	for _, segment := range []*lab.Network{b.Network, b.Second} {
		check(t, lost.Host.Mend(b.ctx, segment))
	}
	b.awaitNetwork(b.Network, api.NetworkUp, b.Nodes...)
	check(t, lab.Poll(settle, func() error {
		n, err := b.Nodes[1].API.Node(b.ctx, lost.Name)
		if err == nil && !n.Present {
			err = &missing{"return", string(n.State)}
		}
		return err
	}))
	check(t, b.Stop())
}

// TestNoBTF has a node whose kernel shows no type information: its sockets stamp, it says so, and the others' kernels go on.
func TestNoBTF(t *testing.T) {
	long(t)
	b := newBenchOf(t, lab.ClusterConfig{Nodes: 3, Second: true, Extra: fast, Hidden: []string{"/sys/kernel/btf"}})
	for _, segment := range []*lab.Network{b.Network, b.Second} {
		b.awaitNetwork(segment, api.NetworkUp, b.Nodes...)
	}
	bare := b.Nodes[2]
	for _, n := range b.Nodes {
		text, err := n.Ctl(b.ctx, "network", "list")
		check(t, err)
		const told = "CONFIG_DEBUG_INFO_BTF"
		fallback := slices.IndexFunc(strings.Split(text, "\n"), func(l string) bool { return strings.Contains(l, told) })
		if (fallback >= 0) != (n == bare) {
			t.Errorf("node %s tells:\n%s", n.Name, text)
		}
		if n == bare && !strings.Contains(n.Log(), "heartbeats are stamped by socket") {
			t.Error("the log does not tell of the fallback")
		}
		if n == bare && fallback >= 0 {
			t.Log(strings.Split(text, "\n")[fallback])
		}
	}
	check(t, bare.Host.Cut(b.ctx, b.Second))
	b.awaitRoutes(b.name(b.Network), b.Nodes...)
	check(t, bare.Host.Mend(b.ctx, b.Second))
	b.awaitNetwork(b.Second, api.NetworkUp, b.Nodes...)
	for _, n := range b.Nodes {
		for _, line := range suspicions(n, 0) {
			if strings.Contains(line, "node lost") || strings.Contains(line, "daemon stalled") {
				t.Errorf("node %s says %s", n.Name, line)
			}
		}
	}
	check(t, b.Stop())
}

// name is a segment's network.
func (b *bench) name(segment *lab.Network) string {
	b.t.Helper()
	w, err := b.network(b.Nodes[0], segment)
	check(b.t, err)
	return w.Name
}
