package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"lunar/appliance/api"
	"lunar/appliance/cluster"
	"lunar/iscsi"
	"lunar/iscsi/scsi"
)

// maxTargets bounds the targets of a node.
const maxTargets = 1024

// target is an exported target. Its name and scsi never change; Node.mu guards the rest.
type target struct {
	name   string
	scsi   *scsi.Target
	record cluster.Target // its LUNs are in luns
	luns   map[uint16]*lun
	reason string // why nobody may log in; empty: nothing is wrong
}

// lun is a row of a target's LUN map.
type lun struct {
	record cluster.LUN
	unit   *unit  // nil: not available now
	reason string // why
}

// target finds a target by name.
func (n *Node) target(name string) (*target, error) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	if t := n.targets[strings.ToLower(name)]; t != nil {
		return t, nil
	}
	return nil, api.Errorf(api.NotFound, "there is no target %q", name).WithHint("`lunarctl target list` shows the targets")
}

// Targets implements server.Targets.
func (n *Node) Targets(context.Context) ([]api.Target, error) {
	sessions := map[string]int{}
	for _, s := range n.front.Sessions() {
		sessions[s.Target]++
	}
	n.mu.RLock()
	defer n.mu.RUnlock()
	out := make([]api.Target, 0, len(n.targets))
	for _, t := range n.targets {
		d := n.describeTarget(t)
		d.Sessions = sessions[t.name]
		out = append(out, d)
	}
	slices.SortFunc(out, func(a, b api.Target) int { return cmp.Compare(a.Name, b.Name) })
	return out, nil
}

// describeTarget needs Node.mu.
func (n *Node) describeTarget(t *target) api.Target {
	out := api.Target{Name: t.name, LUNs: []api.LUN{}, Allow: t.record.Allow, Restricted: t.record.Restricted, Created: t.record.Created, Reason: t.reason}
	if c := t.record.CHAP; c != nil {
		out.CHAP = &api.CHAP{User: c.User, MutualUser: c.MutualUser}
	}
	for _, l := range t.luns {
		out.LUNs = append(out.LUNs, n.describeLUN(l))
	}
	slices.SortFunc(out.LUNs, func(a, b api.LUN) int { return cmp.Compare(a.Number, b.Number) })
	return out
}

// describeLUN needs Node.mu.
func (n *Node) describeLUN(l *lun) api.LUN {
	out := api.LUN{Number: l.record.Number, NAA: l.record.NAA, Serial: l.record.Serial, State: api.LUNOnline}
	volume := "?"
	if v := n.volumes[l.record.VolumeID]; v != nil {
		volume = v.record.Name
	}
	out.Image, out.ReadOnly = exported(volume, l.record.Path)
	if l.unit == nil {
		out.State, out.Reason = api.LUNUnavailable, l.reason
		return out
	}
	out.Size = l.unit.image.Size()
	return out
}

// CreateTarget implements server.Targets.
func (n *Node) CreateTarget(ctx context.Context, name string) (api.Target, error) {
	name = strings.ToLower(name)
	if err := iscsi.ValidName(name); err != nil {
		return api.Target{}, refusal(err)
	}
	end, err := n.begin(ctx)
	if err != nil {
		return api.Target{}, err
	}
	defer end()
	if n.targetCount() >= maxTargets {
		return api.Target{}, api.Errorf(api.Full, "a node has %d targets at most", maxTargets).WithHint("map several LUNs in one target")
	}
	record, err := n.db.CreateTarget(ctx, name)
	if errors.Is(err, cluster.ErrExists) {
		return api.Target{}, api.Errorf(api.Exists, "there is a target %s already", name)
	}
	if err != nil {
		return api.Target{}, refusal(err)
	}
	t, err := n.export(ctx, record)
	if err != nil {
		return api.Target{}, refusal(errors.Join(err, n.db.DeleteTarget(context.WithoutCancel(ctx), name)))
	}
	n.note(ctx, cluster.Event{Kind: "target.create", Target: name, Text: fmt.Sprintf("target %s was made", name)})
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.describeTarget(t), nil
}

