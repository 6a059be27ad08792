package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"lunar/appliance/api"
	"lunar/appliance/cluster"
	"lunar/appliance/config"
	"lunar/netft"
	"lunar/netft/detector"
	"lunar/netft/network"
)

func TestIncarnationRises(t *testing.T) {
	path := filepath.Join(t.TempDir(), "heartbeat")
	now := time.Now()
	first, err := nextIncarnation(path, now)
	must(t, err)
	back, err := nextIncarnation(path, now.Add(-time.Hour))
	must(t, err)
	later, err := nextIncarnation(path, now.Add(time.Hour))
	must(t, err)
	if first == 0 || back != first+1 || later <= back {
		t.Fatalf("%d, then %d, then %d", first, back, later)
	}
	must(t, os.WriteFile(path, []byte("damaged"), 0o600))
	if again, err := nextIncarnation(path, now); err != nil || again != first {
		t.Fatalf("%d, %v", again, err)
	}
}

func TestPublishedInterfacesAreBounded(t *testing.T) {
	all := []network.Interface{{Name: "bare"}}
	for range 2 * maxInterfaces {
		i := network.Interface{Name: "eth"}
		for range 2 * maxAddresses {
			i.Addresses = append(i.Addresses, netip.MustParsePrefix("192.0.2.1/24"))
		}
		all = append(all, i)
	}
	got := publishable(all)
	if len(got) != maxInterfaces || got[0].Name != "eth" || len(got[0].Addresses) != maxAddresses {
		t.Fatalf("%d interfaces, the first %+v", len(got), got[0])
	}
}

// oneTeller is the membership of n1, without a database and with its interfaces as others would read them.
func oneTeller(t *testing.T) (*membership, json.RawMessage) {
	t.Helper()
	n := newNode("n1", slog.New(slog.DiscardHandler))
	n.fabric = newFabric(&config.Config{Cluster: config.Cluster{Address: "127.0.0.1"}}, n.log)
	text, err := json.Marshal(twoNets()[0].Interfaces)
	must(t, err)
	return &membership{node: n}, text
}

// TestNodesAreToldInTheirOrder has one watch tell slowly of the members before a join, and another of those after it.
func TestNodesAreToldInTheirOrder(t *testing.T) {
	m, text := oneTeller(t)
	before := []cluster.Member{{Name: "n1", Number: 1}}
	after := append(slices.Clone(before), cluster.Member{Name: "n2", Number: 2})
	many := "[" + strings.Repeat(strings.Trim(string(text), "[]")+",", 200)
	slow := cluster.Networks{Interfaces: map[string]json.RawMessage{"n1": json.RawMessage(strings.TrimSuffix(many, ",") + "]")}}
	for range 100 {
		m.members.Store(&before)
		var other sync.WaitGroup
		begun := make(chan struct{})
		other.Go(func() { close(begun); m.tell(slow) })
		<-begun
		m.members.Store(&after)
		m.tell(cluster.Networks{})
		other.Wait()
		if got := len(m.node.networks.Load().nodes); got != len(after) {
			t.Fatalf("netft knows %d nodes after the join, want %d", got, len(after))
		}
	}
}

// TestNetworksAreToldInTheirOrder has a watch of the members come last, with networks that it read before a change.
func TestNetworksAreToldInTheirOrder(t *testing.T) {
	m, text := oneTeller(t)
	m.members.Store(&[]cluster.Member{{Name: "n1", Number: 1}})
	m.tell(cluster.Networks{Read: 7, Interfaces: map[string]json.RawMessage{"n1": text}})
	m.tell(cluster.Networks{Read: 6})
	if got := len(m.node.networks.Load().nodes[0].Interfaces); got != 2 {
		t.Fatalf("netft knows %d interfaces of the node that told of 2", got)
	}
	must(t, m.node.fabric.Up(t.Context(), cluster.NetworkStart{}))
	m.tell(cluster.Networks{Read: 3})
	if got := len(m.node.networks.Load().nodes[0].Interfaces); got != 0 {
		t.Fatalf("netft knows %d interfaces of another cluster", got)
	}
}

// TestEvictionOutlivesOwnSession has this node lose its session while the database chooses a leader.
func TestEvictionOutlivesOwnSession(t *testing.T) {
	silent, calls := true, 0
	lostTwice := func() error {
		if calls++; calls <= 2 {
			return fmt.Errorf("suspect: %w", cluster.ErrSessionLost)
		}
		return nil
	}
	must(t, evict(t.Context(), func() bool { return silent }, lostTwice))
	if calls != 3 {
		t.Fatalf("asked %d times, want until it is done", calls)
	}
	calls, silent = 0, false
	must(t, evict(t.Context(), func() bool { return silent }, lostTwice))
	if calls != 0 {
		t.Fatal("a node that is back is evicted")
	}
	over, cancel := context.WithCancel(t.Context())
	cancel()
	silent = true
	if err := evict(over, func() bool { return silent }, lostTwice); !errors.Is(err, cluster.ErrSessionLost) {
		t.Fatalf("in the end: %v", err)
	}
}

