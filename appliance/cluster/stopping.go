package cluster

import (
	"context"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// The times of AwaitOthers.
const (
	stoppingPoll  = 100 * time.Millisecond
	stoppingGrace = 2 * time.Second // for others that are about to be told to stop too
)

// SetStopping publishes that this node hands over what it has, and ends. It returns before others know.
func (s *Session) SetStopping() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopping {
		return
	}
	s.stopping, s.dirty = true, true
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// AwaitOthers is for a node that stops, after its session's Close and before the DB's: with the vote of this node the
// database may end that others need to stop in order. It returns when a majority goes on without it, when no
// other node is stopping, when the database has ended already, or with ctx.
func (db *DB) AwaitOthers(ctx context.Context) {
	began := time.Now()
	for ctx.Err() == nil {
		stopping, needed := db.neededBy(ctx)
		if !needed || !stopping && time.Since(began) > stoppingGrace {
			return
		}
		sleep(ctx, stoppingPoll)
	}
}

// neededBy tells whether others are present that have no database without this node, and whether any of them stops.
func (db *DB) neededBy(ctx context.Context) (stopping, needed bool) {
	s := db.self.Load()
	m, _ := db.running()
	if s == nil || m == nil || !m.votes() {
		return false, false
	}
	ctx, cancel := context.WithTimeout(ctx, stewardCall)
	defer cancel()
	list, err := db.client.MemberList(ctx)
	if err != nil {
		return false, false
	}
	sessions, err := db.client.Get(ctx, sessionKeys, clientv3.WithPrefix())
	if err != nil {
		return false, false
	}
	present := map[string]bool{}
	for _, kv := range sessions.Kvs {
		if r, err := decode[Presence](kv); err == nil && r.value.Node != db.node {
			present[r.value.Address] = true
			stopping = stopping || r.value.Stopping
		}
	}
	return stopping, len(present) > 0 && !outvote(list.Members, present)
}

// outvote tells whether the voters at those addresses are a majority.
func outvote(list []*etcdserverpb.Member, present map[string]bool) bool {
	voters, left := 0, 0
	for _, e := range list {
		voters += asInt(!e.IsLearner)
	}
	for address := range present {
		if e := byAddress(list, address); e != nil && !e.IsLearner {
			left++
		}
	}
	return left >= majority(voters)
}
