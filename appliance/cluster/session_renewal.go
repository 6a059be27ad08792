package cluster

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// renewalKeys has one record per node: node → renewal. It is under no lease, since who fences a node needs it
// after the node's end.
const renewalKeys = root + "renewal/"

// renewal is the record of a session's renewals; its ModRevision numbers them.
//
// A session is renewed by writing this record, guarded by the session's key, and by nothing else: a write is
// confirmed by most voters, as no lease is. The leader alone answers keep-alives, also one that has been deposed
// and does not know it, and a new leader gives each lease a whole TTL more. So a lease bounds what a node may
// still do neither well nor safely; it only clears up after a node that nobody looks at.
//
// Why a watcher may count by its own clock (CLOCK_BOOTTIME) from when it first saw a renewal:
//
//  1. A node sends a renewal at s. It may act until s + TTL less 1 %, once that renewal is confirmed.
//  2. What is confirmed was written, so the record's ModRevision is of this renewal or of a later one.
//  3. The watcher sees revision r at t, after r was written, and that after it was sent: s(r) ≤ t.
//  4. When the session's key is gone, which its end makes certain, no renewal is written any more, as each is guarded
//     by that key. A record read after that is the last: r. So every confirmed renewal was written with r or before, and
//     sent at s ≤ t. Tries may pass each other and take effect twice: r need not be the one that was sent last.
//  5. So the node has stopped by t + TTL, if the clocks' rates differ by less than 1 %.
//
// Nothing here depends on who leads, when it was elected, or how long anybody was stopped. A watcher that has not
// seen r before takes the time of the answer for t.
//
// A database that is full takes deletions only. Then the session is renewed by deleting the record, with the same
// guard: a record that is missing names no bound, and a watcher waits for the whole TTL from the session's end.
// A record that is there was written after the last such deletion, and so point 4 holds.
type renewal struct {
	Incarnation uint64        `json:"incarnation"`
	TTL         time.Duration `json:"ttl"`
	// Previous is the last revision of the record under the node's incarnation before, and PreviousTTL that one's
	// TTL; 0 if there was none.
	Previous    int64         `json:"previous,omitempty"`
	PreviousTTL time.Duration `json:"previous_ttl,omitempty"`
}

// Renewals are tried anew while older tries are still on their way: one of them may have gone to a leader that
// has died, or to a disk that is slow.
const (
	maxRenewals  = 10
	renewalLimit = 2 * time.Second // for one try
)

// renewals are the tries to renew one life of a session. Their goroutines end with wait.
type renewals struct {
	s       *Session
	l       *life
	cancel  context.CancelFunc
	answers chan renewed
	flying  int // keep's goroutine alone
	tries   sync.WaitGroup

	mu      sync.Mutex // guards what follows
	lifting bool       // a keep-alive of the lease is under way
	lifted  int64      // send time of the last one that was answered
}

// renewed is the answer to a try.
type renewed struct {
	sent int64
	held bool // the session was still there
	err  error
}

// failed is no reason to give up: the deadline decides.
func (a renewed) failed() bool { return a.err != nil }

func (s *Session) renewals(ctx context.Context, l *life) (*renewals, context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	return &renewals{s: s, l: l, cancel: cancel, answers: make(chan renewed, maxRenewals), lifted: Boottime()}, ctx
}

func (r *renewals) wait() {
	r.cancel()
	r.tries.Wait()
}

// begin sends a renewal, and tells when to look again. An error: the session is lost.
func (r *renewals) begin(ctx context.Context) (time.Duration, error) {
	sent := Boottime()
	left := time.Duration(r.s.deadline.Load() - sent)
	if left <= 0 {
		return 0, fmt.Errorf("%w: no renewal was confirmed within %v", ErrSessionLost, r.l.ttl)
	}
	if r.flying < maxRenewals {
		r.flying++
		r.tries.Go(func() {
			held, err := r.s.db.renew(ctx, r.l)
			r.answers <- renewed{sent, held, err}
		})
	}
	return min(renewTry, left), nil
}

// heard takes an answer, and tells when to renew next. An error: the session is lost.
func (r *renewals) heard(ctx context.Context, a renewed) (time.Duration, error) {
	r.flying--
	left := time.Duration(r.s.deadline.Load() - Boottime())
	failed := a.failed()
	switch {
	case failed && r.flying > 0:
		return min(renewTry, max(left, 0)), nil // the others may still be answered
	case failed:
		return min(renewPause, max(left, 0)), nil
	case !a.held:
		return 0, fmt.Errorf("%w: it was ended by another node, or its lease ran out", ErrSessionLost)
	case left <= 0:
		return 0, fmt.Errorf("%w: a renewal was confirmed too late", ErrSessionLost)
	}
	r.s.confirm(a.sent, r.l.ttl)
	r.lift(ctx)
	return r.l.ttl / renewsPerTTL, nil
}

