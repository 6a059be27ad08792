package daemon

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"sync"
	"time"

	"lunar/appliance/api"
	"lunar/appliance/cluster"
	"lunar/appliance/fence"
)

// peerLimit bounds what another node is asked for a listing, and fenceLimit what it is asked to prove.
const (
	peerLimit  = time.Second
	rowLimit   = 500 * time.Millisecond // for a look at a volume, which a person waits for
	fenceLimit = 2 * time.Minute
)

// The paths of what nodes ask each other on cluster.NodePort.
const (
	pathSessions = "/node/v1/sessions"
	pathVolume   = "/node/v1/volumes/" // and its ID
	pathFence    = "/node/v1/fence"
)

// fenceOrder asks a node to fence another one from the volumes that it coordinates.
type fenceOrder struct {
	Node        string        `json:"node"`
	Number      uint16        `json:"number"`
	Incarnation uint64        `json:"incarnation"`
	Spent       time.Duration `json:"spent"` // of cluster.MaxTTL: it may act for what is left of that; nodes' own TTLs may differ
}

// victim is for a fencer with a lease of ttl.
func (o *fenceOrder) victim(ttl time.Duration) fence.Victim {
	return fence.Victim{
		Node:   fence.Node{Name: o.Node, Number: o.Number, Incarnation: uint32(o.Incarnation)},
		Silent: ttl - (cluster.MaxTTL - o.Spent),
	}
}

// fenceAnswer has the volumes of which the fencing is proven, and by ID why others' is not.
type fenceAnswer struct {
	Proofs map[string]string `json:"proofs"` // by volume ID, in words
	Failed map[string]string `json:"failed,omitempty"`
}

// peerAPI answers the other nodes. It is handed out before the node is complete, and says so.
func (n *Node) peerAPI() http.Handler {
	mux := http.NewServeMux()
	n.hookAPI(mux)
	mux.HandleFunc("GET "+pathSessions, func(w http.ResponseWriter, _ *http.Request) { n.tell(w, n.localSessions(), nil) })
	mux.HandleFunc("GET "+pathVolume+"{id}", func(w http.ResponseWriter, r *http.Request) {
		v := n.volumeByID(r.PathValue("id"))
		if v == nil {
			n.tell(w, nil, api.Errorf(api.NotFound, "node %s does not know the volume yet", n.name))
			return
		}
		n.tell(w, n.ownRow(v), nil)
	})
	mux.HandleFunc("POST "+pathFence, func(w http.ResponseWriter, r *http.Request) {
		var o fenceOrder
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, api.MaxBody)).Decode(&o); err != nil || o.Node == "" || o.Node == n.name {
			n.tell(w, nil, api.Errorf(api.Invalid, "node %s does not fence %q: %v", n.name, o.Node, err))
			return
		}
		n.log.Warn("a node is fenced by another's order", "node", o.Node, "by", cluster.Caller(r))
		n.tell(w, n.fenceHere(r.Context(), o), nil)
	})
	n.answerBackups(mux)
	n.answerRepairs(mux)
	n.answerTop(mux)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if n.membership.Load() == nil {
			n.tell(w, nil, api.Errorf(api.Unavailable, "node %s is still starting", n.name))
			return
		}
		mux.ServeHTTP(w, r)
	})
}

func (n *Node) tell(w http.ResponseWriter, value any, refused *api.Error) {
	w.Header().Set("Content-Type", "application/json")
	if refused != nil {
		w.WriteHeader(refused.Code.Status())
		value = refused
	}
	if err := json.NewEncoder(w).Encode(value); err != nil {
		n.log.Debug("answer to another node", "error", err)
	}
}

// askPeer asks one node.
func askPeer[Out any](ctx context.Context, n *Node, peer cluster.Member, method, path string, in any) (out Out, err error) {
	security, err := n.db.ClientTLS(peer.Name)
	if err != nil {
		return out, err
	}
	transport := &http.Transport{TLSClientConfig: security, DisableKeepAlives: true}
	defer transport.CloseIdleConnections()
	body, err := json.Marshal(in)
	if err != nil {
		return out, err
	}
	address := "https://" + net.JoinHostPort(peer.Address, strconv.Itoa(cluster.NodePort)) + path
	r, err := http.NewRequestWithContext(ctx, method, address, bytes.NewReader(body))
	if err != nil {
		return out, err
	}
	resp, err := (&http.Client{Transport: transport}).Do(r)
	if err != nil {
		return out, fmt.Errorf("node %s: %w", peer.Name, err)
	}
	defer func() { _ = resp.Body.Close() }()
	err = readPeer(peer.Name, resp, &out)
	return out, err
}

func readPeer(name string, resp *http.Response, out any) error {
	data, err := io.ReadAll(io.LimitReader(resp.Body, 16*api.MaxBody))
	if err != nil {
		return fmt.Errorf("node %s: %w", name, err)
	}
	if resp.StatusCode == http.StatusOK {
		return json.Unmarshal(data, out)
	}
	refused := &api.Error{}
	if json.Unmarshal(data, refused) != nil || refused.Message == "" {
		return fmt.Errorf("node %s answers %s", name, resp.Status)
	}
	return refused
}

// heard is what a node answered.
type heard[Out any] struct {
	peer  cluster.Member
	value Out
	err   error
}

