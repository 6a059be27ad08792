package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// The keys. A record's key never holds what a user can change.
const (
	root          = "/lunar/v1/"
	volumeKeys    = root + "volume/"       // ID → Volume
	nameKeys      = root + "volume-name/"  // name → ID
	wwidKeys      = root + "volume-wwid/"  // WWID → ID
	targetKeys    = root + "target/"       // name → Target
	reserveKeys   = root + "reservations/" // NAA → blob
	eventKeys     = root + "event/"        // unique → Event
	clusterKey    = root + "cluster"       // clusterRecord
	memberKeys    = root + "member/"       // node's name → Member
	tokenKeys     = root + "token/"        // hash → tokenRecord, while it is good
	pastTokenKeys = root + "token-past/"   // hash → tokenRecord, a day longer
	revokedKeys   = root + "revoked/"      // serial number of a certificate → revocation
	txnAttempts   = 8
	maxRecordSize = 1 << 20
)

// callTimeout bounds one call, so that nobody waits for a database that has died.
const callTimeout = 10 * time.Second

// record is a stored value and the revision at which it was written.
type record[T any] struct {
	value    T
	key      string
	revision int64
}

// unchanged holds as long as nobody wrote the record since.
func (r record[T]) unchanged() clientv3.Cmp {
	return clientv3.Compare(clientv3.ModRevision(r.key), "=", r.revision)
}

func absent(key string) clientv3.Cmp {
	return clientv3.Compare(clientv3.CreateRevision(key), "=", 0)
}

func present(key string) clientv3.Cmp {
	return clientv3.Compare(clientv3.CreateRevision(key), ">", 0)
}

// unchangedSince holds when no key under prefix was written after revision. A deletion does not
// count.
func unchangedSince(prefix string, revision int64) clientv3.Cmp {
	return clientv3.Compare(clientv3.ModRevision(prefix).WithPrefix(), "<", revision+1)
}

func decode[T any](kv *mvccpb.KeyValue) (record[T], error) {
	r := record[T]{key: string(kv.Key), revision: kv.ModRevision}
	if err := json.Unmarshal(kv.Value, &r.value); err != nil {
		return r, fmt.Errorf("record %s: %w: %w", kv.Key, ErrDamaged, err)
	}
	return r, nil
}

func get[T any](ctx context.Context, db *DB, key string) (record[T], error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	resp, err := db.client.Get(ctx, key)
	if err != nil {
		return record[T]{}, unavailable(err)
	}
	if len(resp.Kvs) == 0 {
		return record[T]{}, ErrNotFound
	}
	return decode[T](resp.Kvs[0])
}

// list returns the records under prefix, ordered by key, and the revision at which that was true.
func list[T any](ctx context.Context, db *DB, prefix string, opts ...clientv3.OpOption) ([]record[T], int64, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	resp, err := db.client.Get(ctx, prefix, append(opts, clientv3.WithPrefix())...)
	if err != nil {
		return nil, 0, unavailable(err)
	}
	out := make([]record[T], 0, len(resp.Kvs))
	for _, kv := range resp.Kvs {
		r, err := decode[T](kv)
		if err != nil {
			return nil, 0, err
		}
		out = append(out, r)
	}
	return out, resp.Header.Revision, nil
}

func put(key string, value any) (clientv3.Op, error) {
	data, err := json.Marshal(value)
	if err != nil {
		return clientv3.Op{}, fmt.Errorf("record %s: %w", key, err)
	}
	if len(data) > maxRecordSize {
		return clientv3.Op{}, fmt.Errorf("record %s: %w: %d bytes, at most %d", key, ErrFull, len(data), maxRecordSize)
	}
	return clientv3.OpPut(key, string(data)), nil
}

// commit runs ops if every guard holds and tells whether they did.
func (db *DB) commit(ctx context.Context, guards []clientv3.Cmp, ops ...clientv3.Op) (bool, error) {
	if err := db.refuseGrowth(ops); err != nil {
		return false, err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	resp, err := db.client.Txn(ctx).If(guards...).Then(ops...).Commit()
	if err != nil {
		return false, unavailable(err)
	}
	return resp.Succeeded, nil
}

// retry repeats attempt, which reads, checks and commits, while another writer gets in between.
func retry(attempt func() (committed bool, err error)) error {
	for range txnAttempts {
		if ok, err := attempt(); ok || err != nil {
			return err
		}
	}
	return ErrConflict
}

// update changes one record by change, under guards beside its own revision.
func update[T any](ctx context.Context, db *DB, key string, change func(*T) ([]clientv3.Cmp, error)) (T, error) {
	var out T
	err := retry(func() (bool, error) {
		r, err := get[T](ctx, db, key)
		if err != nil {
			return false, err
		}
		guards, err := change(&r.value)
		if err != nil {
			return false, err
		}
		op, err := put(key, &r.value)
		if err != nil {
			return false, err
		}
		out = r.value
		return db.commit(ctx, append(guards, r.unchanged()), op)
	})
	return out, err
}

func values[T any](records []record[T]) []T {
	out := make([]T, len(records))
	for i := range records {
		out[i] = records[i].value
	}
	return out
}

func unavailable(err error) error {
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, ErrWentBack):
		return err
	case errors.Is(err, rpctypes.ErrNoSpace):
		return fmt.Errorf("%w: the cluster database has used up its space; old revisions are cleared now: "+
			"try again in some seconds", ErrFull)
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}
