package cluster

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// Reservations is the record of a logical unit's SCSI reservations, and the revision that stands for
// it in a compare-and-swap. The revision is 0 while there is no record.
type Reservations struct {
	Blob     []byte
	Revision int64
}

// LoadReservations returns the record of a logical unit, named by its NAA designator; Blob is nil if
// there is none.
func (db *DB) LoadReservations(ctx context.Context, naa string) (Reservations, error) {
	r, err := get[[]byte](ctx, db, reserveKeys+naa)
	if errors.Is(err, ErrNotFound) {
		return Reservations{}, nil
	}
	if err != nil {
		return Reservations{}, fmt.Errorf("cluster: reservations of %s: %w", naa, err)
	}
	return Reservations{r.value, r.revision}, nil
}

// SwapReservations stores the record of a logical unit if its revision is still old, and returns the
// new revision; it is durable then. ErrConflict: another node changed it; load it and decide anew.
// After ErrUnavailable it may or may not have taken effect: load it, too.
func (db *DB) SwapReservations(ctx context.Context, naa string, old int64, blob []byte) (int64, error) {
	key := reserveKeys + naa
	op, err := put(key, blob)
	if err != nil {
		return 0, fmt.Errorf("cluster: save reservations of %s: %w", naa, err)
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	resp, err := db.client.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(key), "=", old)).Then(op).Commit()
	switch {
	case err != nil:
		return 0, fmt.Errorf("cluster: save reservations of %s: %w", naa, unavailable(err))
	case !resp.Succeeded:
		return 0, fmt.Errorf("cluster: save reservations of %s: %w", naa, ErrConflict)
	}
	return resp.Header.Revision, nil
}

// WatchReservations calls fn with every record there is, and then with each that changes, until ctx
// ends. A record that went away has a nil blob and the revision of its end. fn sees changes by this
// node too; it may see one twice, and never an older one after a newer one.
func (db *DB) WatchReservations(ctx context.Context, fn func(naa string, blob []byte, revision int64)) error {
	w := reservationWatch{db: db, fn: fn, seen: map[string]int64{}}
	for {
		var revision int64
		err := db.try(ctx, func(ctx context.Context) (err error) {
			revision, err = w.read(ctx)
			return err
		})
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			return fmt.Errorf("cluster: watch reservations: %w", err)
		}
		if err := w.follow(ctx, revision); err != nil {
			return fmt.Errorf("cluster: watch reservations: %w", err)
		}
		if !sleep(ctx, rereadPause) {
			return ctx.Err()
		}
	}
}

// reservationWatch knows what fn was told of each record that exists.
type reservationWatch struct {
	db   *DB
	fn   func(naa string, blob []byte, revision int64)
	seen map[string]int64
}

// read tells of all that is new since the last look, and of what is gone.
func (w *reservationWatch) read(ctx context.Context) (int64, error) {
	resp, err := w.db.client.Get(ctx, reserveKeys, clientv3.WithPrefix())
	if err != nil {
		return 0, unavailable(err)
	}
	there := map[string]bool{}
	for _, kv := range resp.Kvs {
		there[string(kv.Key)] = true
		if err := w.tell(kv, false); err != nil {
			return 0, err
		}
	}
	for key := range w.seen {
		if !there[key] {
			delete(w.seen, key)
			w.fn(strings.TrimPrefix(key, reserveKeys), nil, resp.Header.Revision)
		}
	}
	return resp.Header.Revision, nil
}

func (w *reservationWatch) tell(kv *mvccpb.KeyValue, deleted bool) error {
	key := string(kv.Key)
	if kv.ModRevision <= w.seen[key] {
		return nil
	}
	naa := strings.TrimPrefix(key, reserveKeys)
	if deleted {
		delete(w.seen, key)
		w.fn(naa, nil, kv.ModRevision)
		return nil
	}
	r, err := decode[[]byte](kv)
	if err != nil {
		return err
	}
	w.seen[key] = kv.ModRevision
	w.fn(naa, r.value, r.revision)
	return nil
}

// follow tells of changes until the watch ends, for whatever reason; an error is a damaged record.
func (w *reservationWatch) follow(ctx context.Context, revision int64) error {
	ctx, cancel := context.WithTimeout(clientv3.WithRequireLeader(ctx), rereadEvery)
	defer cancel()
	for resp := range w.db.client.Watch(ctx, reserveKeys, clientv3.WithPrefix(), clientv3.WithRev(revision+1)) {
		if resp.Err() != nil {
			return nil // begun anew from a full read
		}
		for _, e := range resp.Events {
			if err := w.tell(e.Kv, e.Type == mvccpb.Event_DELETE); err != nil {
				return err
			}
		}
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
