package cluster

import (
	"context"
	"errors"
	"fmt"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// LoadReservations returns the record of a logical unit, named by its NAA designator, nil if there
// is none.
func (db *DB) LoadReservations(ctx context.Context, naa string) ([]byte, error) {
	r, err := get[[]byte](ctx, db, reserveKeys+naa)
	if errors.Is(err, ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cluster: reservations of %s: %w", naa, err)
	}
	return r.value, nil
}

// SaveReservations stores the record of a logical unit; it is durable when this returns.
func (db *DB) SaveReservations(ctx context.Context, naa string, blob []byte) error {
	op, err := put(reserveKeys+naa, blob)
	if err == nil {
		_, err = db.commit(ctx, nil, op)
	}
	if err != nil {
		return fmt.Errorf("cluster: save reservations of %s: %w", naa, err)
	}
	return nil
}

// SweepReservations deletes the records of logical units that are mapped nowhere any more; their
// identities never come back.
func (db *DB) SweepReservations(ctx context.Context) error {
	targets, revision, err := list[Target](ctx, db, targetKeys)
	if err != nil {
		return fmt.Errorf("cluster: sweep reservations: %w", err)
	}
	mapped := map[string]bool{}
	for _, t := range targets {
		for _, l := range t.value.LUNs {
			mapped[l.NAA] = true
		}
	}
	resp, err := db.client.Get(ctx, reserveKeys, clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil {
		return fmt.Errorf("cluster: sweep reservations: %w", unavailable(err))
	}
	for _, kv := range resp.Kvs {
		if mapped[strings.TrimPrefix(string(kv.Key), reserveKeys)] {
			continue
		}
		if _, err := db.commit(ctx, []clientv3.Cmp{unchangedSince(targetKeys, revision)}, clientv3.OpDelete(string(kv.Key))); err != nil {
			return fmt.Errorf("cluster: sweep reservations: %w", err)
		}
	}
	return nil
}
