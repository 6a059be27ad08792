package cluster

import (
	"context"
	"fmt"
	"net/http"
	"sync"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
)

// Status is the cluster as this node sees it.
type Status struct {
	ID      string // "": in no cluster
	Node    string
	Address string
	Members []MemberStatus
	Voters  int // of the database
	Living  int // voters that answer this node
	Leader  string
	Full    bool     // the database refuses to grow
	Advice  []string // what a user should do, in sentences
}

// Part is what a member is in the database.
type Part string

// The parts of a member.
const (
	PartVoter   Part = "voter"
	PartLearner Part = "learner" // becomes a voter when it has caught up
	PartClient  Part = "client"
)

// MemberStatus is a member and what this node sees of it.
type MemberStatus struct {
	Member
	Part  Part
	Alive bool // it answers on NodePort
}

// InCluster tells the cluster's id, "" in none.
func (db *DB) InCluster() string {
	if s := db.self.Load(); s != nil {
		return s.identity().ID
	}
	return ""
}

// Number is this node's number in the cluster, from 1; 0 in none.
func (db *DB) Number() uint16 {
	if s := db.self.Load(); s != nil {
		return s.identity().Number
	}
	return 0
}

// Hash is 16 bits that stand for the cluster in reservation keys; 0 in none.
func (db *DB) Hash() uint16 {
	s := db.self.Load()
	if s == nil {
		return 0
	}
	h := clusterHash(s.identity().ID)
	return uint16(h[0])<<8 | uint16(h[1])
}

// Status asks every member. A database that does not answer gives ErrUnavailable with what is known
// without it.
func (db *DB) Status(ctx context.Context) (Status, error) {
	st := Status{Node: db.node, Full: db.low.Load()}
	s := db.self.Load()
	if s == nil {
		return st, nil
	}
	id := s.identity()
	st.ID, st.Address = id.ID, id.Address
	ctx, cancel := context.WithTimeout(ctx, stewardCall)
	defer cancel()
	members, err := db.Members(ctx)
	if err != nil {
		return st, fmt.Errorf("cluster: status: %w", err)
	}
	var list []*etcdserverpb.Member
	if !id.External {
		resp, err := db.client.MemberList(ctx)
		if err != nil {
			return st, fmt.Errorf("cluster: status: %w", unavailable(err))
		}
		list = resp.Members
	}
	st.Members = db.look(ctx, s, members, list)
	st.Leader = db.leader(list)
	st.count(id.External)
	return st, nil
}

func (db *DB) look(ctx context.Context, s *self, members []Member, list []*etcdserverpb.Member) []MemberStatus {
	out := make([]MemberStatus, len(members))
	transport := &http.Transport{TLSClientConfig: db.clientTLS(s, ""), DisableKeepAlives: true}
	pings := &http.Client{Transport: transport, Timeout: pingTimeout}
	var all sync.WaitGroup
	for i := range members {
		m := &out[i]
		m.Member, m.Part = members[i], PartClient
		if e := byAddress(list, m.Address); e != nil {
			m.Part = PartVoter
			if e.IsLearner {
				m.Part = PartLearner
			}
		}
		all.Go(func() {
			p, err := askPing(ctx, pings, m.Address)
			m.Alive = err == nil && p.Node == m.Name && (p.Voter || m.Part != PartVoter)
		})
	}
	all.Wait()
	return out
}

// leader is known where a member runs.
func (db *DB) leader(list []*etcdserverpb.Member) string {
	m, _ := db.running()
	if m == nil {
		return ""
	}
	for _, e := range list {
		if e.ID == m.etcd.Server.Lead() {
			return e.Name
		}
	}
	return ""
}

func (st *Status) count(external bool) {
	nodes, witnesses := 0, 0
	for i := range st.Members {
		m := &st.Members[i]
		st.Voters += asInt(m.Part == PartVoter)
		st.Living += asInt(m.Part == PartVoter && m.Alive)
		witnesses += asInt(m.Witness())
		nodes += asInt(!m.Witness())
	}
	switch {
	case external:
	case nodes == 2 && witnesses == 0:
		st.Advice = append(st.Advice, "Two nodes survive the loss of one only by chance: add a witness on any third machine, or a third node.")
	case st.Living < st.Voters && st.Living == majority(st.Voters):
		st.Advice = append(st.Advice, "Not one more voter may fail: bring the silent one back, or evict it.")
	}
	if st.Full {
		st.Advice = append(st.Advice, "The disk of the state directory is nearly full: free some space there.")
	}
}