// lift keeps the lease alive, so that the session's key stays.
func (r *renewals) lift(ctx context.Context) {
	sent := Boottime()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.lifting || sent-r.lifted < int64(r.l.ttl/3) {
		return
	}
	r.lifting = true
	r.tries.Go(func() {
		try, cancel := context.WithTimeout(ctx, max(renewTry, r.l.ttl/renewsPerTTL))
		defer cancel()
		_, err := r.s.db.client.KeepAliveOnce(try, r.l.lease)
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.lifting = false; err == nil {
			r.lifted = sent
		}
	})
}

// renew tries once; held tells whether the session was still there.
func (db *DB) renew(ctx context.Context, l *life) (held bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, renewalLimit)
	defer cancel()
	key := renewalKeys + db.node
	op, err := put(key, l.renewal())
	if err != nil {
		return false, err
	}
	guards := []clientv3.Cmp{createdAt(sessionKeys+db.node, l.revision)}
	if held, err = db.commit(ctx, guards, op); errors.Is(err, ErrFull) {
		held, err = db.commit(ctx, guards, clientv3.OpDelete(key))
	}
	return held, err
}

func (l *life) renewal() *renewal {
	return &renewal{Incarnation: l.incarnation, TTL: l.ttl, Previous: l.before.revision, PreviousTTL: l.before.value.TTL}
}

// lastRenewal is a node's record, the zero one if there is none.
func (db *DB) lastRenewal(ctx context.Context, node string) (record[renewal], error) {
	r, err := get[renewal](ctx, db, renewalKeys+node)
	if errors.Is(err, ErrNotFound) {
		return record[renewal]{key: renewalKeys + node}, nil
	}
	return r, err
}

// sightings are when this node saw the others' renewals, by its own clock. The rule is at renewal.
type sightings struct {
	mu sync.Mutex // guards of
	of map[string]sighting
}

// sighting is of one node. Times are CLOCK_BOOTTIME in nanoseconds.
type sighting struct {
	incarnation uint64
	revision    int64 // of its last renewal
	at          int64 // when that was first seen
	ttl         time.Duration
	before      int64 // until when the incarnation before may have acted
	older       int64 // until when those before that one may have
	over        bool  // the session is known to have ended
}

func (s *sighting) until() int64 { return s.at + int64(s.ttl) }

func newSightings() *sightings { return &sightings{of: map[string]sighting{}} }

// saw takes a renewal in that was seen at now.
func (s *sightings) saw(node string, r renewal, revision, now int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	was, known := s.of[node]
	if known && revision <= was.revision {
		return
	}
	is := sighting{incarnation: r.Incarnation, revision: revision, at: now, ttl: atMost(r.TTL), before: was.before, older: was.older}
	if known && r.Incarnation == was.incarnation {
		s.of[node] = is
		return
	}
	// What the incarnation before did last was seen, if nothing came between; else it ended by now at the latest.
	is.before, is.older = now+int64(max(atMost(r.TTL), atMost(r.PreviousTTL))), now+int64(MaxTTL)
	if known && r.Previous == was.revision {
		is.before, is.older = was.until(), max(was.before, was.older)
	}
	s.of[node] = is
}

// atMost is the TTL for which to wait: a database that was full has lost that of the incarnation before.
func atMost(ttl time.Duration) time.Duration {
	if ttl <= 0 {
		return MaxTTL
	}
	return ttl
}

// take takes a record of the database in, or its end.
func (s *sightings) take(kv *mvccpb.KeyValue, deleted bool, now int64) error {
	node := string(kv.Key[len(renewalKeys):])
	if deleted {
		s.forget(node)
		return nil
	}
	r, err := decode[renewal](kv)
	if err == nil {
		s.saw(node, r.value, r.revision, now)
	}
	return err
}

// left tells how long from now one incarnation of a node may still act; negative: it had to stop so long ago.
// revision is that of the record which the end of its session left behind, as the database has it.
func (s *sightings) left(node string, incarnation uint64, revision, now int64) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	is, known := s.of[node]
	switch {
	case !known || is.revision < revision:
		return MaxTTL
	case incarnation == is.incarnation && is.revision == revision:
		return time.Duration(is.until() - now)
	case incarnation+1 == is.incarnation:
		return time.Duration(is.before - now)
	case incarnation < is.incarnation:
		return time.Duration(is.older - now)
	}
	return MaxTTL // cannot be: an incarnation's first renewal is written with its key
}

// silent names the nodes but self whose present session must have run out and is not known to have ended, and tells
// when the next one will have run out; 0: never.
func (s *sightings) silent(self string, now int64) (nodes []string, next int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for node, is := range s.of {
		switch end := is.until(); {
		case is.over || node == self:
		case end <= now:
			nodes = append(nodes, node)
		case next == 0 || end < next:
			next = end
		}
	}
	return nodes, next
}

func (s *sightings) last(node string) sighting {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.of[node]
}

// ended notes that the session of a node's last renewal is no more.
func (s *sightings) ended(node string, revision int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if is, known := s.of[node]; known && is.revision == revision {
		is.over = true
		s.of[node] = is
	}
}

func (s *sightings) forget(node string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.of, node)
}
