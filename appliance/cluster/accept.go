package cluster

import (
	"context"
	"errors"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// incarnationBump raises the numbers of sessions in a database that was put back, beyond those that were given after it
// was saved: what bears such a number is never taken for what bears a later one.
const incarnationBump = 1 << 16

// AcceptExternal makes an external etcd that was put back to an older state the cluster's database again: the numbers of
// terms and sessions go beyond all that were used, and every node believes it from its next start on. What was changed
// after the backup is lost. No lunard of the cluster may run: ErrInUse names one that does.
func AcceptExternal(ctx context.Context, o Options) error {
	if err := o.Validate(); err != nil {
		return err
	}
	if len(o.Config.Endpoints) == 0 {
		return errors.New("cluster: accept: there is no cluster.endpoints: an embedded database is put back by `lunarctl cluster restore`")
	}
	lock, err := lockDir(o.Dir)
	if err != nil {
		return fmt.Errorf("cluster: accept: %w", err)
	}
	defer lock.release()
	db := &DB{node: o.Node, options: o, log: o.Log, x: newExchange(), evicted: make(chan struct{})}
	db.client = newSwitched(ctx, db.x)
	remote, err := dialExternal(&o, zapLogger(o.Log, newLastWord()))
	if err != nil {
		return fmt.Errorf("cluster: accept: %w", err)
	}
	db.setEngine(nil, remote)
	db.x.set(remote, false)
	if err := errors.Join(db.accept(ctx), db.Close()); err != nil {
		return fmt.Errorf("cluster: accept: %w", err)
	}
	return nil
}

func (db *DB) accept(ctx context.Context) error {
	l, err := db.openLedger()
	if err != nil {
		return err
	}
	if err := db.atRest(ctx); err != nil {
		return err
	}
	if err := db.raise(ctx); err != nil {
		return err
	}
	was, err := get[int64](ctx, db, acceptedKey)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	op, err := put(acceptedKey, max(was.value, l.mark.Accepted, time.Now().Unix())+1)
	if err == nil {
		_, err = db.commit(ctx, nil, op)
	}
	return err
}

// atRest refuses while a node renews its session.
func (db *DB) atRest(ctx context.Context) error {
	before, _, err := list[renewal](ctx, db, renewalKeys)
	if err != nil {
		return err
	}
	wait := MinTTL
	for i := range before {
		wait = max(wait, min(before[i].value.TTL, MaxTTL))
	}
	sleep(ctx, wait)
	after, _, err := list[renewal](ctx, db, renewalKeys)
	if err != nil {
		return err
	}
	revisions := map[string]int64{}
	for i := range before {
		revisions[before[i].key] = before[i].revision
	}
	for i := range after {
		if r := &after[i]; revisions[r.key] != r.revision {
			return fmt.Errorf("%w: node %s runs: stop lunard on all nodes first", ErrInUse, r.key[len(renewalKeys):])
		}
	}
	return nil
}

// raise makes the numbers of a database that was put back higher than any that were used since.
func (db *DB) raise(ctx context.Context) error {
	volumes, err := db.Volumes(ctx)
	if err != nil {
		return err
	}
	for i := range volumes {
		if _, err := db.UpdateVolume(ctx, volumes[i].ID, func(v *Volume) error { v.Epoch += epochBump; return nil }); err != nil {
			return err
		}
	}
	counters, _, err := list[uint64](ctx, db, incarnationKeys)
	if err != nil {
		return err
	}
	for i := range counters {
		_, err := update(ctx, db, counters[i].key, func(n *uint64) ([]clientv3.Cmp, error) { *n += incarnationBump; return nil, nil })
		if err != nil {
			return err
		}
	}
	return nil
}
