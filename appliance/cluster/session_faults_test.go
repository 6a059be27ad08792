package cluster

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// blackHole swallows renewals, grants and transactions while it is told to: they answer when their
// context ends.
type blackHole struct {
	clientv3.KV
	clientv3.Lease
	swallow atomic.Bool
}

func (h *blackHole) gone(ctx context.Context) error {
	if !h.swallow.Load() {
		return nil
	}
	<-ctx.Done()
	return ctx.Err()
}

// KeepAliveOnce implements clientv3.Lease.
func (h *blackHole) KeepAliveOnce(ctx context.Context, id clientv3.LeaseID) (*clientv3.LeaseKeepAliveResponse, error) {
	if err := h.gone(ctx); err != nil {
		return nil, err
	}
	return h.Lease.KeepAliveOnce(ctx, id)
}

// Get implements clientv3.KV.
func (h *blackHole) Get(ctx context.Context, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	if err := h.gone(ctx); err != nil {
		return nil, err
	}
	return h.KV.Get(ctx, key, opts...)
}

// Txn implements clientv3.KV.
func (h *blackHole) Txn(ctx context.Context) clientv3.Txn {
	return &holeTxn{Txn: h.KV.Txn(ctx), hole: h, ctx: ctx}
}

type holeTxn struct {
	clientv3.Txn
	hole *blackHole
	ctx  context.Context //nolint:containedctx // of one transaction
}

// If implements clientv3.Txn.
func (t *holeTxn) If(cmps ...clientv3.Cmp) clientv3.Txn { t.Txn = t.Txn.If(cmps...); return t }

// Then implements clientv3.Txn.
func (t *holeTxn) Then(ops ...clientv3.Op) clientv3.Txn { t.Txn = t.Txn.Then(ops...); return t }

// Else implements clientv3.Txn.
func (t *holeTxn) Else(ops ...clientv3.Op) clientv3.Txn { t.Txn = t.Txn.Else(ops...); return t }

// Commit implements clientv3.Txn.
func (t *holeTxn) Commit() (*clientv3.TxnResponse, error) {
	if err := t.hole.gone(t.ctx); err != nil {
		return nil, err
	}
	return t.Txn.Commit()
}

// Grant implements clientv3.Lease.
func (h *blackHole) Grant(ctx context.Context, ttl int64) (*clientv3.LeaseGrantResponse, error) {
	if err := h.gone(ctx); err != nil {
		return nil, err
	}
	return h.Lease.Grant(ctx, ttl)
}

// Close implements clientv3.Lease; the client behind it stays.
func (h *blackHole) Close() error { return nil }

// lateTxns loses transactions, or lets them take effect long after their caller gave up.
type lateTxns struct {
	clientv3.KV
	mu  sync.Mutex // guards rng
	rng *rand.Rand
	wg  *sync.WaitGroup
}

func (l *lateTxns) roll(n int) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.rng.IntN(n)
}

// Txn implements clientv3.KV.
func (l *lateTxns) Txn(ctx context.Context) clientv3.Txn {
	switch l.roll(10) {
	case 0:
		return &lateTxn{Txn: l.KV.Txn(ctx), lost: true}
	case 1, 2:
		delay := time.Duration(l.roll(60)) * time.Millisecond
		return &lateTxn{Txn: l.KV.Txn(context.WithoutCancel(ctx)), delay: delay, wg: l.wg}
	}
	return l.KV.Txn(ctx)
}

type lateTxn struct {
	clientv3.Txn
	lost  bool
	delay time.Duration
	wg    *sync.WaitGroup
}

// If implements clientv3.Txn.
func (t *lateTxn) If(cmps ...clientv3.Cmp) clientv3.Txn { t.Txn = t.Txn.If(cmps...); return t }

// Then implements clientv3.Txn.
func (t *lateTxn) Then(ops ...clientv3.Op) clientv3.Txn { t.Txn = t.Txn.Then(ops...); return t }

// Else implements clientv3.Txn.
func (t *lateTxn) Else(ops ...clientv3.Op) clientv3.Txn { t.Txn = t.Txn.Else(ops...); return t }

// Commit implements clientv3.Txn.
func (t *lateTxn) Commit() (*clientv3.TxnResponse, error) {
	if !t.lost {
		t.wg.Go(func() {
			time.Sleep(t.delay)
			_, _ = t.Txn.Commit()
		})
	}
	return nil, context.DeadlineExceeded
}

// fullKV refuses what adds to the database while it is told to.
type fullKV struct {
	clientv3.KV
	full atomic.Bool
}

// Txn implements clientv3.KV.
func (f *fullKV) Txn(ctx context.Context) clientv3.Txn { return &fullTxn{Txn: f.KV.Txn(ctx), kv: f} }

type fullTxn struct {
	clientv3.Txn
	kv   *fullKV
	puts bool
}

// If implements clientv3.Txn.
func (t *fullTxn) If(cmps ...clientv3.Cmp) clientv3.Txn { t.Txn = t.Txn.If(cmps...); return t }

// Then implements clientv3.Txn.
func (t *fullTxn) Then(ops ...clientv3.Op) clientv3.Txn {
	for _, op := range ops {
		t.puts = t.puts || op.IsPut()
	}
	t.Txn = t.Txn.Then(ops...)
	return t
}

// Else implements clientv3.Txn.
func (t *fullTxn) Else(ops ...clientv3.Op) clientv3.Txn { t.Txn = t.Txn.Else(ops...); return t }

// Commit implements clientv3.Txn.
func (t *fullTxn) Commit() (*clientv3.TxnResponse, error) {
	if t.puts && t.kv.full.Load() {
		return nil, rpctypes.ErrNoSpace
	}
	return t.Txn.Commit()
}