func TestInterfacesSettle(t *testing.T) {
	i := network.Interface{Name: "eth0", MAC: "02:00:00:00:00:01", Up: true, Carrier: true}
	i.Addresses = []netip.Prefix{netip.MustParsePrefix("192.0.2.1/24")}
	ready := i
	ready.Addresses = append(slices.Clone(i.Addresses), netip.MustParsePrefix("fe80::1/64"))
	without, down := i, i
	without.IPv6Disabled, down.Carrier = true, false
	if haveLinkLocal([]network.Interface{ready, i}) || !haveLinkLocal([]network.Interface{ready, without, down}) {
		t.Fatal("only an interface that runs with IPv6 and has no link-local address is not settled")
	}
}

// twoNets is n1 and n2 on a network for clients and one of their own.
func twoNets() []network.Node {
	var out []network.Node
	for i, name := range []string{"n1", "n2"} {
		host := byte(i + 1)
		address := func(net byte) []netip.Prefix {
			return []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, net, host}), 24)}
		}
		out = append(out, network.Node{Number: uint16(host), Name: name, Interfaces: []network.Interface{
			{Index: 2, Name: "Client", MTU: 1500, Up: true, Carrier: true, Gateway4: true, Addresses: address(1)},
			{Index: 3, Name: "Cluster", MTU: 1500, Up: true, Carrier: true, Addresses: address(2)},
		}})
	}
	return out
}

func TestNetworkSettingsAreChecked(t *testing.T) {
	view := network.Group(twoNets(), nil)
	role := func(s string) api.SetNetwork { return api.SetNetwork{Role: &s} }
	metric := func(n uint32) api.SetNetwork { return api.SetNetwork{Metric: &n} }
	_, err := changeSetting(view, "Nowhere", metric(5))
	refused(t, err, api.NotFound, `"Nowhere"`, "network list")
	_, err = changeSetting(view, "Client", role("public"))
	refused(t, err, api.Invalid, `"public"`, "cluster-and-client")
	_, err = changeSetting(view, "Client", role("auto"))
	refused(t, err, api.Invalid)
	_, err = changeSetting(view, "Client", metric(network.MaxMetric+1))
	refused(t, err, api.Invalid, "268435455")
	view.Settings, err = changeSetting(view, "Cluster", metric(100))
	must(t, err)
	_, err = changeSetting(view, "Client", metric(100))
	refused(t, err, api.Exists, "network Cluster has the metric 100 already")
	settings, err := changeSetting(view, "Cluster", metric(0))
	must(t, err)
	if i := slices.IndexFunc(settings, func(s network.Setting) bool { return s.Name == "Cluster" }); settings[i].Manual || settings[i].Metric != 0 {
		t.Fatalf("not automatic again: %+v", settings[i])
	}
}

func TestStateOfNetworks(t *testing.T) {
	nodes := twoNets()
	path := func(peer string, s detector.State) netft.PathStats {
		return netft.PathStats{Peer: peer, Network: "Cluster", State: s}
	}
	down := twoNets()
	down[0].Interfaces[1].Carrier = false
	for name, tt := range map[string]struct {
		nodes []network.Node
		self  uint16
		paths []netft.PathStats
		want  api.NetworkState
	}{
		"no heartbeats":          {nodes, 1, nil, api.NetworkUp},
		"no carrier":             {down, 1, nil, api.NetworkDown},
		"all":                    {nodes, 1, []netft.PathStats{path("n2", detector.Up), path("n3", detector.Up)}, api.NetworkUp},
		"one family is enough":   {nodes, 1, []netft.PathStats{path("n2", detector.Lost), path("n2", detector.Up)}, api.NetworkUp},
		"some":                   {nodes, 1, []netft.PathStats{path("n2", detector.Up), path("n3", detector.Lost)}, api.NetworkPartitioned},
		"none":                   {nodes, 1, []netft.PathStats{path("n2", detector.Lost)}, api.NetworkDown},
		"this node is not there": {nodes, 9, nil, api.NetworkUnavailable},
	} {
		w, ok := network.Group(tt.nodes, nil).Find("Cluster")
		if !ok {
			t.Fatalf("networks %+v", network.Group(tt.nodes, nil).Networks)
		}
		if got := networkState(&w, tt.self, tt.paths); got != tt.want {
			t.Errorf("%s: %s, want %s", name, got, tt.want)
		}
	}
}

