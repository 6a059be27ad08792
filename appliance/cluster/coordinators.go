package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// The keys of coordination lie together, so that one watch sees all of them in order.
const (
	electionKeys    = root + "election/"
	sessionKeys     = electionKeys + "session/"     // node → Presence, under the node's lease
	seatKeys        = electionKeys + "coordinator/" // volume ID → Coordinator, under its node's lease
	successionKeys  = electionKeys + "succession/"  // volume ID → Succession
	drainKeys       = electionKeys + "drain/"       // node → Drained
	endingKeys      = root + "ending/"              // node → ending, of its last session that was ended by a node
	incarnationKeys = root + "incarnation/"         // node → number of its last session
)

// Coordinators elects, for each volume, the node that coordinates it, and keeps record of the terms.
// Safety rests on the transactions alone: each is guarded by the CreateRevision of the term's key. A
// lease only tells when to begin.
type Coordinators struct {
	db      *DB
	session *Session
	log     *slog.Logger
	seen    *sightings // of the other nodes' renewals; Run keeps them
}

// Coordinators returns the elections in which this node takes part by its session.
func (db *DB) Coordinators(s *Session) *Coordinators {
	return &Coordinators{db: db, session: s, log: s.options.Log, seen: newSightings()}
}

// Term is one term of this node as a volume's coordinator. Its methods may be called from any
// goroutine and be repeated; ErrTermOver means that the volume must not be touched any more.
type Term struct {
	Volume      string
	Epoch       uint64
	Incarnation uint64 // of this node's session
	Previous    *Party // to be fenced before Fenced; nil: nobody can have the volume mounted. It may be this very incarnation, in an earlier term: then its mount is to be gone

	db   *DB
	life *life
	key  int64 // CreateRevision of the coordinator's key

	leaving atomic.Bool // Release or Abandon was called
	opened  atomic.Bool
	wake    func() // has Run look
}

// Lost is closed when the session ended under which the term was won. The term may end otherwise
// too: Duties.Over tells.
func (t *Term) Lost() <-chan struct{} { return t.life.gone }

func (t *Term) party() Party {
	return Party{Node: t.db.node, Incarnation: t.Incarnation, Epoch: t.Epoch, TTL: t.life.ttl}
}

// stored is a seat as the database has it, with the guards of a change to it.
type stored struct {
	Seat
	revision   int64 // ModRevision of the coordinator's key, 0: vacant
	succession int64 // ModRevision of the succession, 0: none yet
}

func (s *stored) unchanged() []clientv3.Cmp {
	seat := seatKeys + s.Volume
	return []clientv3.Cmp{
		createdAt(seat, s.Term),
		clientv3.Compare(clientv3.ModRevision(seat), "=", s.revision),
		clientv3.Compare(clientv3.ModRevision(successionKeys+s.Volume), "=", s.succession),
	}
}

// seat reads a volume's seat, in one transaction.
func (db *DB) seat(ctx context.Context, volume string) (stored, error) {
	s := stored{Seat: Seat{Volume: volume}}
	resp, err := db.client.Txn(ctx).Then(clientv3.OpGet(seatKeys+volume), clientv3.OpGet(successionKeys+volume)).Commit()
	if err != nil {
		return s, unavailable(err)
	}
	if kvs := resp.Responses[0].GetResponseRange().Kvs; len(kvs) > 0 {
		r, err := decode[Coordinator](kvs[0])
		if err != nil {
			return s, err
		}
		s.Coordinator, s.Term, s.revision = &r.value, kvs[0].CreateRevision, r.revision
	}
	if kvs := resp.Responses[1].GetResponseRange().Kvs; len(kvs) > 0 {
		r, err := decode[Succession](kvs[0])
		if err != nil {
			return s, err
		}
		s.Succession, s.succession = r.value, r.revision
	}
	return s, nil
}

// seatOps writes what change made of before. A new coordinator's key gets the lease.
func seatOps(before *stored, after *Seat, lease clientv3.LeaseID) ([]clientv3.Op, error) {
	succession, err := put(successionKeys+after.Volume, &after.Succession)
	if err != nil {
		return nil, err
	}
	ops := []clientv3.Op{succession}
	key := seatKeys + after.Volume
	switch {
	case after.Coordinator == nil && before.Coordinator != nil:
		ops = append(ops, clientv3.OpDelete(key))
	case after.Coordinator != nil:
		option := clientv3.WithIgnoreLease()
		if before.Coordinator == nil {
			option = clientv3.WithLease(lease)
		}
		op, err := putWith(key, after.Coordinator, option)
		if err != nil {
			return nil, err
		}
		ops = append(ops, op)
	}
	return ops, nil
}

// Campaign tries to make this node the volume's coordinator. Winning and the new epoch are one
// transaction. ErrInUse: another node has the seat, or this one has gone further with it already.
// ErrNotFound: no such volume. ErrSessionLost: this node has no session.
func (c *Coordinators) Campaign(ctx context.Context, volume string) (*Term, error) {
	l := c.session.current()
	if l == nil {
		return nil, fmt.Errorf("cluster: campaign for volume %s: %w", volume, ErrSessionLost)
	}
	t := &Term{Volume: volume, Incarnation: l.incarnation, db: c.db, life: l, wake: func() {}}
	if err := c.db.try(ctx, t.campaign); err != nil {
		return nil, fmt.Errorf("cluster: campaign for volume %s: %w", volume, err)
	}
	return t, nil
}

