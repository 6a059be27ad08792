package daemon

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"lunar/appliance/api"
	"lunar/appliance/cluster"
	"lunar/appliance/server"
	"lunar/netft"
	"lunar/netft/detector"
	"lunar/netft/network"
)

// Networks implements server.Networks. A node in no cluster tells its own.
func (n *Node) Networks(ctx context.Context) (api.Networks, error) {
	out := api.Networks{Node: n.name, Networks: []api.Network{}}
	view, number, err := n.networkView(ctx)
	if err != nil {
		return out, refusal(err)
	}
	var paths []netft.PathStats
	if running := n.fabric.running(); running != nil {
		out.Method, out.Fallback = method(running)
		paths = running.Paths()
	}
	for _, w := range view.Warnings {
		out.Warnings = append(out.Warnings, w.Message)
	}
	for i := range view.Networks {
		out.Networks = append(out.Networks, describeNetwork(&view.Networks[i], number, paths))
	}
	return out, nil
}

// networkView is what the database says now, or what this node knows without it.
func (n *Node) networkView(ctx context.Context) (network.View, uint16, error) {
	if n.db.InCluster() == "" {
		own, err := n.fabric.interfaces(ctx)
		return network.Group([]network.Node{{Number: 1, Name: n.name, Interfaces: own}}, nil), 1, err
	}
	k, err := n.askNetworks(ctx)
	if err != nil {
		if k = n.networks.Load(); k == nil {
			return network.View{}, 0, err
		}
	}
	return k.view, n.db.Number(), nil
}

func (n *Node) askNetworks(ctx context.Context) (*known, error) {
	ctx, cancel := context.WithTimeout(ctx, databaseTimeout)
	defer cancel()
	members, err := n.db.Members(ctx)
	if err != nil {
		return nil, err
	}
	networks, err := n.db.Networks(ctx)
	if err != nil {
		return nil, err
	}
	return readNetworks(members, networks)
}

// method takes apart who stamps heartbeats and why it is not the kernel.
func method(f *netft.Fabric) (name, fallback string) {
	text := f.Method()
	if text == netft.MethodKernel {
		return text, ""
	}
	return netft.MethodSocket, strings.TrimLeft(strings.TrimPrefix(text, netft.MethodSocket), ":;, ")
}

func describeNetwork(w *network.Network, self uint16, paths []netft.PathStats) api.Network {
	out := api.Network{
		Name: w.Name, Metric: w.Metric, AutoMetric: !w.Manual, Role: w.Role.String(), Gateway: w.Gateway, Speed: w.Speed, MTU: w.MTU,
		Subnets: texts(w.Subnets), State: networkState(w, self, paths), Members: []api.NetworkMember{},
	}
	for _, m := range w.Members {
		i := &m.Interface
		out.Members = append(out.Members, api.NetworkMember{
			Node: m.Node, Interface: i.Name, Addresses: texts(i.Addresses), Up: i.Running(), MTU: i.MTU, Speed: i.Speed,
		})
	}
	return out
}

func texts[T fmt.Stringer](values []T) []string {
	out := make([]string, len(values))
	for i, v := range values {
		out[i] = v.String()
	}
	return out
}

// networkState is that of a network as this node sees it: by its heartbeats, or where none are sent by its carrier.
func networkState(w *network.Network, self uint16, paths []netft.PathStats) api.NetworkState {
	own, ok := w.Member(self)
	if !ok {
		return api.NetworkUnavailable
	}
	up, peers := map[string]bool{}, map[string]bool{}
	for i := range paths {
		if p := &paths[i]; p.Network == w.Name {
			peers[p.Peer] = true
			if p.State == detector.Up {
				up[p.Peer] = true
			}
		}
	}
	switch {
	case !own.Interface.Running(), len(peers) > 0 && len(up) == 0:
		return api.NetworkDown
	case len(up) < len(peers):
		return api.NetworkPartitioned
	}
	return api.NetworkUp
}

// networkTries bounds the tries to change settings that others change at the same time.
const networkTries = 5

// SetNetwork implements server.Networks.
func (n *Node) SetNetwork(ctx context.Context, name string, r api.SetNetwork) (api.Network, error) {
	if n.db.InCluster() == "" {
		return api.Network{}, refusal(fmt.Errorf("network set: %w", cluster.ErrAlone))
	}
	for range networkTries {
		out, err := n.trySetNetwork(ctx, name, r)
		if !errors.Is(err, cluster.ErrConflict) {
			return out, refusal(err)
		}
	}
	return api.Network{}, refusal(cluster.ErrConflict)
}

