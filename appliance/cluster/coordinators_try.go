package cluster

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// A proposal to a leader that dies is lost without an answer, so each try is short. A database that
// is only slow gets longer tries after the first ones.
const (
	firstTry   = 200 * time.Millisecond
	shortTries = 10
	longestTry = 2 * time.Second
	tryPause   = 20 * time.Millisecond
	raceTime   = time.Millisecond // after another writer got in between
)

// errAgain: another writer got in between, or an earlier try took effect; read anew.
var errAgain = errors.New("changed in between")

// try repeats attempt, which has to be idempotent, until it succeeds, fails for good, or ctx ends.
func (db *DB) try(ctx context.Context, attempt func(context.Context) error) error {
	limit := firstTry
	for n := 0; ; n++ {
		if n > shortTries {
			limit = min(2*limit, longestTry)
		}
		one, cancel := context.WithTimeout(ctx, limit)
		err := attempt(one)
		cancel()
		if err == nil || final(err) {
			return err
		}
		pause := tryPause
		if errors.Is(err, errAgain) {
			pause = raceTime
		}
		if !sleep(ctx, pause) {
			return fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
	}
}

// final tells whether err will not go away by trying again.
func final(err error) bool {
	if errors.Is(err, errAgain) {
		return false
	}
	return !errors.Is(err, ErrUnavailable) && !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, context.Canceled) ||
		errors.Is(err, rpctypes.ErrNoSpace)
}

func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// createdAt holds while the key is the one that was created at revision.
func createdAt(key string, revision int64) clientv3.Cmp {
	return clientv3.Compare(clientv3.CreateRevision(key), "=", revision)
}

func putWith(key string, value any, opts ...clientv3.OpOption) (clientv3.Op, error) {
	op, err := put(key, value)
	if err != nil {
		return op, err
	}
	return clientv3.OpPut(key, string(op.ValueBytes()), opts...), nil
}
