package cluster

import (
	"context"
	"errors"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// Drained is the record of a node that is to coordinate nothing, until Resume. It outlives restarts.
type Drained struct {
	Since time.Time `json:"since"`
	By    string    `json:"by"`
}

// Move orders a volume to another node: its coordinator sees it, closes, and hands over. An empty to
// leaves the choice. It returns the epoch that is to end, for Await; a volume that is there already
// gives the epoch before. ErrNotEligible: the node is not there, is draining, or does not reach the LUN.
func (c *Coordinators) Move(ctx context.Context, volume, to string) (after uint64, err error) {
	view, err := c.View(ctx)
	if err == nil {
		err = view.mayMove(volume, to)
	}
	if err == nil {
		err = c.db.try(ctx, func(ctx context.Context) error {
			after, err = c.db.order(ctx, volume, to)
			return err
		})
	}
	if err != nil {
		return 0, fmt.Errorf("cluster: move volume %s: %w", volume, err)
	}
	return after, nil
}

func (v *View) mayMove(volume, to string) error {
	if _, known := v.Seats[volume]; !known {
		return fmt.Errorf("%w: no node reaches such a volume", ErrNotFound)
	}
	if to == "" {
		return v.otherThan(volume)
	}
	node, there := v.Nodes[to]
	switch {
	case !there:
		return fmt.Errorf("node %s %w: it is not in the cluster now", to, ErrNotEligible)
	case node.Draining:
		return fmt.Errorf("node %s %w: it is draining; resume it first", to, ErrNotEligible)
	case !node.Paths[volume]:
		return fmt.Errorf("node %s %w: it does not reach the LUN", to, ErrNotEligible)
	}
	return nil
}

func (v *View) otherThan(volume string) error {
	for _, node := range v.Rank(volume) {
		if holder := v.Seats[volume].Coordinator; (holder == nil || holder.Node != node) && !v.Nodes[node].Draining {
			return nil
		}
	}
	return fmt.Errorf("%w: no other node that reaches the LUN", ErrNotEligible)
}

func (db *DB) order(ctx context.Context, volume, to string) (uint64, error) {
	s, err := db.seat(ctx, volume)
	if err != nil {
		return 0, err
	}
	after := s.Seat
	switch {
	case s.Coordinator == nil:
		after.Next = to
	case s.Coordinator.Node == to:
		after.Order = nil
	default:
		after.Order = &Order{To: to, Epoch: s.Epoch}
	}
	if err := db.changeOrder(ctx, &s, &after); err != nil {
		return 0, err
	}
	if s.Coordinator != nil && s.Coordinator.Node == to {
		return s.Epoch - 1, nil
	}
	return s.Epoch, nil
}

// changeOrder writes the succession alone: the coordinator's key stays as it is.
func (db *DB) changeOrder(ctx context.Context, before *stored, after *Seat) error {
	op, err := put(successionKeys+after.Volume, &after.Succession)
	if err != nil {
		return err
	}
	ok, err := db.commit(ctx, before.unchanged(), op)
	if err == nil && !ok {
		return errAgain
	}
	return err
}

// Await waits until a term after the given epoch is open, and returns its seat.
func (c *Coordinators) Await(ctx context.Context, volume string, after uint64) (Seat, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var seat Seat
	found := errors.New("found")
	err := c.watch(ctx, func(v *View) error {
		seat = v.Seats[volume]
		if seat.Coordinator != nil && seat.Epoch > after && seat.Coordinator.State == StateOpen {
			return found
		}
		return nil
	})
	if errors.Is(err, found) {
		return seat, nil
	}
	return seat, fmt.Errorf("cluster: await a coordinator of volume %s: %w", volume, err)
}

// Drain orders a node's volumes to others and keeps it from coordinating, until Resume.
func (c *Coordinators) Drain(ctx context.Context, node string) error {
	op, err := put(drainKeys+node, &Drained{Since: time.Now().UTC(), By: c.db.node})
	if err == nil {
		err = c.db.try(ctx, func(ctx context.Context) error {
			_, err := c.db.commit(ctx, []clientv3.Cmp{absent(drainKeys + node)}, op)
			return err
		})
	}
	if err != nil {
		return fmt.Errorf("cluster: drain node %s: %w", node, err)
	}
	return nil
}

// Resume lets a node coordinate again. Nothing moves back by itself.
func (c *Coordinators) Resume(ctx context.Context, node string) error {
	err := c.db.try(ctx, func(ctx context.Context) error {
		_, err := c.db.commit(ctx, nil, clientv3.OpDelete(drainKeys+node))
		return err
	})
	if err != nil {
		return fmt.Errorf("cluster: resume node %s: %w", node, err)
	}
	return nil
}
