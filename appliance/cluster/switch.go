package cluster

import (
	"context"
	"fmt"
	"sync"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// exchange is where calls find the etcd client of the moment: this node's own member, or the voters
// over the network. While it changes, calls wait, as long as their context lasts, and watches go on
// with the next client where they stopped.
type exchange struct {
	mu       sync.Mutex // guards what follows
	client   *clientv3.Client
	database uint64        // counts up when the next client serves another database
	changed  chan struct{} // closed at the next change
	closed   bool
}

func newExchange() *exchange { return &exchange{changed: make(chan struct{})} }

// set makes client the one to use, nil for none at the moment. With
// another, watches of the database before end.
func (x *exchange) set(client *clientv3.Client, another bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.closed {
		return
	}
	x.client = client
	if another {
		x.database++
	}
	close(x.changed)
	x.changed = make(chan struct{})
}

// shut ends every call that waits, and all later ones.
func (x *exchange) shut() {
	x.set(nil, true)
	x.mu.Lock()
	defer x.mu.Unlock()
	x.closed = true
	close(x.changed)
	x.changed = make(chan struct{})
}

// get waits for a client. It gives the database's number with it.
func (x *exchange) get(ctx context.Context) (*clientv3.Client, uint64, error) {
	for {
		x.mu.Lock()
		client, database, changed, closed := x.client, x.database, x.changed, x.closed
		x.mu.Unlock()
		switch {
		case closed:
			return nil, 0, fmt.Errorf("%w: it is closed", ErrUnavailable)
		case client != nil:
			return client, database, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, 0, ctx.Err()
		}
	}
}

// next is closed at the next change.
func (x *exchange) next() <-chan struct{} {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.changed
}

// is tells whether client still is the one to use.
func (x *exchange) is(client *clientv3.Client) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.client == client
}

// newSwitched is a client whose calls go through x; closing it ends nothing else.
func newSwitched(ctx context.Context, x *exchange) *clientv3.Client {
	c := clientv3.NewCtxClient(context.WithoutCancel(ctx))
	c.KV, c.Lease, c.Watcher = switchedKV{x}, switchedLease{x}, switchedWatcher{x}
	c.Cluster, c.Maintenance = switchedCluster{x}, switchedMaintenance{x}
	return c
}

// through runs one call on the client of the moment.
func through[T any](ctx context.Context, x *exchange, call func(*clientv3.Client) (T, error)) (T, error) {
	c, _, err := x.get(ctx)
	if err != nil {
		var none T
		return none, err
	}
	return call(c)
}

type switchedKV struct{ x *exchange }

// Put implements clientv3.KV.
func (s switchedKV) Put(ctx context.Context, key, val string, opts ...clientv3.OpOption) (*clientv3.PutResponse, error) {
	return through(ctx, s.x, func(c *clientv3.Client) (*clientv3.PutResponse, error) { return c.Put(ctx, key, val, opts...) })
}

// Get implements clientv3.KV.
func (s switchedKV) Get(ctx context.Context, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	return through(ctx, s.x, func(c *clientv3.Client) (*clientv3.GetResponse, error) { return c.Get(ctx, key, opts...) })
}

// GetStream implements clientv3.KV.
func (s switchedKV) GetStream(ctx context.Context, key string, opts ...clientv3.OpOption) (clientv3.GetStreamChan, error) {
	return through(ctx, s.x, func(c *clientv3.Client) (clientv3.GetStreamChan, error) { return c.GetStream(ctx, key, opts...) })
}

// Delete implements clientv3.KV.
func (s switchedKV) Delete(ctx context.Context, key string, opts ...clientv3.OpOption) (*clientv3.DeleteResponse, error) {
	return through(ctx, s.x, func(c *clientv3.Client) (*clientv3.DeleteResponse, error) { return c.Delete(ctx, key, opts...) })
}

