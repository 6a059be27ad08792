package daemon

import (
	"context"
	"net"
	"net/http"
	"slices"
	"time"

	"lunar/appliance/api"
	"lunar/appliance/cluster"
	"lunar/netft/detector"
	"lunar/netft/network"
)

// factsLimit bounds what a node is asked for `cluster validate`, its probes of the networks included.
const factsLimit = 15 * time.Second

// pathFacts asks a node what it knows of itself, and to probe its ways to the others.
const pathFacts = "/node/v1/facts"

// facts are what a node tells of itself.
type facts struct {
	Node     string                 `json:"node"`
	Version  string                 `json:"version"`
	IPv6     bool                   `json:"ipv6"`
	Method   string                 `json:"method,omitempty"` // of its heartbeats
	Fallback string                 `json:"fallback,omitempty"`
	Silent   []silentPath           `json:"silent,omitempty"`
	Sessions []string               `json:"sessions,omitempty"` // its own addresses over which initiators are logged in
	Volumes  map[string]volumeFacts `json:"volumes"`            // by ID
	Probes   []probeResult          `json:"probes,omitempty"`
}

// silentPath is one by which no heartbeats pass although both interfaces could.
type silentPath struct {
	Peer    string `json:"peer"`
	Network string `json:"network"`
	Family  string `json:"family"`
}

// volumeFacts are how a node has a volume.
type volumeFacts struct {
	State  api.State `json:"state"`
	Reason string    `json:"reason,omitempty"`
	WWID   string    `json:"wwid,omitempty"`   // as its device tells
	Method string    `json:"method,omitempty"` // of fencing; empty: no other node has the volume
}

// ValidateCluster implements server.Networks.
func (n *Node) ValidateCluster(ctx context.Context) (api.Validation, error) {
	in := findings{self: n.name, volumes: map[string]string{}, facts: map[string]facts{}, missing: map[string]error{}, clocks: map[string]clock{}}
	if err := n.gather(ctx, &in); err != nil {
		return api.Validation{}, err
	}
	return api.Validation{Node: n.name, Time: time.Now().UTC(), Checks: in.checks()}, nil
}

func (n *Node) gather(ctx context.Context, in *findings) error {
	in.members = []cluster.Member{n.alone().Member}
	if n.db.InCluster() != "" {
		members, err := n.db.Members(ctx)
		if err != nil {
			return refusal(err)
		}
		in.members, in.family = members, n.db.Family()
	}
	view, _, err := n.networkView(ctx)
	if err != nil {
		return refusal(err)
	}
	in.view = view
	for _, v := range n.sortedVolumes() {
		in.volumes[v.id] = n.record(v).Name
	}
	n.gatherClocks(ctx, in)
	in.facts[n.name] = n.ownFacts(ctx)
	for _, h := range askPeers[facts](ctx, n, in.others(), factsLimit, http.MethodGet, pathFacts, nil) {
		if h.err != nil {
			in.missing[h.peer.Name] = h.err
			continue
		}
		in.facts[h.peer.Name] = h.value
	}
	return nil
}

// others are all other members, witnesses too.
func (in *findings) others() []cluster.Member {
	return slices.DeleteFunc(slices.Clone(in.members), func(m cluster.Member) bool { return m.Name == in.self })
}

// ownFacts is what this node tells of itself.
func (n *Node) ownFacts(ctx context.Context) facts {
	out := facts{Node: n.name, Version: api.BuildVersion().Version, IPv6: n.fabric.IPv6(), Volumes: map[string]volumeFacts{}}
	if running := n.fabric.running(); running != nil {
		out.Method, out.Fallback = method(running)
		for _, p := range running.Paths() {
			if (p.State == detector.Lost || p.State == detector.Suspect) && p.Down == "" {
				out.Silent = append(out.Silent, silentPath{p.Peer, p.Network, p.Family.String()})
			}
		}
	}
	for _, s := range n.localSessions() {
		if host, _, err := net.SplitHostPort(s.Local); err == nil && !slices.Contains(out.Sessions, host) {
			out.Sessions = append(out.Sessions, host)
		}
	}
	for _, v := range n.sortedVolumes() {
		out.Volumes[v.id] = n.volumeFacts(v)
	}
	out.Probes = n.probeNetworks(ctx)
	return out
}

func (n *Node) volumeFacts(v *volumeState) volumeFacts {
	p, release := v.borrow()
	if p == nil {
		return volumeFacts{State: api.StateAbsent, Reason: v.why()}
	}
	defer release()
	out := volumeFacts{WWID: p.dev.WWID, Method: p.fencer.method()}
	out.State, out.Reason = p.state()
	return out
}

// method is how a node that is out is kept from writing; "" where no other node has the volume, or none holds yet.
func (f *fencing) method() string {
	if f == nil {
		return ""
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fencer == nil {
		return ""
	}
	return string(f.fencer.Method())
}

// clock is how far a node's clock is from this one's.
type clock struct {
	ahead   time.Duration
	unknown time.Duration // either way
}

// pathTime asks a node for its time.
const pathTime = "/node/v1/time"

// clockRounds are how many times each node is asked; the quickest answer counts.
const clockRounds = 3

func (n *Node) gatherClocks(ctx context.Context, in *findings) {
	for _, m := range in.others() {
		for range clockRounds {
			limited, cancel := context.WithTimeout(ctx, peerLimit)
			began := time.Now()
			told, err := askPeer[time.Time](limited, n, m, http.MethodGet, pathTime, nil)
			took := time.Since(began)
			cancel()
			if err != nil {
				break // said by the facts
			}
			c := clock{told.Sub(began.Add(took / 2).Round(0)), took / 2}
			if was, ok := in.clocks[m.Name]; !ok || c.unknown < was.unknown {
				in.clocks[m.Name] = c
			}
		}
	}
}

// nodeAPI answers the other nodes. It is handed out before the node is complete.
func (n *Node) nodeAPI() http.Handler {
	own, rest := http.NewServeMux(), n.peerAPI()
	n.validateAPI(own)
	own.Handle("/", rest)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if n.membership.Load() == nil {
			rest.ServeHTTP(w, r) // it says so
			return
		}
		own.ServeHTTP(w, r)
	})
}

func (n *Node) validateAPI(mux *http.ServeMux) {
	mux.HandleFunc("GET "+pathFacts, func(w http.ResponseWriter, r *http.Request) { n.tell(w, n.ownFacts(r.Context()), nil) })
	mux.HandleFunc("GET "+pathTime, func(w http.ResponseWriter, _ *http.Request) { n.tell(w, time.Now(), nil) })
	mux.HandleFunc("POST "+pathEcho, func(w http.ResponseWriter, r *http.Request) {
		port, err := n.echo(r.Context())
		if err != nil {
			n.tell(w, nil, api.Errorf(api.Unavailable, "node %s cannot answer probes: %v", n.name, err))
			return
		}
		n.tell(w, port, nil)
	})
}

// sharedNetworks are those that carry the cluster's traffic and on which both nodes are, with interfaces that run.
func sharedNetworks(networks []network.Network, a, b uint16) []network.Network {
	runs := func(w network.Network, number uint16) bool {
		m, ok := w.Member(number)
		return ok && m.Interface.Running()
	}
	return slices.DeleteFunc(slices.Clone(networks), func(w network.Network) bool {
		return !w.Role.Enabled() || !runs(w, a) || !runs(w, b)
	})
}
