package cluster

import (
	"context"
	"errors"
	"fmt"

	clientv3 "go.etcd.io/etcd/client/v3"
)

const servingKeys = root + "serving/" // NAA/node → revision of the record that governs there, under the node's lease

// WatchExports calls changed now, and after every change of volumes and targets, until ctx ends or the
// database cannot tell any more. Changes that come close together may be told once; changed does not block.
func (db *DB) WatchExports(ctx context.Context, changed func()) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	failed := make(chan error, 2)
	for _, prefix := range []string{volumeKeys, targetKeys} {
		go func() {
			failed <- db.watchPrefix(ctx, prefix, func() error { changed(); return nil })
		}()
	}
	err := <-failed
	cancel()
	return errors.Join(err, <-failed)
}

// LastIncarnation is the number of a node's latest session, also when it is over; 0 if it had none.
func (db *DB) LastIncarnation(ctx context.Context, node string) (uint64, error) {
	r, err := get[uint64](ctx, db, incarnationKeys+node)
	if errors.Is(err, ErrNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("cluster: last session of node %q: %w", node, err)
	}
	return r.value, nil
}

// serving is the key under which a node says which record of a unit's reservations governs its commands.
func (db *DB) serving(naa string) string { return servingKeys + naa + "/" + db.node }

// AckReservations says that this node serves a logical unit, by the record of its reservations with that
// revision, 0 for none. It lasts as long as the session.
func (s *Session) AckReservations(ctx context.Context, naa string, revision int64) error {
	l := s.current()
	if l == nil {
		return fmt.Errorf("cluster: serve %s: %w", naa, ErrSessionLost)
	}
	op, err := putWith(s.db.serving(naa), revision, clientv3.WithLease(l.lease))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if _, err := s.db.client.Do(ctx, op); err != nil {
		return fmt.Errorf("cluster: serve %s: %w", naa, unavailable(err))
	}
	return nil
}

// LeaveReservations says that this node serves the unit no more.
func (s *Session) LeaveReservations(ctx context.Context, naa string) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if _, err := s.db.client.Delete(ctx, s.db.serving(naa)); err != nil {
		return fmt.Errorf("cluster: serve %s no more: %w", naa, unavailable(err))
	}
	return nil
}

// AwaitReservations returns when every other node that serves the unit has said that the record with that
// revision, or a later one, governs it, or is present no more.
func (s *Session) AwaitReservations(ctx context.Context, naa string, revision int64) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := errors.New("all have it")
	err := s.db.watchPrefix(ctx, servingKeys+naa+"/", func() error {
		all, _, err := list[int64](ctx, s.db, servingKeys+naa+"/")
		if err != nil {
			return err
		}
		for _, r := range all {
			if r.key != s.db.serving(naa) && r.value < revision {
				return nil
			}
		}
		return done
	})
	if errors.Is(err, done) {
		return nil
	}
	return fmt.Errorf("cluster: other nodes that serve %s: %w", naa, err)
}
