package cluster

import (
	"context"
	"errors"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// silenceAgain is the pause after a try to end the session of a silent node.
const silenceAgain = 100 * time.Millisecond

// observe follows the other nodes' renewals until ctx ends, and ends the session of a node that was silent for
// longer than that lasts. The database would do so later: it looks at leases twice a second, and a new leader gives
// each a whole TTL more.
func (c *Coordinators) observe(ctx context.Context) {
	for ctx.Err() == nil {
		revision, err := c.readRenewals(ctx)
		if err == nil {
			err = c.followRenewals(ctx, revision)
		}
		if err != nil && ctx.Err() == nil {
			c.log.Debug("coordinators: renewals are read anew", "reason", err)
		}
		sleep(ctx, rereadPause)
	}
}

func (c *Coordinators) readRenewals(ctx context.Context) (revision int64, err error) {
	err = c.db.try(ctx, func(ctx context.Context) error {
		resp, err := c.db.client.Get(ctx, renewalKeys, clientv3.WithPrefix())
		if err != nil {
			return unavailable(err)
		}
		now := Boottime()
		for _, kv := range resp.Kvs {
			if err := c.seen.take(kv, false, now); err != nil {
				return err
			}
		}
		revision = resp.Header.Revision
		return nil
	})
	return revision, err
}

// followRenewals returns when the watch ends, now and then by itself.
func (c *Coordinators) followRenewals(ctx context.Context, revision int64) error {
	ctx, cancel := context.WithTimeout(ctx, rereadEvery)
	ended := make(chan []string, 1) // the silent nodes that were dealt with; one try at a time
	busy := false
	defer func() {
		cancel()
		if busy {
			<-ended
		}
	}()
	changes := c.db.client.Watch(ctx, renewalKeys, clientv3.WithPrefix(), clientv3.WithRev(revision+1))
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case resp, ok := <-changes:
			if err := c.takeRenewals(&resp); !ok || err != nil {
				return err
			}
			continue
		case <-ended:
			busy = false
		case <-timer.C:
		}
		silent, next := c.silent()
		if len(silent) > 0 && !busy {
			busy = true
			go func() { c.endSilent(ctx, silent); ended <- silent }()
		}
		timer.Reset(next)
	}
}

func (c *Coordinators) takeRenewals(resp *clientv3.WatchResponse) error {
	now := Boottime()
	for _, e := range resp.Events {
		if err := c.seen.take(e.Kv, e.Type == clientv3.EventTypeDelete, now); err != nil {
			return err
		}
	}
	return resp.Err()
}

// silent names the nodes to be ended, and tells when to look again.
func (c *Coordinators) silent() (nodes []string, pause time.Duration) {
	now := Boottime()
	nodes, next := c.seen.silent(c.db.node, now)
	pause = rereadEvery
	if next > 0 {
		pause = time.Duration(next - now)
	}
	if len(nodes) > 0 {
		pause = min(pause, silenceAgain)
	}
	return nodes, pause
}

func (c *Coordinators) endSilent(ctx context.Context, nodes []string) {
	for _, node := range nodes {
		if err := c.endSession(ctx, node); err != nil && ctx.Err() == nil {
			c.log.Debug("coordinators: a silent node", "node", node, "reason", err)
		}
	}
}

// endSession ends the session of a node unless a renewal was written that this node has not seen.
func (c *Coordinators) endSession(ctx context.Context, node string) error {
	ctx, cancel := context.WithTimeout(ctx, longestTry)
	defer cancel()
	seen := c.seen.last(node)
	unchanged := clientv3.Compare(clientv3.ModRevision(renewalKeys+node), "=", seen.revision)
	return c.db.try(ctx, func(ctx context.Context) error {
		last, err := c.db.lastRenewal(ctx, node)
		switch {
		case err != nil:
			return err
		case last.revision == 0:
			c.seen.forget(node)
			return nil
		case last.revision != seen.revision:
			c.seen.saw(node, last.value, last.revision, Boottime())
			return nil
		}
		s, err := c.db.session(ctx, node)
		if err == nil && s.value.Incarnation == seen.incarnation {
			err = c.suspect(ctx, node, seen.incarnation, "it was silent for longer than its session lasts", unchanged)
		}
		if err == nil || errors.Is(err, ErrNotFound) {
			c.seen.ended(node, seen.revision)
			return nil
		}
		return err
	})
}