// peers are the other nodes that may have volumes.
func (n *Node) peers() []cluster.Member {
	if m := n.membership.Load(); m != nil && m.shared {
		return m.others()
	}
	return nil
}

// askPeers asks other nodes at the same time, each for at most limit.
func askPeers[Out any](ctx context.Context, n *Node, peers []cluster.Member, limit time.Duration, method, path string, in any) []heard[Out] {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	out := make([]heard[Out], len(peers))
	var all sync.WaitGroup
	for i, p := range peers {
		out[i].peer = p
		all.Go(func() { out[i].value, out[i].err = askPeer[Out](ctx, n, p, method, path, in) })
	}
	all.Wait()
	return out
}

// Sessions implements server.Sessions: those of all nodes.
func (n *Node) Sessions(ctx context.Context) (api.Sessions, error) {
	out := api.Sessions{Sessions: n.localSessions()}
	view := n.lastView(ctx)
	for _, h := range askPeers[[]api.Session](ctx, n, n.peers(), peerLimit, http.MethodGet, pathSessions, nil) {
		_, present := view.Nodes[h.peer.Name]
		switch {
		case h.err == nil:
			out.Sessions = append(out.Sessions, h.value...)
		case present: // else it serves nobody
			n.log.Debug("a node does not tell its sessions", "node", h.peer.Name, "error", h.err)
			out.Silent = append(out.Silent, h.peer.Name)
		}
	}
	slices.SortStableFunc(out.Sessions, func(a, b api.Session) int {
		return cmp.Or(cmp.Compare(a.Target, b.Target), cmp.Compare(a.Initiator, b.Initiator), cmp.Compare(a.Node, b.Node))
	})
	return out, nil
}

// unusedElsewhere refuses a target to which initiators are logged in on other nodes.
func (n *Node) unusedElsewhere(ctx context.Context, target string) error {
	all, err := n.Sessions(ctx)
	if err != nil {
		return err
	}
	for i := range all.Sessions {
		if s := &all.Sessions[i]; s.Target == target && s.Node != n.name {
			return api.Errorf(api.Refused, "%s is logged in to target %s from %s, on node %s", s.Initiator, target, s.Remote, s.Node).
				WithHint("log it out, or give --force: its I/O fails then")
		}
	}
	if len(all.Silent) > 0 {
		return api.Errorf(api.Refused, "node %s does not say whether initiators are logged in to target %s there", all.Silent[0], target).
			WithHint("see `lunarctl cluster status`, or give --force: their I/O fails then")
	}
	return nil
}

// ownRow is a volume as this node has it.
func (n *Node) ownRow(v *volumeState) api.VolumeNode {
	row := api.VolumeNode{Node: n.name, State: api.StateAbsent}
	p, release := v.borrow()
	if p == nil {
		row.Reason = v.why()
		return row
	}
	defer release()
	row.State, row.Reason = p.state()
	row.Counters = p.counters()
	return row
}

// presentPeers and absentPeers part the other nodes by whether they have a session, as far as this node has heard.
func (n *Node) presentPeers() []cluster.Member {
	return slices.DeleteFunc(n.peers(), func(m cluster.Member) bool { return !n.hasSession(m.Name) })
}

func (n *Node) absentPeers() []cluster.Member {
	return slices.DeleteFunc(n.peers(), func(m cluster.Member) bool { return n.hasSession(m.Name) })
}

func (n *Node) hasSession(name string) bool {
	m := n.membership.Load()
	if m == nil {
		return false
	}
	_, ok := m.view.Load().Nodes[name]
	return ok
}

// rows is a volume as each node has it, by name.
func (n *Node) rows(ctx context.Context, v *volumeState) []api.VolumeNode {
	out := []api.VolumeNode{n.ownRow(v)}
	for _, absent := range n.absentPeers() {
		out = append(out, api.VolumeNode{Node: absent.Name, State: api.StateAbsent, Reason: "the node is not present in the cluster"})
	}
	path := pathVolume + url.PathEscape(v.id)
	for _, h := range askPeers[api.VolumeNode](ctx, n, n.presentPeers(), rowLimit, http.MethodGet, path, nil) {
		var refused *api.Error
		switch {
		case errors.As(h.err, &refused):
			h.value = api.VolumeNode{State: api.StateAbsent, Reason: refused.Message}
		case h.err != nil:
			h.value = api.VolumeNode{State: api.StateAbsent, Reason: "the node does not answer"}
		}
		h.value.Node = h.peer.Name
		out = append(out, h.value)
	}
	slices.SortFunc(out, func(a, b api.VolumeNode) int { return cmp.Compare(a.Node, b.Node) })
	return out
}

// fenceHere fences a node from the volumes that this node coordinates.
func (n *Node) fenceHere(ctx context.Context, o fenceOrder) fenceAnswer {
	out := fenceAnswer{Proofs: map[string]string{}, Failed: map[string]string{}}
	for _, v := range n.sortedVolumes() {
		s := v.seat.Load()
		if s == nil || s.coordinator(0) == nil {
			continue
		}
		proof, err := s.fenceOut(ctx, o)
		if err != nil {
			out.Failed[v.id] = err.Error()
			continue
		}
		out.Proofs[v.id] = fmt.Sprintf("%s, %s", proof.Method, proof.Detail)
	}
	return out
}