func (n *Node) trySetNetwork(ctx context.Context, name string, r api.SetNetwork) (api.Network, error) {
	k, err := n.askNetworks(ctx)
	if err != nil {
		return api.Network{}, err
	}
	settings, err := changeSetting(k.view, name, r)
	if err != nil {
		return api.Network{}, err
	}
	after := network.Group(k.nodes, settings)
	w, ok := after.Find(name)
	if !ok {
		return api.Network{}, api.Errorf(api.Unavailable, "no node is on network %s now", name).WithHint("`lunarctl network list` shows the networks")
	}
	if !slices.ContainsFunc(after.Networks, func(w network.Network) bool { return w.Role.Enabled() }) {
		return api.Network{}, api.Errorf(api.Refused, "no network would be left for the cluster's traffic").WithHint("give another network a role first")
	}
	if err := n.storeSettings(ctx, k.revision, after.Settings); err != nil {
		return api.Network{}, err
	}
	n.note(ctx, cluster.Event{Kind: "network.set", Text: fmt.Sprintf("network %s: role %s, metric %d", name, w.Role, w.Metric)})
	var paths []netft.PathStats
	if running := n.fabric.running(); running != nil {
		paths = running.Paths()
	}
	return describeNetwork(&w, n.db.Number(), paths), nil
}

// changeSetting is the settings with the change, or why it makes no sense.
func changeSetting(view network.View, name string, r api.SetNetwork) ([]network.Setting, error) {
	settings := slices.Clone(view.Settings)
	i := slices.IndexFunc(settings, func(s network.Setting) bool { return s.Name == name })
	if i < 0 {
		return nil, api.Errorf(api.NotFound, "there is no network %q", name).WithHint("`lunarctl network list` shows the networks")
	}
	s := &settings[i]
	if r.Role != nil {
		role, err := network.ParseRole(*r.Role)
		if err != nil || role == network.RoleAuto {
			return nil, api.Errorf(api.Invalid, "%q is no role", *r.Role).WithHint("give %s, %s or %s", api.RoleNone, api.RoleCluster, api.RoleClusterAndClient)
		}
		s.Role = role
	}
	if r.Metric != nil {
		s.Metric, s.Manual = *r.Metric, *r.Metric != 0
	}
	if err := s.Validate(); err != nil {
		return nil, api.Errorf(api.Invalid, "%v", err)
	}
	for o := range settings {
		if o != i && s.Manual && settings[o].Manual && settings[o].Metric == s.Metric {
			return nil, api.Errorf(api.Exists, "network %s has the metric %d already", settings[o].Name, s.Metric).
				WithHint("give each network a metric of its own: the lowest carries the cluster's traffic")
		}
	}
	return settings, nil
}

// Heartbeats implements server.Networks.
func (n *Node) Heartbeats(context.Context) (api.Heartbeats, error) {
	p := n.fabric.profile()
	out := api.Heartbeats{Node: n.name, Time: time.Now().UTC(), Interval: p.Interval, Threshold: p.Threshold(), Paths: []api.HeartbeatPath{}}
	running := n.fabric.running()
	if running == nil {
		return out, nil
	}
	out.Method, out.Fallback = method(running)
	out.Paths = heartbeatPaths(running.Paths())
	return out, nil
}

func heartbeatPaths(paths []netft.PathStats) []api.HeartbeatPath {
	out := make([]api.HeartbeatPath, len(paths))
	for i := range paths {
		p := &paths[i]
		out[i] = api.HeartbeatPath{
			Peer: p.Peer, Network: p.Network, Family: p.Family.String(), State: p.State.String(), Health: p.Health.String(),
			Down: p.Down, Route: p.Route, Last: p.Last, Daemon: p.Daemon,
			Sent: p.Sent, Beats: p.Beats, Answers: p.Answers, Gaps: p.Gaps, Reordered: p.Reordered, Duplicates: p.Duplicates,
			Replayed: p.Replayed, Forged: p.Forged, Restarts: p.Restarts,
			Jitter: p.Jitter, LastRTT: p.LastRTT, MinRTT: p.MinRTT, RTT: p.RTT,
		}
		if p.Local.IsValid() {
			out[i].Local = p.Local.String()
		}
		if p.Remote.IsValid() {
			out[i].Remote = p.Remote.String()
		}
	}
	return out
}

// heartbeatStats is nil while none are sent.
func (n *Node) heartbeatStats() *server.HeartbeatStats {
	running := n.fabric.running()
	if running == nil {
		return nil
	}
	c := running.Counters()
	name, _ := method(running)
	n.mu.RLock()
	defer n.mu.RUnlock()
	return &server.HeartbeatStats{
		Kernel: name == netft.MethodKernel, Paths: heartbeatPaths(running.Paths()), LateTicks: c.LateTicks,
		Refused: map[string]uint64{
			"forged": c.Forged, "foreign": c.Foreign, "malformed": c.Malformed, "misplaced": c.Misplaced, "unknown": c.Unknown,
		},
		Verdicts: maps.Clone(n.verdicts),
	}
}