func TestPortalsForClients(t *testing.T) {
	networks := network.Group(twoNets(), nil).Networks
	if got := texts(clientAddresses(networks, 2)); !slices.Equal(got, []string{"10.0.1.2"}) {
		t.Fatalf("with a network for clients: %v", got)
	}
	for i := range networks {
		networks[i].Role = network.RoleCluster
	}
	if got := texts(clientAddresses(networks, 2)); !slices.Equal(got, []string{"10.0.1.2", "10.0.2.2"}) {
		t.Fatalf("without one: %v", got)
	}
	networks[0].Role = network.RoleNone
	if got := clientAddresses(networks, 2); len(got) != 1 {
		t.Fatalf("a network of role none: %v", got)
	}
}

func TestVerdictsTellTheirEvidence(t *testing.T) {
	v := netft.Verdict{Peer: "n2", Method: netft.MethodKernel, Networks: map[uint16]string{7: "Cluster", 8: "LM"}}
	v.Kind, v.Silence, v.Threshold = detector.NodeLost, 10100*time.Millisecond, 10*time.Second
	v.Evidence = []detector.Evidence{
		{Stamp: detector.Stamp{Path: detector.Path{Network: 7, Family: 6}, Seen: 5, Heard: 5, Gaps: 3}, State: detector.Lost, Silence: 10100 * time.Millisecond},
		{Stamp: detector.Stamp{Path: detector.Path{Network: 8, Family: 4}}, State: detector.Lost, Down: "no carrier"},
	}
	const want = "node n2: node lost: silent for 10.1s, the limit is 10s; stamped by the kernel; " +
		"paths: Cluster IPv6 lost, silent for 10.1s, 3 missing, LM IPv4 lost (no carrier)"
	if got := verdictText(&v); got != want {
		t.Fatalf("got  %s\nwant %s", got, want)
	}
}

func TestFlappingDoesNotFillTheLog(t *testing.T) {
	j := judgement{node: newNode("n1", nil)}
	v := netft.Verdict{Time: time.Now()}
	noted := 0
	for range 10 * verdictEvents {
		v.Kind = detector.PathSuspect
		if j.mayNote(&v) {
			noted++
		}
	}
	v.Kind = detector.NodeLost
	if noted != verdictEvents || !j.mayNote(&v) {
		t.Fatalf("%d noted", noted)
	}
	v.Kind, v.Time = detector.PathSuspect, v.Time.Add(2*verdictWindow)
	if !j.mayNote(&v) {
		t.Fatal("the next minute begins anew")
	}
}

// found is what checks say of a cluster of n1 and n2 that change has spoilt.
func found(change func(*findings)) []api.Check {
	in := findings{
		self: "n1", family: cluster.FamilyIPv6, volumes: map[string]string{"id": "Volume1"}, missing: map[string]error{},
		members: []cluster.Member{{Name: "n1", Number: 1}, {Name: "n2", Number: 2}}, facts: map[string]facts{},
		clocks: map[string]clock{"n2": {ahead: time.Millisecond, unknown: time.Millisecond}}, view: network.Group(twoNets(), nil),
	}
	for _, n := range []string{"n1", "n2"} {
		in.facts[n] = facts{
			Node: n, Version: "1", IPv6: true, Method: netft.MethodKernel,
			Volumes: map[string]volumeFacts{"id": {State: api.Direct, WWID: "w", Method: "reservations"}},
		}
	}
	change(&in)
	return in.checks()
}