// Compact implements clientv3.KV.
func (s switchedKV) Compact(ctx context.Context, rev int64, opts ...clientv3.CompactOption) (*clientv3.CompactResponse, error) {
	return through(ctx, s.x, func(c *clientv3.Client) (*clientv3.CompactResponse, error) { return c.Compact(ctx, rev, opts...) })
}

// Do implements clientv3.KV.
func (s switchedKV) Do(ctx context.Context, op clientv3.Op) (clientv3.OpResponse, error) {
	return through(ctx, s.x, func(c *clientv3.Client) (clientv3.OpResponse, error) { return c.Do(ctx, op) })
}

// Txn implements clientv3.KV.
func (s switchedKV) Txn(ctx context.Context) clientv3.Txn {
	c, _, err := s.x.get(ctx)
	if err != nil {
		return failedTxn{err}
	}
	return c.Txn(ctx)
}

// failedTxn is a transaction for which there is no client.
type failedTxn struct{ err error }

// If implements clientv3.Txn.
func (t failedTxn) If(...clientv3.Cmp) clientv3.Txn { return t }

// Then implements clientv3.Txn.
func (t failedTxn) Then(...clientv3.Op) clientv3.Txn { return t }

// Else implements clientv3.Txn.
func (t failedTxn) Else(...clientv3.Op) clientv3.Txn { return t }

// Commit implements clientv3.Txn.
func (t failedTxn) Commit() (*clientv3.TxnResponse, error) { return nil, t.err }

type switchedLease struct{ x *exchange }

// Grant implements clientv3.Lease.
func (s switchedLease) Grant(ctx context.Context, ttl int64) (*clientv3.LeaseGrantResponse, error) {
	return through(ctx, s.x, func(c *clientv3.Client) (*clientv3.LeaseGrantResponse, error) { return c.Grant(ctx, ttl) })
}

// Revoke implements clientv3.Lease.
func (s switchedLease) Revoke(ctx context.Context, id clientv3.LeaseID) (*clientv3.LeaseRevokeResponse, error) {
	return through(ctx, s.x, func(c *clientv3.Client) (*clientv3.LeaseRevokeResponse, error) { return c.Revoke(ctx, id) })
}

// TimeToLive implements clientv3.Lease.
func (s switchedLease) TimeToLive(ctx context.Context, id clientv3.LeaseID, opts ...clientv3.LeaseOption) (*clientv3.LeaseTimeToLiveResponse, error) {
	return through(ctx, s.x, func(c *clientv3.Client) (*clientv3.LeaseTimeToLiveResponse, error) {
		return c.TimeToLive(ctx, id, opts...)
	})
}

// Leases implements clientv3.Lease.
func (s switchedLease) Leases(ctx context.Context) (*clientv3.LeaseLeasesResponse, error) {
	return through(ctx, s.x, func(c *clientv3.Client) (*clientv3.LeaseLeasesResponse, error) { return c.Leases(ctx) })
}

// KeepAlive implements clientv3.Lease. Its channel ends when the client changes.
func (s switchedLease) KeepAlive(ctx context.Context, id clientv3.LeaseID) (<-chan *clientv3.LeaseKeepAliveResponse, error) {
	return through(ctx, s.x, func(c *clientv3.Client) (<-chan *clientv3.LeaseKeepAliveResponse, error) {
		return c.KeepAlive(ctx, id)
	})
}

// KeepAliveOnce implements clientv3.Lease.
func (s switchedLease) KeepAliveOnce(ctx context.Context, id clientv3.LeaseID) (*clientv3.LeaseKeepAliveResponse, error) {
	return through(ctx, s.x, func(c *clientv3.Client) (*clientv3.LeaseKeepAliveResponse, error) { return c.KeepAliveOnce(ctx, id) })
}

// Close implements clientv3.Lease; the clients behind it are closed by the exchange's owner.
func (switchedLease) Close() error { return nil }

type switchedWatcher struct{ x *exchange }

