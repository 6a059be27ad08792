package cluster

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// ending says that a session was ended before its lease ran out, so that its holder may still act
// until its deadline. It stays behind.
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

// end takes a session out: from the first transaction on it can win nothing, and when its lease is
// revoked every seat it holds is vacant. guards are this node's own standing.
func (db *DB) end(ctx context.Context, s liveSession, reason string, guards ...clientv3.Cmp) (time.Duration, error) {
	mark := ending{Incarnation: s.value.Incarnation, Lease: s.lease, TTL: s.value.TTL, Reason: reason, By: db.node}
	op, err := put(endingKeys+s.value.Node, &mark)
	if err != nil {
		return 0, err
	}
	ok, err := db.commit(ctx, append(guards, createdAt(s.key, s.created)), op, clientv3.OpDelete(s.key))
	if err != nil {
		return 0, err
	}
	if !ok {
		return 0, errAgain
	}
	return mark.TTL, db.revokeOnce(ctx, mark.Lease)
}

// Suspect ends one incarnation of another node at once, instead of waiting for its lease: all seats
// that it held become vacant, and who wins one finds it as Previous and has to fence it. The caller
// has a reason, such as connections that were reset: the node loses its session even if it is well.
//
// wait tells a fencer without reservations how long from now the node may still act by its own
// deadline: 0 if its lease had run out by itself. Repeating the call does no harm. ErrSessionLost:
// this node itself has no session.
func (c *Coordinators) Suspect(ctx context.Context, node string, incarnation uint64, reason string) (wait time.Duration, err error) {
	err = c.db.try(ctx, func(ctx context.Context) error {
		wait, err = c.suspect(ctx, node, incarnation, reason)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("cluster: suspect node %s: %w", node, err)
	}
	return wait, nil
}

func (c *Coordinators) suspect(ctx context.Context, node string, incarnation uint64, reason string) (time.Duration, error) {
	own := c.session.current()
	if own == nil {
		return 0, ErrSessionLost
	}
	standing := createdAt(sessionKeys+c.db.node, own.revision)
	s, err := c.db.session(ctx, node)
	if err == nil && s.value.Incarnation == incarnation {
		wait, err := c.db.end(ctx, s, reason, standing)
		if errors.Is(err, errAgain) {
			return 0, c.stillHere(ctx, own)
		}
		return wait, err
	}
	if err != nil && !errors.Is(err, ErrNotFound) {
		return 0, err
	}
	return c.db.endedBefore(ctx, node, incarnation)
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

// endedBefore is for a session that is gone: was it ended by somebody, or did it run out?
func (db *DB) endedBefore(ctx context.Context, node string, incarnation uint64) (time.Duration, error) {
	mark, err := get[ending](ctx, db, endingKeys+node)
	switch {
	case errors.Is(err, ErrNotFound) || err == nil && mark.value.Incarnation < incarnation:
		return 0, nil
	case err != nil:
		return 0, err
	case mark.value.Incarnation > incarnation:
		return mark.value.TTL, nil
	}
	return mark.value.TTL, db.revokeOnce(ctx, mark.value.Lease)
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