// sortedTargets is the targets by name.
func (n *Node) sortedTargets() []*target {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return slices.SortedFunc(maps.Values(n.targets), func(a, b *target) int { return cmp.Compare(a.name, b.name) })
}

// lunsOf is a copy of a target's LUN map.
func (n *Node) lunsOf(t *target) map[uint16]*lun {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return maps.Clone(t.luns)
}

func (n *Node) targetCount() int {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return len(n.targets)
}

// export offers a target on every portal, with those of its LUNs that are available. The caller
// holds Node.changes.
func (n *Node) export(ctx context.Context, record cluster.Target) (*target, error) {
	t := &target{name: record.Name, record: record, luns: map[uint16]*lun{}}
	t.scsi = scsi.NewTarget(record.Name, scsi.TargetOptions{
		Buffers: n.engine.Pool(), Log: n.log, Post: n.post,
		Units:        n.directory.viewFrom(record.Name),
		Reservations: scsi.ReservationOptions{Store: n.reservations},
	})
	for _, l := range record.LUNs {
		t.luns[l.Number] = &lun{record: l}
		n.attach(ctx, t, t.luns[l.Number])
	}
	access, err := n.access(&record)
	if err != nil {
		t.reason = err.Error()
		n.log.Error("a target lets nobody in", "target", t.name, "error", err)
	}
	n.directory.admit(t.name, access)
	if err := n.front.AddTarget(iscsi.Export{Name: t.name, Target: t.scsi, Access: access}); err != nil {
		n.directory.admit(t.name, nil)
		return nil, errors.Join(err, n.detachAll(ctx, t))
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.targets[t.name] = t
	return t, nil
}

func (n *Node) post(lane int, fn func()) error { return n.engine.Ring(lane).Post(fn) }

// attach brings a LUN on line, or notes why it cannot be. The caller holds Node.changes.
func (n *Node) attach(ctx context.Context, t *target, l *lun) {
	u, err := n.acquire(ctx, l.record)
	if err == nil {
		if err = t.scsi.Map(l.record.Number, u.lu); err == nil {
			err = n.reservations.refresh(ctx, u.naa) // what came while it was being mapped
		}
		if err != nil {
			_ = t.scsi.Unmap(l.record.Number) // unless it was not mapped
			err = errors.Join(err, n.release(ctx, u))
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if err != nil {
		l.unit, l.reason = nil, err.Error()
		n.log.Warn("a LUN is not available", "target", t.name, "lun", l.record.Number, "error", err)
		return
	}
	l.unit, l.reason = u, ""
	n.directory.add(t.name, l.record.NAA, u.lu)
}

// detach takes a LUN off line. The caller holds Node.changes.
func (n *Node) detach(ctx context.Context, t *target, l *lun) error {
	n.mu.Lock()
	u := l.unit
	l.unit = nil
	n.mu.Unlock()
	if u == nil {
		return nil
	}
	n.directory.remove(t.name, l.record.NAA)
	return errors.Join(t.scsi.Unmap(l.record.Number), n.release(ctx, u))
}

func (n *Node) detachAll(ctx context.Context, t *target) error {
	var errs []error
	for _, l := range t.luns {
		errs = append(errs, n.detach(ctx, t, l))
	}
	return errors.Join(errs...)
}

// sessionEnd bounds the wait for initiators to leave a target that is deleted.
const sessionEnd = 15 * time.Second

// DeleteTarget implements server.Targets.
func (n *Node) DeleteTarget(ctx context.Context, name string, force bool) error {
	end, err := n.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	t, err := n.target(name)
	if err != nil {
		return err
	}
	if err := n.unused(ctx, t); err != nil && !force {
		return err
	}
	if err := n.db.DeleteTarget(ctx, t.name); err != nil {
		return refusal(err)
	}
	ctx = context.WithoutCancel(ctx)
	err = n.withdraw(ctx, t)
	n.note(ctx, cluster.Event{Kind: "target.delete", Target: t.name, Text: fmt.Sprintf("target %s was deleted", t.name)})
	return refusal(err)
}

// unused refuses a target with sessions or LUNs, and says which.
func (n *Node) unused(ctx context.Context, t *target) error {
	for _, s := range n.front.Sessions() {
		if s.Target == t.name {
			return api.Errorf(api.Refused, "%s is logged in to target %s from %s", s.Initiator, t.name, s.Remote).
				WithHint("log it out, or give --force: its I/O fails then")
		}
	}
	if err := n.unusedElsewhere(ctx, t.name); err != nil {
		return err
	}
	if len(t.luns) > 0 {
		return api.Errorf(api.Refused, "target %s has %d LUNs mapped", t.name, len(t.luns)).
			WithHint("unmap them, or give --force; the images stay")
	}
	return nil
}

// withdraw ends a target's sessions and takes its LUNs off line. The caller holds Node.changes.
func (n *Node) withdraw(ctx context.Context, t *target) error {
	wait, cancel := context.WithTimeout(ctx, sessionEnd)
	defer cancel()
	err := n.front.RemoveTarget(wait, t.name)
	n.directory.admit(t.name, nil)
	err = errors.Join(err, n.detachAll(ctx, t))
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.targets, t.name)
	return err
}

// Map implements server.Targets.
func (n *Node) Map(ctx context.Context, name string, r api.Map) (api.LUN, error) {
	volume, path, err := api.SplitImage(r.Image)
	if err != nil {
		return api.LUN{}, err
	}
	end, err := n.begin(ctx)
	if err != nil {
		return api.LUN{}, err
	}
	defer end()
	t, err := n.target(name)
	if err != nil {
		return api.LUN{}, err
	}
	if path, err = n.mappable(ctx, volume, path); err != nil {
		return api.LUN{}, err
	}
	v, err := n.volume(volume)
	if err != nil {
		return api.LUN{}, err
	}
	number := -1
	if r.LUN != nil {
		number = int(*r.LUN)
	}
	record, err := n.db.Map(ctx, t.name, v.id, path, number)
	if err != nil {
		return api.LUN{}, refusal(err)
	}
	return n.mapNew(ctx, t, record)
}

// mapNew brings a LUN on line that was just recorded, or takes the record back.
func (n *Node) mapNew(ctx context.Context, t *target, record cluster.LUN) (api.LUN, error) {
	l := &lun{record: record}
	n.attach(ctx, t, l)
	if l.unit == nil {
		_, err := n.db.Unmap(context.WithoutCancel(ctx), t.name, record.Number)
		return api.LUN{}, refusal(errors.Join(errors.New(l.reason), err))
	}
	n.mu.Lock()
	t.luns[record.Number] = l
	out := n.describeLUN(l)
	n.mu.Unlock()
	n.followStates()
	n.note(ctx, cluster.Event{Kind: "target.map", Target: t.name, Text: fmt.Sprintf("LUN %d of %s is image %s, naa.%s", record.Number, t.name, out.Image, record.NAA)})
	return out, nil
}

// Unmap implements server.Targets.
func (n *Node) Unmap(ctx context.Context, name string, number uint16) error {
	end, err := n.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	t, err := n.target(name)
	if err != nil {
		return err
	}
	l := t.luns[number] // only changes write it
	if l == nil {
		return api.Errorf(api.NotFound, "target %s has no LUN %d", t.name, number)
	}
	if _, err := n.db.Unmap(ctx, t.name, number); err != nil {
		return refusal(err)
	}
	ctx = context.WithoutCancel(ctx)
	err = n.detach(ctx, t, l)
	n.mu.Lock()
	delete(t.luns, number)
	n.mu.Unlock()
	n.note(ctx, cluster.Event{Kind: "target.unmap", Target: t.name, Text: fmt.Sprintf("LUN %d of %s was unmapped", number, t.name)})
	return refusal(err)
}
