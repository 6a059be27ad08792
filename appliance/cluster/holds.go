package cluster

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// holdKeys has a key per volume and reason: volume ID/reason → Hold, under the owner's lease.
const holdKeys = electionKeys + "hold/"

// Hold is an operation on a volume that every node heeds while it lasts. It ends with its owner's session.
type Hold struct {
	Reason      string    `json:"reason"`             // a volume has one hold for each
	Redirect    bool      `json:"redirect,omitempty"` // all nodes' I/O goes through the coordinator
	Operation   string    `json:"operation"`          // in words
	Node        string    `json:"node"`               // the owner
	Incarnation uint64    `json:"incarnation"`
	Since       time.Time `json:"since"`
	Backup      *Backup   `json:"backup,omitempty"` // of a hold for a backup

	created int64 // revision that made it
}

// held orders what a view has of a volume by reason.
func (p *picture) held(v *View) {
	v.Holds = map[string]map[string]Hold{}
	for name, h := range p.holds {
		volume, reason, _ := strings.Cut(name, "/")
		if v.Holds[volume] == nil {
			v.Holds[volume] = map[string]Hold{}
		}
		v.Holds[volume][reason] = h
	}
}

// Holding is a hold of this node.
type Holding struct {
	Hold
	Volume string

	db   *DB
	life *life
}

// Lost is closed when the session has ended under which the hold was taken: it is others' to heed no more.
func (h *Holding) Lost() <-chan struct{} { return h.life.gone }

// Hold records that an operation holds a volume; the caller gives h.Reason, Redirect and Operation. ErrInUse: a hold
// for that reason is there already, and the error says whose. ErrNotFound: no such volume.
func (c *Coordinators) Hold(ctx context.Context, volume string, h Hold) (*Holding, error) {
	l := c.session.current()
	if l == nil {
		return nil, fmt.Errorf("cluster: hold volume %s: %w", volume, ErrSessionLost)
	}
	h.Node, h.Incarnation, h.Since = c.db.node, l.incarnation, time.Now().UTC()
	held := &Holding{Hold: h, Volume: volume, db: c.db, life: l}
	if err := c.db.try(ctx, held.take); err != nil {
		return nil, fmt.Errorf("cluster: hold volume %s: %w", volume, err)
	}
	return held, nil
}

func (h *Holding) key() string { return holdKeys + h.Volume + "/" + h.Reason }

// take tries once. A hold that an earlier try took is recognised.
func (h *Holding) take(ctx context.Context) error {
	op, err := putWith(h.key(), &h.Hold, clientv3.WithLease(h.life.lease))
	if err != nil {
		return err
	}
	session, volume := sessionKeys+h.db.node, volumeKeys+h.Volume
	resp, err := h.db.client.Txn(ctx).
		If(absent(h.key()), present(volume), createdAt(session, h.life.revision)).Then(op).
		Else(clientv3.OpGet(h.key()), clientv3.OpGet(session), clientv3.OpGet(volume, clientv3.WithCountOnly())).Commit()
	switch {
	case leaseGone(err):
		return ErrSessionLost
	case err != nil:
		return unavailable(err)
	case resp.Succeeded:
		h.created = resp.Header.Revision
		return nil
	}
	if there := resp.Responses[0].GetResponseRange().Kvs; len(there) > 0 {
		return h.taken(there[0])
	}
	if resp.Responses[2].GetResponseRange().Count == 0 {
		return ErrNotFound
	}
	return refused(resp.Responses[1].GetResponseRange().Kvs, h.life)
}

func (h *Holding) taken(kv *mvccpb.KeyValue) error {
	other, err := decode[Hold](kv)
	if err != nil {
		return err
	}
	o := other.value
	if o.Node == h.Node && o.Incarnation == h.Incarnation && o.Since.Equal(h.Since) {
		h.created = kv.CreateRevision
		return nil
	}
	return fmt.Errorf("%w: %s on node %s since %s (%s)", ErrInUse, o.Operation, o.Node, o.Since.Format(time.TimeOnly), o.Reason)
}

// Release ends the hold; one that is not there any more is no error.
func (h *Holding) Release(ctx context.Context) error {
	err := h.db.try(ctx, func(ctx context.Context) error {
		_, err := h.db.commit(ctx, []clientv3.Cmp{createdAt(h.key(), h.created)}, clientv3.OpDelete(h.key()))
		return err
	})
	if err != nil {
		return fmt.Errorf("cluster: end the hold of volume %s: %w", h.Volume, err)
	}
	return nil
}

// EndHold ends a hold that this node's session has and nobody remembers, as a view had it.
func (c *Coordinators) EndHold(ctx context.Context, volume string, h Hold) error {
	if h.Node != c.db.node {
		return errors.New("cluster: the hold is another node's")
	}
	return (&Holding{Hold: h, Volume: volume, db: c.db}).Release(ctx)
}
