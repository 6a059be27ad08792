package daemon

import (
	"context"
	"fmt"
	"sync"
	"time"

	"lunar/appliance/api"
	"lunar/appliance/cluster"
	"lunar/datapath/volume"
)

// reasonsOfHolds are the reasons for which an operation redirects a volume's I/O, by their names in the database.
var reasonsOfHolds = map[string]volume.Reason{
	volume.Maintenance.String(): volume.Maintenance,
	volume.Backup.String():      volume.Backup,
}

// redirects is why holds send all I/O through the coordinator, 0: they do not.
func redirects(holds map[string]cluster.Hold) (why volume.Reason) {
	for name, h := range holds {
		if h.Redirect {
			why |= reasonsOfHolds[name]
		}
	}
	return why
}

// ownHolds are the holds of this node's operations, also those about to be taken.
type ownHolds struct {
	mu  sync.Mutex // guards all
	all map[string]bool
}

// begin is false when the node has that one already.
func (o *ownHolds) begin(key string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.all[key] {
		return false
	}
	if o.all == nil {
		o.all = map[string]bool{}
	}
	o.all[key] = true
	return true
}

func (o *ownHolds) end(key string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.all, key)
}

func (o *ownHolds) has(key string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.all[key]
}

// held is a hold of this node. Its end is the caller's duty.
type held struct {
	*cluster.Holding
	node *Node
	v    *volumeState
	key  string
}

// hold records that an operation of this node holds a volume, what in words. With redirect every node sends its I/O
// to the coordinator from then on. Busy: another operation for that reason is under way.
func (n *Node) hold(ctx context.Context, v *volumeState, reason volume.Reason, redirect bool, what string) (*held, error) {
	return n.holdAs(ctx, v, reason, cluster.Hold{Redirect: redirect, Operation: what})
}

// holdAs is hold for who has more to tell of it.
func (n *Node) holdAs(ctx context.Context, v *volumeState, reason volume.Reason, record cluster.Hold) (*held, error) {
	e, err := n.elections(ctx)
	if err != nil {
		return nil, err
	}
	h := &held{node: n, v: v, key: v.id + "/" + reason.String()}
	if !n.holds.begin(h.key) {
		return nil, api.Errorf(api.Busy, "volume %s is held for %s already, by this node", v.name(), reason).
			WithHint("wait for its end; lunarctl log --volume %s tells of it", v.name())
	}
	record.Reason = reason.String()
	h.Holding, err = e.Hold(ctx, v.id, record)
	if err != nil {
		n.holds.end(h.key)
		return nil, refusal(err)
	}
	return h, nil
}

// end takes the hold back, also when ctx has ended. While the database does not answer the hold stays, and is taken
// back when it is seen again.
func (h *held) end(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordLimit)
	defer cancel()
	h.node.holds.end(h.key)
	if err := h.Release(ctx); err != nil {
		h.node.log.Warn("a volume's hold was not taken back yet", "volume", h.v.name(), "reason", h.Reason, "error", err)
	}
}

// heldPoll is between the looks whether all layouts have come back.
const heldPoll = 2 * time.Millisecond

// redirected returns when no I/O of any node is direct, nor will be while the hold lasts. The coordinator is here.
func (h *held) redirected(ctx context.Context) error {
	tick := time.NewTicker(heldPoll)
	defer tick.Stop()
	for {
		s := h.v.seat.Load()
		if s == nil || s.coordinator(0) == nil {
			return api.Errorf(api.Unavailable, "this node does not coordinate volume %s any more", h.v.name())
		}
		if s.withholds() {
			return nil
		}
		select {
		case <-tick.C:
		case <-h.Lost():
			return cluster.ErrSessionLost
		case <-ctx.Done():
			return fmt.Errorf("volume %s is not redirected on all nodes: %w", h.v.name(), ctx.Err())
		}
	}
}

// heedHolds brings all volumes to what the view says that holds them, and ends those of this node that no operation
// has any more. It does not block.
func (m *membership) heedHolds(v *cluster.View) {
	n := m.node
	for _, volume := range n.sortedVolumes() {
		if s := volume.seat.Load(); s != nil {
			s.heed(v.Holds[volume.id])
		}
	}
	for id, holds := range v.Holds {
		for reason, h := range holds {
			if h.Node != n.name || m.session == nil || h.Incarnation != m.session.Incarnation() || n.holds.has(id+"/"+reason) {
				continue
			}
			m.tasks.Go(func() {
				ctx, cancel := context.WithTimeout(context.Background(), recordLimit)
				defer cancel()
				if err := m.elections.EndHold(ctx, id, h); err != nil {
					n.log.Warn("a hold that nobody has was not ended", "volume", id, "reason", reason, "error", err)
				}
			})
		}
	}
}

// heed follows what holds the volume. It does not block: what is direct now the coordinator recalls.
func (s *seat) heed(holds map[string]cluster.Hold) {
	why := redirects(holds)
	if p, release := s.v.tryBorrow(); p != nil {
		p.vol.Heed(volume.Maintenance|volume.Backup, why)
		release()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	here := s.here
	if here == nil || here.why != "" || here.finished {
		return
	}
	here.coord.Suspend(suspensionOf(holds))
	here.withhold = why != 0
	if (here.unsure || here.withhold != here.withheld) && !here.regranting {
		here.regranting = true
		here.tasks.Go(func() { s.regrant(here) })
	}
}

// regrantAgain is the pause after layouts that were not recalled.
const regrantAgain = 100 * time.Millisecond

// regrant recalls all layouts, or grants them anew, until it is as wished or the term ends.
func (s *seat) regrant(here *tenure) {
	for {
		s.mu.Lock()
		want := here.withhold
		if !here.unsure && want == here.withheld || here.ctx.Err() != nil {
			here.regranting = false
			s.mu.Unlock()
			return
		}
		here.unsure = true
		s.mu.Unlock()
		do := here.coord.Grant
		if want {
			do = here.coord.Withhold
		}
		began := time.Now()
		err := do(here.ctx)
		s.mu.Lock()
		here.withheld, here.unsure = want, err != nil
		s.mu.Unlock()
		s.tellRegrant(here, want, time.Since(began), err)
		if err != nil && here.ctx.Err() == nil {
			s.log.Warn("layouts", "withhold", want, "error", err)
			_ = pause(here.ctx, regrantAgain)
		}
	}
}

// withholds tells whether this node's own term has taken all layouts back.
func (s *seat) withholds() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.here != nil && s.here.withhold && s.here.withheld && !s.here.unsure
}

// holdsOf is what holds a volume, as far as this node has heard.
func (n *Node) holdsOf(volumeID string) map[string]cluster.Hold {
	if m := n.membership.Load(); m != nil {
		return m.view.Load().Holds[volumeID]
	}
	return nil
}

// unheld refuses what no operation on the volume must meet.
func (n *Node) unheld(v *volumeState) error {
	for _, h := range n.holdsOf(v.id) {
		return api.Errorf(api.Busy, "volume %s is held: %s, on node %s since %s", v.name(), h.Operation, h.Node, h.Since.Format(time.TimeOnly)).
			WithHint("wait for its end, or end it; lunarctl log --volume %s tells of it", v.name())
	}
	return nil
}