// Watch implements clientv3.Watcher. The channel ends with ctx, on an error of the watch itself, and
// when the node went over to another database.
func (s switchedWatcher) Watch(ctx context.Context, key string, opts ...clientv3.OpOption) clientv3.WatchChan {
	w := &switchedWatch{x: s.x, key: key, opts: opts, out: make(chan clientv3.WatchResponse)}
	c, database, err := s.x.get(ctx)
	if err != nil {
		close(w.out)
		return w.out
	}
	w.database = database
	op := clientv3.OpGet(key, opts...)
	w.wantsCreated, w.next = op.IsCreatedNotify(), op.Rev()
	one, cancel := context.WithCancel(ctx)
	first := w.on(one, c)
	go w.run(ctx, c, first, cancel)
	return w.out
}

// RequestProgress implements clientv3.Watcher.
func (s switchedWatcher) RequestProgress(ctx context.Context) error {
	_, err := through(ctx, s.x, func(c *clientv3.Client) (struct{}, error) { return struct{}{}, c.RequestProgress(ctx) })
	return err
}

// Close implements clientv3.Watcher; the clients behind it are closed by the exchange's owner.
func (switchedWatcher) Close() error { return nil }

// switchedWatch is one watch that outlives a change of the client.
type switchedWatch struct {
	x            *exchange
	key          string
	opts         []clientv3.OpOption
	database     uint64
	next         int64 // revision from which the next client goes on, 0 before it is known
	wantsCreated bool
	out          chan clientv3.WatchResponse
}

func (w *switchedWatch) on(ctx context.Context, c *clientv3.Client) clientv3.WatchChan {
	opts := append([]clientv3.OpOption{}, w.opts...)
	opts = append(opts, clientv3.WithCreatedNotify())
	if w.next > 0 {
		opts = append(opts, clientv3.WithRev(w.next))
	}
	return c.Watch(ctx, w.key, opts...)
}

func (w *switchedWatch) run(ctx context.Context, c *clientv3.Client, in clientv3.WatchChan, cancel context.CancelFunc) {
	defer close(w.out)
	for {
		more := w.forward(ctx, c, in)
		cancel()
		if !more {
			return
		}
		next, database, err := w.x.get(ctx)
		if err != nil || database != w.database {
			return
		}
		var one context.Context
		one, cancel = context.WithCancel(ctx)
		c, in = next, w.on(one, next)
	}
}

// forward copies responses until the watch ends; true means that there is another client, with which the
// watch is to go on. It does not wait for the one before to fail: a voter whose machine goes says nothing.
func (w *switchedWatch) forward(ctx context.Context, c *clientv3.Client, in clientv3.WatchChan) bool {
	for {
		changed := w.x.next()
		if !w.x.is(c) {
			return ctx.Err() == nil
		}
		select {
		case resp, ok := <-in:
			if !ok {
				return ctx.Err() == nil && !w.x.is(c)
			}
			if resp.Err() != nil && resp.CompactRevision == 0 && ctx.Err() == nil && !w.x.is(c) {
				return true
			}
			if !w.send(ctx, &resp) {
				return false
			}
		case <-changed:
		case <-ctx.Done(): // a member that has died ends no watch
			return false
		}
	}
}

func (w *switchedWatch) send(ctx context.Context, resp *clientv3.WatchResponse) bool {
	w.advance(resp)
	if resp.Created && len(resp.Events) == 0 && resp.Err() == nil && !w.wantsCreated {
		return true
	}
	select {
	case w.out <- *resp:
		return true
	case <-ctx.Done():
		return false
	}
}

// advance notes what was seen. A header's revision says what was seen only without events: with them
// it may be ahead of the events that are still to come.
func (w *switchedWatch) advance(resp *clientv3.WatchResponse) {
	seen := int64(0)
	switch n := len(resp.Events); {
	case resp.Err() != nil || resp.Header == nil:
	case n > 0:
		seen = resp.Events[n-1].Kv.ModRevision
	case resp.IsProgressNotify(), resp.Created && w.next == 0:
		seen = resp.Header.Revision
	}
	if seen > 0 {
		w.next = max(w.next, seen+1)
	}
}
