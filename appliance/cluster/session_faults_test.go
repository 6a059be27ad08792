package cluster

import (
	"context"
	"sync/atomic"

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

// Grant implements clientv3.Lease.
func (h *blackHole) Grant(ctx context.Context, ttl int64) (*clientv3.LeaseGrantResponse, error) {
	if err := h.gone(ctx); err != nil {
		return nil, err
	}
	return h.Lease.Grant(ctx, ttl)
}

// Close implements clientv3.Lease; the client behind it stays.
func (h *blackHole) Close() error { return nil }
