package nbd

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"lunar/datapath/layout/protocol"
)

// registry knows the set of connections that each node has to each image, so that a younger set is
// not served before the operations of the older have ended.
type registry struct {
	mu      sync.Mutex // guards what follows
	members map[member]*current
}

type member struct {
	volume string
	image  protocol.ImageID
	node   protocol.NodeID
}

// current is a member's youngest set, and what is left of the older ones.
type current struct {
	name  Name
	conns []*serverConn
	old   []*serverConn
}

// older tells whether n's set is over because of that of m. Incarnations have no order: Export.Open
// knows which one is over.
func (n Name) older(m Name) bool {
	if n.Epoch != m.Epoch {
		return n.Epoch < m.Epoch
	}
	return n.Incarnation == m.Incarnation && n.Set < m.Set
}

func (n Name) sameSet(m Name) bool {
	return n.Epoch == m.Epoch && n.Incarnation == m.Incarnation && n.Set == m.Set
}

// admit lets a connection of a node in when no operation of an older set runs any more. Every admit
// needs a leave, also after an error.
func (r *registry) admit(ctx context.Context, name Name, c *serverConn) error {
	old, err := r.enter(name, c)
	if err != nil {
		return err
	}
	for _, o := range old {
		o.supersede()
	}
	for _, o := range old {
		select {
		case <-o.idle:
		case <-ctx.Done():
			return fmt.Errorf("nbd: an earlier operation of the node has not ended yet: %w", ctx.Err())
		}
	}
	return nil
}

func (r *registry) enter(name Name, c *serverConn) (old []*serverConn, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	key := member{name.Volume, name.Image, name.Node}
	m := r.members[key]
	switch {
	case m == nil:
		if r.members == nil {
			r.members = map[member]*current{}
		}
		m = &current{name: name}
		r.members[key] = m
	case name.older(m.name):
		return nil, fmt.Errorf("nbd: a younger set of connections is there, number %d: %w", m.name.Set, protocol.ErrStale)
	case !name.sameSet(m.name):
		m.old = append(m.old, m.conns...)
		m.name, m.conns = name, nil
	}
	m.conns = append(m.conns, c)
	return slices.Clone(m.old), nil
}

// leave forgets a connection whose operations have all ended.
func (r *registry) leave(name Name, c *serverConn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	key := member{name.Volume, name.Image, name.Node}
	m := r.members[key]
	if m == nil {
		return
	}
	is := func(o *serverConn) bool { return o == c }
	m.conns, m.old = slices.DeleteFunc(m.conns, is), slices.DeleteFunc(m.old, is)
	if len(m.conns)+len(m.old) == 0 {
		delete(r.members, key)
	}
}

func (r *registry) end(ctx context.Context, volume, node string) error {
	r.mu.Lock()
	var all []*serverConn
	for key, m := range r.members {
		if key.volume == volume && string(key.node) == node {
			all = append(append(all, m.conns...), m.old...)
		}
	}
	r.mu.Unlock()
	for _, c := range all {
		c.supersede()
	}
	for _, c := range all {
		select {
		case <-c.idle:
		case <-ctx.Done():
			return fmt.Errorf("nbd: operations of %s have not ended yet: %w", node, ctx.Err())
		}
	}
	return nil
}
