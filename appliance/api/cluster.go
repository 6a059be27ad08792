package api

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// Cluster is the cluster as the node that was asked sees it.
type Cluster struct {
	ID      string   `json:"id,omitempty"` // empty: that node is in no cluster
	Node    string   `json:"node"`         // who answers
	Address string   `json:"address,omitempty"`
	Leader  string   `json:"leader,omitempty"` // of the database
	Voters  int      `json:"voters"`
	Living  int      `json:"living"`           // voters that answer
	Full    bool     `json:"full,omitempty"`   // the database refuses to grow
	Reason  string   `json:"reason,omitempty"` // why less than all is known
	Nodes   []Node   `json:"nodes"`            // by name
	Advice  []string `json:"advice,omitempty"` // what to do, in sentences
}

// Join takes a node into a cluster.
type Join struct {
	Address string `json:"address"` // of a member: host or host:port
	Token   string `json:"token"`
}

// Leave takes a node out of its cluster. Force cuts initiators off, and also leaves others that do not answer.
type Leave struct {
	Force bool `json:"force,omitempty"`
}

// NewToken asks for a token that lets one node in, once.
type NewToken struct {
	Seconds int64 `json:"seconds,omitempty"` // its life; 0: the default
}

// Token is a secret until it is used.
type Token struct {
	Token   string    `json:"token"`
	Expires time.Time `json:"expires"`
}

// Saved describes a saved cluster database.
type Saved struct {
	Cluster  string    `json:"cluster,omitempty"` // empty: of a node in no cluster
	Node     string    `json:"node"`              // that wrote it
	Time     time.Time `json:"time"`
	Revision int64     `json:"revision"`
	Bytes    int64     `json:"bytes"`
}

// SavedHeader carries a Saved as JSON beside the file itself.
const SavedHeader = "Lunar-Saved"

// Cluster shows the cluster.
func (c *Client) Cluster(ctx context.Context) (Cluster, error) {
	return call[Cluster](ctx, c, http.MethodGet, "/v1/cluster", nil)
}

// InitCluster makes a cluster of this node.
func (c *Client) InitCluster(ctx context.Context) (Cluster, error) {
	return call[Cluster](ctx, c, http.MethodPost, "/v1/cluster/init", nil)
}

// JoinCluster takes this node into a cluster.
func (c *Client) JoinCluster(ctx context.Context, r Join) (Cluster, error) {
	return call[Cluster](ctx, c, http.MethodPost, "/v1/cluster/join", r)
}

// LeaveCluster takes this node out of its cluster.
func (c *Client) LeaveCluster(ctx context.Context, r Leave) error {
	return c.do(ctx, http.MethodPost, "/v1/cluster/leave", r, nil)
}

// NewToken makes a token that lets one node in.
func (c *Client) NewToken(ctx context.Context, r NewToken) (Token, error) {
	return call[Token](ctx, c, http.MethodPost, "/v1/cluster/token", r)
}

// SaveCluster writes the cluster's database, secrets included, to w.
func (c *Client) SaveCluster(ctx context.Context, w io.Writer) (Saved, error) {
	var s Saved
	err := c.receive(ctx, http.MethodGet, "/v1/cluster/save", nil, func(resp *http.Response) error {
		if err := json.Unmarshal([]byte(resp.Header.Get(SavedHeader)), &s); err != nil {
			return Errorf(Failed, "the node's answer cannot be read: %v", err)
		}
		n, err := io.Copy(w, resp.Body)
		if err == nil && n != s.Bytes {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return Errorf(Failed, "the database was not received whole, %d of %d bytes: %v", n, s.Bytes, err).WithHint("try again")
		}
		return nil
	})
	return s, err
}

// NodeState is how a node is, in one word.
type NodeState string

// The states of a node.
const (
	NodeUp       NodeState = "Up"
	NodeDraining NodeState = "Draining" // by order; it still coordinates volumes
	NodeDrained  NodeState = "Drained"  // by order; it coordinates nothing
	NodeLeaving  NodeState = "Leaving"  // it hands its vote over to leave
	NodeSilent   NodeState = "Silent"   // present in the cluster, but the node that was asked does not reach it
	NodeDown     NodeState = "Down"     // not present in the cluster
)

// Node is a member of the cluster.
type Node struct {
	Name        string    `json:"name"`
	Number      uint16    `json:"number,omitempty"` // for reservation keys
	State       NodeState `json:"state"`
	Role        string    `json:"role"` // node or witness
	Vote        string    `json:"vote"` // voter, learner or client of the database
	Leader      bool      `json:"leader,omitempty"`
	Address     string    `json:"address,omitempty"`
	Portals     []string  `json:"portals,omitempty"`
	Answers     bool      `json:"answers"`               // to the node that was asked
	Present     bool      `json:"present"`               // it has a session with the cluster
	Incarnation uint64    `json:"incarnation,omitempty"` // of that session
	Draining    bool      `json:"draining,omitempty"`
	Coordinates int       `json:"coordinates"` // volumes
	Joined      time.Time `json:"joined,omitzero"`
}

// NodePath is how a node reaches a volume.
type NodePath struct {
	Volume      string `json:"volume"`
	Path        bool   `json:"path"` // the node reaches the LUN
	Coordinates bool   `json:"coordinates"`
}

// NodeDetail is what `node show` prints.
type NodeDetail struct {
	Node
	Volumes []NodePath `json:"volumes"`
}

// Drained is what a drain has reached.
type Drained struct {
	Node  string   `json:"node"`
	Moved []string `json:"moved"`          // volumes that others coordinate now
	Stay  []string `json:"stay,omitempty"` // volumes that no other node can take
}

// Evicted is what an eviction has done.
type Evicted struct {
	Node   string   `json:"node"`
	Fenced []string `json:"fenced"`          // volumes, each with the proof
	Notes  []string `json:"notes,omitempty"` // what was not proven, in sentences
}

// Nodes lists the members of the cluster, ordered by name; a node in no cluster is the only one.
func (c *Client) Nodes(ctx context.Context) ([]Node, error) {
	return call[[]Node](ctx, c, http.MethodGet, "/v1/nodes", nil)
}

// Node shows one node.
func (c *Client) Node(ctx context.Context, name string) (NodeDetail, error) {
	return call[NodeDetail](ctx, c, http.MethodGet, nodePath(name), nil)
}

// DrainNode moves a node's volumes to others and keeps it from coordinating.
func (c *Client) DrainNode(ctx context.Context, name string) (Drained, error) {
	return call[Drained](ctx, c, http.MethodPost, nodePath(name)+"/drain", nil)
}

// ResumeNode lets a node coordinate again.
func (c *Client) ResumeNode(ctx context.Context, name string) error {
	return c.do(ctx, http.MethodPost, nodePath(name)+"/resume", nil, nil)
}

// EvictNode fences a node and takes it out of the cluster; force is needed while it lives, or while fencing is not proven.
func (c *Client) EvictNode(ctx context.Context, name string, force bool) (Evicted, error) {
	return call[Evicted](ctx, c, http.MethodDelete, nodePath(name)+"?force="+strconv.FormatBool(force), nil)
}

func nodePath(name string) string { return "/v1/nodes/" + url.PathEscape(name) }