func TestValidation(t *testing.T) {
	alter := func(in *findings, change func(*facts)) {
		f := in.facts["n2"]
		change(&f)
		in.facts["n2"] = f
	}
	volume := func(in *findings, v volumeFacts) {
		alter(in, func(f *facts) { f.Volumes = map[string]volumeFacts{"id": v} })
	}
	for _, c := range found(func(*findings) {}) {
		if c.Outcome != api.Pass || c.Name == "" || c.Found == "" {
			t.Errorf("a good cluster: %+v", c)
		}
	}
	for name, tt := range map[string]struct {
		change func(*findings)
		want   api.Outcome
		check  string
		says   string
	}{
		"version":   {func(in *findings) { alter(in, func(f *facts) { f.Version = "2" }) }, api.Warning, "versions", "1 on n1; 2 on n2"},
		"late":      {func(in *findings) { in.clocks["n2"] = clock{-5 * time.Second, 0} }, api.Warning, "clocks", "5s behind that of n1"},
		"very late": {func(in *findings) { in.clocks["n2"] = clock{2 * time.Minute, 0} }, api.Failure, "clocks", "2m0s ahead of that of n1"},
		"no answer": {func(in *findings) { delete(in.facts, "n2"); in.missing["n2"] = os.ErrDeadlineExceeded }, api.Failure, "nodes", "node n2 does not answer"},
		"one network": {func(in *findings) {
			nodes := twoNets()
			nodes[1].Interfaces[0].Carrier = false
			in.view = network.Group(nodes, nil)
		}, api.Warning, "networks:single-point-of-failure", "Cluster is the only network between n1 and n2"},
		"no network": {func(in *findings) {
			nodes := twoNets()
			nodes[1].Interfaces[0].Carrier, nodes[1].Interfaces[1].Up = false, false
			in.view = network.Group(nodes, nil)
		}, api.Failure, "networks:single-point-of-failure", "no network in common"},
		"firewall": {func(in *findings) { alter(in, func(f *facts) { f.Silent = []silentPath{{"n1", "Cluster", "IPv6"}} }) }, api.Failure,
			"networks:heartbeats", "n2 gets no heartbeats of n1 over Cluster"},
		"fallback": {func(in *findings) { alter(in, func(f *facts) { f.Method, f.Fallback = "socket", "no BTF" }) }, api.Warning, "networks:heartbeats", "no BTF"},
		"mtu": {func(in *findings) {
			alter(in, func(f *facts) { f.Probes = []probeResult{{Peer: "n1", Network: "Cluster", Size: 9000}} })
		}, api.Failure, "networks:mtu", "9000 bytes"},
		"duplicate": {func(in *findings) {
			nodes := twoNets()
			nodes[1].Interfaces[1].Addresses = nodes[0].Interfaces[1].Addresses
			in.view = network.Group(nodes, nil)
		}, api.Failure, "networks:duplicate-addresses", "10.0.2.1"},
		"clients": {func(in *findings) { alter(in, func(f *facts) { f.Sessions = []string{"10.0.2.2"} }) }, api.Warning,
			"networks:open-to-clients", "network Cluster has role cluster"},
		"not dedicated": {func(in *findings) {
			for i := range in.view.Networks {
				in.view.Networks[i].Role = network.RoleClusterAndClient
			}
		}, api.Warning, "networks:dedicated", "no network is for the cluster alone"},
		"no IPv6":   {func(in *findings) { alter(in, func(f *facts) { f.IPv6 = false }) }, api.Failure, "networks:ipv6", "IPv6 is off on n2"},
		"no path":   {func(in *findings) { volume(in, volumeFacts{State: api.StateAbsent, Reason: "no device"}) }, api.Failure, "disk-paths", "no device"},
		"other LUN": {func(in *findings) { volume(in, volumeFacts{State: api.Direct, WWID: "x", Method: "reservations"}) }, api.Failure, "disk-paths", "w on n1, x on n2"},
		"lease": {func(in *findings) {
			in.facts["n1"].Volumes["id"] = volumeFacts{State: api.Direct, WWID: "w", Method: "lease"}
			volume(in, in.facts["n1"].Volumes["id"])
		}, api.Warning, "reservations", "fenced by lease"},
		"two means": {func(in *findings) { volume(in, volumeFacts{State: api.Direct, WWID: "w", Method: "lease"}) }, api.Failure, "reservations", "lease, reservations"},
	} {
		checks := found(tt.change)
		if !slices.ContainsFunc(checks, func(c api.Check) bool {
			return c.Outcome == tt.want && c.Name == tt.check && strings.Contains(c.Found, tt.says)
		}) {
			t.Errorf("%s: no %s of %s with %q in %+v", name, tt.want, tt.check, tt.says, checks)
		}
	}
}

// TestProbe sends over loop-back, whose MTU is 65536: what is larger than it is told leaves in no piece.
func TestProbe(t *testing.T) {
	conn := probeServer(t)
	to := netip.MustParseAddrPort(conn)
	large, err := probe(t.Context(), netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), 0), to, 9000)
	if err != nil || !large {
		t.Fatalf("large %t, %v", large, err)
	}
	_, err = probe(t.Context(), netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), 0), netip.AddrPortFrom(to.Addr(), to.Port()^1), 1500)
	if err == nil || !strings.Contains(err.Error(), "no answer") {
		t.Fatalf("where nobody answers: %v", err)
	}
}

func probeServer(t *testing.T) string {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	must(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		answerProbes(conn)
	}()
	t.Cleanup(func() {
		_ = conn.Close()
		<-done
	})
	return conn.LocalAddr().String()
}