// campaign tries once. A seat that an earlier try took is recognised.
func (t *Term) campaign(ctx context.Context) error {
	s, err := t.db.seat(ctx, t.Volume)
	if err != nil {
		return err
	}
	if s.heldBy(t.db.node, t.Incarnation) && s.Coordinator.State == StateElected {
		t.won(&s.Seat, s.Term)
		return nil
	}
	volume, err := get[Volume](ctx, t.db, volumeKeys+t.Volume)
	if err != nil {
		return err
	}
	after, err := s.win(t.party(), volume.value.Epoch)
	if err != nil {
		return err
	}
	ops, err := seatOps(&s, &after, t.life.lease)
	if err != nil {
		return err
	}
	volume.value.Epoch = after.Epoch
	op, err := put(volume.key, &volume.value)
	if err != nil {
		return err
	}
	guards := append(s.unchanged(), volume.unchanged(), createdAt(sessionKeys+t.db.node, t.life.revision))
	resp, err := t.db.client.Txn(ctx).If(guards...).Then(append(ops, op)...).
		Else(clientv3.OpGet(sessionKeys + t.db.node)).Commit()
	switch {
	case leaseGone(err):
		return ErrSessionLost
	case err != nil:
		return unavailable(err)
	case resp.Succeeded:
		t.won(&after, resp.Header.Revision)
		return nil
	}
	return refused(resp.Responses[0].GetResponseRange().Kvs, t.life)
}

// refused tells a lost session from a race with another writer.
func refused(session []*mvccpb.KeyValue, l *life) error {
	if len(session) == 0 || session[0].CreateRevision != l.revision {
		return ErrSessionLost
	}
	return errAgain
}

func (t *Term) won(s *Seat, key int64) {
	t.Epoch, t.Previous, t.key = s.Epoch, s.Previous, key
}

// change applies a pure step to the term's seat, if it still is the term's.
func (t *Term) change(ctx context.Context, what string, step func(Seat) (Seat, error)) error {
	err := t.db.try(ctx, func(ctx context.Context) error {
		s, err := t.db.seat(ctx, t.Volume)
		if err != nil {
			return err
		}
		if s.Term != t.key {
			return t.over(&s.Seat)
		}
		after, err := step(s.Seat)
		if err != nil {
			return err
		}
		return t.db.changeSeat(ctx, &s, &after)
	})
	if err != nil && !errors.Is(err, errReleased) {
		return fmt.Errorf("cluster: %s volume %s, epoch %d: %w", what, t.Volume, t.Epoch, err)
	}
	return nil
}

// errReleased: an earlier try of the release took effect.
var errReleased = errors.New("released")

func (t *Term) over(s *Seat) error {
	if s.Released == t.Epoch {
		return errReleased
	}
	return ErrTermOver
}

func (db *DB) changeSeat(ctx context.Context, before *stored, after *Seat) error {
	ops, err := seatOps(before, after, clientv3.NoLease)
	if err != nil {
		return err
	}
	ok, err := db.commit(ctx, before.unchanged(), ops...)
	if err == nil && !ok {
		return errAgain
	}
	return err
}

func (t *Term) advance(ctx context.Context, what string, to TermState) error {
	return t.change(ctx, what, func(s Seat) (Seat, error) { return s.advance(to, t.party()) })
}

// Fenced records that Previous is proven out, or that there is none: mounting is allowed, and from
// now on this node is the one whom a successor has to fence.
func (t *Term) Fenced(ctx context.Context) error { return t.advance(ctx, "fence", StateFenced) }

// Mounted records that the file system is mounted.
func (t *Term) Mounted(ctx context.Context) error { return t.advance(ctx, "mount", StateMounted) }

// Open records that every node has acknowledged the term or is fenced.
func (t *Term) Open(ctx context.Context) error {
	err := t.advance(ctx, "open", StateOpen)
	if err == nil {
		t.opened.Store(true)
		t.wake()
	}
	return err
}

// Closing records that the volume is being handed over.
func (t *Term) Closing(ctx context.Context) error { return t.advance(ctx, "close", StateClosing) }

// Release ends the term in order, after Closing, or from StateElected: the caller vouches that the
// mount is gone and nothing of this term reaches the LUN any more, so that the next coordinator
// fences nobody. next is the node that should win, empty for any, or for whom an order names.
func (t *Term) Release(ctx context.Context, next string) error {
	t.leaving.Store(true)
	defer t.wake()
	return t.change(ctx, "release", func(s Seat) (Seat, error) { return s.release(next) })
}

// Abandon ends the term when it cannot be said that its mount is gone: the next coordinator fences
// this node first.
func (t *Term) Abandon(ctx context.Context, reason string) error {
	t.leaving.Store(true)
	defer t.wake()
	err := t.change(ctx, "abandon", func(s Seat) (Seat, error) { return s.evict(reason), nil })
	if errors.Is(err, ErrTermOver) {
		return nil
	}
	return err
}

// Evict takes the seat from a coordinator without asking it, if term (Seat.Term) still holds it. The
// next one finds it as Previous and fences it. Suspect takes all of a node's seats at once.
func (c *Coordinators) Evict(ctx context.Context, volume string, term int64, reason string) error {
	err := c.db.try(ctx, func(ctx context.Context) error {
		s, err := c.db.seat(ctx, volume)
		if err != nil || term == 0 || s.Term != term {
			return err
		}
		after := s.evict(reason)
		return c.db.changeSeat(ctx, &s, &after)
	})
	if err != nil {
		return fmt.Errorf("cluster: evict the coordinator of volume %s: %w", volume, err)
	}
	return nil
}
