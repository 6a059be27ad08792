package cluster

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// ending says that a session was ended before its lease ran out, for what is left of its lease. It stays behind.
type ending struct {
	Incarnation uint64           `json:"incarnation"`
	Lease       clientv3.LeaseID `json:"lease"`
	TTL         time.Duration    `json:"ttl"`
	Reason      string           `json:"reason"`
	By          string           `json:"by"`
}

// liveSession is a session as the database has it.
type liveSession struct {
	record[Presence]
	lease   clientv3.LeaseID
	created int64
}

func (db *DB) session(ctx context.Context, node string) (liveSession, error) {
	resp, err := db.client.Get(ctx, sessionKeys+node)
	if err != nil {
		return liveSession{}, unavailable(err)
	}
	if len(resp.Kvs) == 0 {
		return liveSession{}, ErrNotFound
	}
	r, err := decode[Presence](resp.Kvs[0])
	return liveSession{r, clientv3.LeaseID(resp.Kvs[0].Lease), resp.Kvs[0].CreateRevision}, err
}

// end takes a session out: from the first transaction on it can win nothing and is not renewed, and when its lease
// is revoked every seat it holds is vacant. guards are this node's own standing.
func (db *DB) end(ctx context.Context, s liveSession, reason string, guards ...clientv3.Cmp) error {
	mark := ending{Incarnation: s.value.Incarnation, Lease: s.lease, TTL: s.value.TTL, Reason: reason, By: db.node}
	op, err := put(endingKeys+s.value.Node, &mark)
	if err != nil {
		return err
	}
	ok, err := db.commit(ctx, append(guards, createdAt(s.key, s.created)), op, clientv3.OpDelete(s.key))
	if err != nil {
		return err
	}
	if !ok {
		return errAgain
	}
	return db.revokeOnce(ctx, mark.Lease)
}

// Suspect ends one incarnation of another node at once, instead of waiting for its lease: all seats
// that it held become vacant, and who wins one finds it as Previous and has to fence it. The caller
// has a reason, such as connections that were reset: the node loses its session even if it is well.
//
// left tells a fencer without reservations how long from now the node may still act by its own
// deadline; negative: it had to stop so long ago. It is less the longer this node's Run has seen no renewal of the
// victim (see renewal for why that is safe), and never more than MaxTTL. Repeating the call does no harm.
// ErrSessionLost: this node itself has no session.
func (c *Coordinators) Suspect(ctx context.Context, node string, incarnation uint64, reason string) (left time.Duration, err error) {
	err = c.db.try(ctx, func(ctx context.Context) error {
		if err := c.suspect(ctx, node, incarnation, reason); err != nil {
			return err
		}
		left, err = c.left(ctx, node, incarnation)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("cluster: suspect node %s: %w", node, err)
	}
	return left, nil
}

func (c *Coordinators) suspect(ctx context.Context, node string, incarnation uint64, reason string, also ...clientv3.Cmp) error {
	own := c.session.current()
	if own == nil {
		return ErrSessionLost
	}
	s, err := c.db.session(ctx, node)
	if err == nil && s.value.Incarnation == incarnation {
		err := c.db.end(ctx, s, reason, append(also, createdAt(sessionKeys+c.db.node, own.revision))...)
		if errors.Is(err, errAgain) {
			return c.stillHere(ctx, own)
		}
		return err
	}
	if err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	return c.db.endLease(ctx, node, incarnation)
}

// left is for an incarnation whose session has ended: the record that is read now is the last one that it wrote,
// or of a later incarnation.
func (c *Coordinators) left(ctx context.Context, node string, incarnation uint64) (time.Duration, error) {
	last, err := c.db.lastRenewal(ctx, node)
	if err != nil {
		return 0, err
	}
	now := Boottime()
	if last.revision == 0 {
		return MaxTTL, nil
	}
	c.seen.saw(node, last.value, last.revision, now)
	return c.seen.left(node, incarnation, last.revision, now), nil
}

// stillHere turns a refused guard into the reason for it.
func (c *Coordinators) stillHere(ctx context.Context, own *life) error {
	s, err := c.db.session(ctx, c.db.node)
	switch {
	case err != nil && !errors.Is(err, ErrNotFound):
		return err
	case err != nil || s.created != own.revision:
		return ErrSessionLost
	}
	return errAgain
}

// endLease revokes the lease of a session that somebody ended before, if its incarnation was the last one.
func (db *DB) endLease(ctx context.Context, node string, incarnation uint64) error {
	mark, err := get[ending](ctx, db, endingKeys+node)
	if errors.Is(err, ErrNotFound) || err == nil && mark.value.Incarnation != incarnation {
		return nil
	}
	if err != nil {
		return err
	}
	return db.revokeOnce(ctx, mark.value.Lease)
}

func (db *DB) revoke(ctx context.Context, lease clientv3.LeaseID) error {
	return db.try(ctx, func(ctx context.Context) error { return db.revokeOnce(ctx, lease) })
}

func (db *DB) revokeOnce(ctx context.Context, lease clientv3.LeaseID) error {
	if _, err := db.client.Revoke(ctx, lease); err != nil && !leaseGone(err) {
		return unavailable(err)
	}
	return nil
}

func leaseGone(err error) bool { return errors.Is(err, rpctypes.ErrLeaseNotFound) }
