package cluster

import (
	"context"
	"fmt"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// A watch is begun anew from a full read now and then, so that one which died unnoticed costs no
// more than that.
const (
	rereadEvery = 15 * time.Second
	rereadPause = 50 * time.Millisecond
)

// picture is the state of the keys of coordination; apply and View keep it.
type picture struct {
	revision    int64
	sessions    map[string]Presence
	seats       map[string]held
	successions map[string]Succession
	drains      map[string]Drained
	holds       map[string]Hold // by volume ID/reason
}

type held struct {
	Coordinator
	term int64
}

func newPicture() *picture {
	return &picture{sessions: map[string]Presence{}, seats: map[string]held{}, successions: map[string]Succession{}, drains: map[string]Drained{}, holds: map[string]Hold{}}
}

// apply takes one key's new value, or its end, into the picture.
func (p *picture) apply(kv *mvccpb.KeyValue, deleted bool) error {
	key := string(kv.Key)
	p.revision = max(p.revision, kv.ModRevision)
	if name, ok := strings.CutPrefix(key, sessionKeys); ok {
		return keep(p.sessions, name, kv, deleted, func(v Presence) Presence { v.Session = kv.CreateRevision; return v })
	}
	if name, ok := strings.CutPrefix(key, seatKeys); ok {
		return keep(p.seats, name, kv, deleted, func(c Coordinator) held { return held{c, kv.CreateRevision} })
	}
	if name, ok := strings.CutPrefix(key, successionKeys); ok {
		return keep(p.successions, name, kv, deleted, func(v Succession) Succession { return v })
	}
	if name, ok := strings.CutPrefix(key, drainKeys); ok {
		return keep(p.drains, name, kv, deleted, func(v Drained) Drained { return v })
	}
	if name, ok := strings.CutPrefix(key, holdKeys); ok {
		return keep(p.holds, name, kv, deleted, func(v Hold) Hold { v.created = kv.CreateRevision; return v })
	}
	return nil
}

func keep[T, V any](into map[string]V, name string, kv *mvccpb.KeyValue, deleted bool, as func(T) V) error {
	if deleted {
		delete(into, name)
		return nil
	}
	r, err := decode[T](kv)
	if err != nil {
		return err
	}
	into[name] = as(r.value)
	return nil
}

// view makes a copy for readers.
func (p *picture) view() *View {
	v := &View{Revision: p.revision, Nodes: make(map[string]Presence, len(p.sessions)), Seats: map[string]Seat{}}
	count := map[string]int{}
	for _, seat := range p.seats {
		count[seat.Node]++
	}
	for name, node := range p.sessions {
		_, node.Draining = p.drains[name]
		node.Coordinates = count[name]
		v.Nodes[name] = node
		for volume := range node.Paths {
			v.Seats[volume] = Seat{Volume: volume}
		}
	}
	for volume, s := range p.successions {
		v.Seats[volume] = Seat{Volume: volume, Succession: s}
	}
	for volume, h := range p.seats {
		s := v.Seats[volume]
		s.Volume, s.Coordinator, s.Term, s.Epoch = volume, &h.Coordinator, h.term, h.Epoch
		v.Seats[volume] = s
	}
	p.held(v)
	return v
}

// View reads the present state.
func (c *Coordinators) View(ctx context.Context) (*View, error) {
	var p *picture
	err := c.db.try(ctx, func(ctx context.Context) (err error) {
		p, err = c.read(ctx)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("cluster: coordinators: %w", err)
	}
	return p.view(), nil
}

func (c *Coordinators) read(ctx context.Context) (*picture, error) {
	resp, err := c.db.client.Get(ctx, electionKeys, clientv3.WithPrefix())
	if err != nil {
		return nil, unavailable(err)
	}
	p := newPicture()
	for _, kv := range resp.Kvs {
		if err := p.apply(kv, false); err != nil {
			return nil, err
		}
	}
	p.revision = resp.Header.Revision
	return p, nil
}

// Watch calls fn with the present state and then with the latest one after each change, until ctx
// ends; changes that come together make one call. It survives a change of the database's leader, a
// compaction and a database that is away. fn may block: it then sees fewer states, and always the last.
func (c *Coordinators) Watch(ctx context.Context, fn func(*View)) error {
	return c.watch(ctx, func(v *View) error { fn(v); return nil })
}

func (c *Coordinators) watch(ctx context.Context, fn func(*View) error) error {
	seen := int64(0)
	for {
		var p *picture
		err := c.db.try(ctx, func(ctx context.Context) (err error) {
			p, err = c.read(ctx)
			return err
		})
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			return fmt.Errorf("cluster: watch coordinators: %w", err)
		}
		if p.revision != seen {
			if err := fn(p.view()); err != nil {
				return err
			}
		}
		if err := c.follow(ctx, p, fn); err != nil {
			return err
		}
		seen = p.revision
		if !sleep(ctx, rereadPause) {
			return ctx.Err()
		}
	}
}

// follow applies changes until the watch ends, for whatever reason; an error is fn's.
func (c *Coordinators) follow(ctx context.Context, p *picture, fn func(*View) error) error {
	ctx, cancel := context.WithTimeout(clientv3.WithRequireLeader(ctx), rereadEvery)
	defer cancel()
	changes := c.db.client.Watch(ctx, electionKeys, clientv3.WithPrefix(), clientv3.WithRev(p.revision+1))
	for resp := range changes {
		changed, err := p.take(&resp)
		for more := true; more && err == nil; {
			select {
			case resp, more = <-changes:
				if more {
					var also bool
					also, err = p.take(&resp)
					changed = changed || also
				}
			default:
				more = false
			}
		}
		if changed {
			if err := fn(p.view()); err != nil {
				return err
			}
		}
		if err != nil {
			c.log.Debug("coordinators: watch begins anew", "reason", err)
			return nil
		}
	}
	return nil
}

func (p *picture) take(resp *clientv3.WatchResponse) (changed bool, err error) {
	if err := resp.Err(); err != nil {
		return false, err
	}
	for _, e := range resp.Events {
		if err := p.apply(e.Kv, e.Type == mvccpb.Event_DELETE); err != nil {
			return changed, err
		}
		changed = true
	}
	return changed, nil
}
