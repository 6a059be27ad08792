package cluster

import (
	"context"
	"fmt"
	"slices"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// The log keeps MaxEvents and is trimmed in steps, so that a trim is rare.
const (
	MaxEvents = 4096
	trimStep  = 100 // below etcd's 128 operations per transaction
)

// Append adds an event to the log; Time and Node are set here.
func (db *DB) Append(ctx context.Context, e Event) error {
	e.Time, e.Node = time.Now().UTC(), db.node
	op, err := put(eventKeys+newID(), &e)
	if err != nil {
		return fmt.Errorf("cluster: append event: %w", err)
	}
	if _, err := db.commit(ctx, nil, op); err != nil {
		return fmt.Errorf("cluster: append event: %w", err)
	}
	return db.trim(ctx)
}

// trim drops the oldest events beyond MaxEvents, trimStep at a time.
func (db *DB) trim(ctx context.Context) error {
	resp, err := db.client.Get(ctx, eventKeys, clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil {
		return fmt.Errorf("cluster: trim events: %w", unavailable(err))
	}
	if resp.Count < MaxEvents+trimStep {
		return nil
	}
	old, err := db.client.Get(ctx, eventKeys, clientv3.WithPrefix(), clientv3.WithKeysOnly(), clientv3.WithLimit(trimStep),
		clientv3.WithSort(clientv3.SortByCreateRevision, clientv3.SortAscend))
	if err != nil {
		return fmt.Errorf("cluster: trim events: %w", unavailable(err))
	}
	ops := make([]clientv3.Op, len(old.Kvs))
	for i, kv := range old.Kvs {
		ops[i] = clientv3.OpDelete(string(kv.Key))
	}
	_, err = db.commit(ctx, nil, ops...)
	return err
}

// Events returns the log, oldest first, and the revision to follow it from.
func (db *DB) Events(ctx context.Context) ([]Event, int64, error) {
	records, revision, err := list[Event](ctx, db, eventKeys)
	if err != nil {
		return nil, 0, fmt.Errorf("cluster: events: %w", err)
	}
	slices.SortFunc(records, func(a, b record[Event]) int { return int(a.revision - b.revision) })
	for i := range records {
		records[i].value.Revision = records[i].revision
	}
	return values(records), revision, nil
}

// Follow calls fn for every event after revision until ctx ends or fn fails.
func (db *DB) Follow(ctx context.Context, revision int64, fn func(Event) error) error {
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	for resp := range db.client.Watch(ctx, eventKeys, clientv3.WithPrefix(), clientv3.WithRev(revision+1), clientv3.WithFilterDelete()) {
		if err := resp.Err(); err != nil {
			return fmt.Errorf("cluster: follow events: %w", unavailable(err))
		}
		for _, e := range resp.Events {
			r, err := decode[Event](e.Kv)
			if err != nil {
				return fmt.Errorf("cluster: follow events: %w", err)
			}
			r.value.Revision = r.revision
			if err := fn(r.value); err != nil {
				return err
			}
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return fmt.Errorf("cluster: follow events: %w", ErrUnavailable)
}
