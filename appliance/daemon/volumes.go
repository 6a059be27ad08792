package daemon

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"lunar/appliance/api"
	"lunar/appliance/cluster"
)

// maxVolumeName bounds a volume's name, which is also a folder of /ClusterStorage.
const maxVolumeName = 32

func checkVolumeName(name string) error {
	bad := func(r rune) bool {
		return !(r == '-' || r == '_' || r == '.' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z')
	}
	if name == "" || len(name) > maxVolumeName || strings.HasPrefix(name, ".") || strings.ContainsFunc(name, bad) {
		return api.Errorf(api.Invalid, "%q is not a volume name", name).
			WithHint("use 1 to %d letters, digits, '-', '_' and '.', not beginning with '.'", maxVolumeName)
	}
	return nil
}

// Volumes implements server.Volumes.
func (n *Node) Volumes(ctx context.Context) ([]api.Volume, error) {
	all := n.sortedVolumes()
	out := make([]api.Volume, len(all))
	for i, v := range all {
		out[i] = n.describe(ctx, v)
	}
	return out, nil
}

// Volume implements server.Volumes.
func (n *Node) Volume(ctx context.Context, name string) (api.VolumeDetail, error) {
	v, err := n.volume(name)
	if err != nil {
		return api.VolumeDetail{}, err
	}
	out := api.VolumeDetail{}
	var asked sync.WaitGroup
	asked.Go(func() { out.Nodes = n.rows(ctx, v) })
	out.Volume = n.describe(ctx, v)
	asked.Wait()
	return out, nil
}

func (n *Node) describe(ctx context.Context, v *volumeState) api.Volume {
	r := n.record(v)
	out := api.Volume{
		Name: r.Name, WWID: r.WWID, Device: r.Device, FileSystem: r.FileSystem, Epoch: r.Epoch, Created: r.Created,
		State: api.StateAbsent,
	}
	p, release := v.borrow()
	if p == nil {
		out.Reason = v.why()
		return out
	}
	defer release()
	out.Coordinator, out.Device, out.Fencing = v.coordinator(), p.dev.Path, p.fencer.describe()
	out.Epoch = p.vol.Status().Epoch
	out.State, out.Reason = p.state()
	space := p.askSpace(ctx, rowLimit)
	out.Size, out.Free = space.Size, space.Free
	return out
}

// coordinator is the node that coordinates the volume, as far as it is known here.
func (v *volumeState) coordinator() string {
	s := v.seat.Load()
	if s == nil {
		return ""
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.seen.Coordinator == nil {
		return ""
	}
	return s.seen.Coordinator.Node
}

// RenameVolume implements server.Volumes.
func (n *Node) RenameVolume(ctx context.Context, name, to string) error {
	if err := checkVolumeName(to); err != nil {
		return err
	}
	end, err := n.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	v, err := n.volume(name)
	if err != nil {
		return err
	}
	if err := n.db.RenameVolume(ctx, v.id, to); err != nil {
		return refusal(err)
	}
	n.mu.Lock()
	v.record.Name = to
	n.mu.Unlock()
	n.note(ctx, cluster.Event{Kind: "volume.rename", Volume: to, Text: fmt.Sprintf("volume %s is now %s", name, to)})
	return nil
}

// RedirectVolume implements server.Volumes. The wish outlives a restart.
func (n *Node) RedirectVolume(ctx context.Context, name string, on bool) error {
	end, err := n.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	v, err := n.volume(name)
	if err != nil {
		return err
	}
	record, err := n.db.UpdateVolume(ctx, v.id, func(r *cluster.Volume) error { r.SetRedirected(n.name, on); return nil })
	if err != nil {
		return refusal(err)
	}
	n.mu.Lock()
	v.record = record
	n.mu.Unlock()
	if p, release := v.borrow(); p != nil {
		defer release()
		if err := p.redirect(ctx, on); err != nil {
			return refusal(err)
		}
		n.followStates()
	}
	word := map[bool]string{true: "redirected", false: "direct"}[on]
	n.note(ctx, cluster.Event{Kind: "volume.redirect", Volume: name, Text: fmt.Sprintf("volume %s: I/O of node %s is %s by the user's request", name, n.name, word)})
	return nil
}

// EjectVolume implements server.Volumes: it refuses while LUNs map its images, then unmounts and
// forgets. Its files stay.
func (n *Node) EjectVolume(ctx context.Context, name string) error {
	end, err := n.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	v, err := n.volume(name)
	if err != nil {
		return err
	}
	if m := n.mappedOn(v.id); len(m) > 0 {
		return api.Errorf(api.Busy, "volume %s is exported: %s maps LUN %d to it", name, m[0].Target, m[0].LUN).
			WithHint("unmap its LUNs first: lunarctl target unmap %s %d", m[0].Target, m[0].LUN)
	}
	if err := n.unheld(v); err != nil {
		return err
	}
	if err := n.coordinateHere(ctx, v); err != nil {
		return err
	}
	if err := n.lastOne(ctx, v); err != nil {
		return refusal(errors.Join(err, n.ejecting(context.WithoutCancel(ctx), v, false)))
	}
	err = v.offLine(ctx, ejected)
	if err == nil {
		err = n.db.RemoveVolume(ctx, v.id)
	}
	if err != nil {
		ctx = context.WithoutCancel(ctx)
		return refusal(errors.Join(err, n.ejecting(ctx, v, false), n.onLine(ctx, v)))
	}
	if err := errors.Join(n.forget(v.id), n.awaitVacant(ctx, v.id)); err != nil {
		return refusal(err)
	}
	n.note(ctx, cluster.Event{Kind: "volume.eject", Volume: name, Text: fmt.Sprintf("volume %s on %s was ejected", name, n.record(v).Device)})
	return nil
}

// coordinateHere moves a volume to this node, so that its end is in order: a coordinator elsewhere whose seat goes
// shuts the file system down without writing its log.
func (n *Node) coordinateHere(ctx context.Context, v *volumeState) error {
	c := n.lastView(ctx).Seats[v.id].Coordinator
	if c == nil || c.Node == n.name {
		return nil
	}
	if _, err := n.MoveVolume(ctx, v.name(), n.name); err != nil {
		return fmt.Errorf("this node has to coordinate the volume for that: %w", err)
	}
	return nil
}

// ejecting records that no node is to take the volume, or that it may again.
func (n *Node) ejecting(ctx context.Context, v *volumeState, on bool) error {
	record, err := n.db.UpdateVolume(ctx, v.id, func(r *cluster.Volume) error { r.Ejecting = on; return nil })
	if err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	v.record = record
	return nil
}

// lastOne returns when no other node takes part in the volume, so that none mounts it after this one.
func (n *Node) lastOne(ctx context.Context, v *volumeState) error {
	if err := n.ejecting(ctx, v, true); err != nil {
		return err
	}
	other := ""
	_, err := awaitView(ctx, n.membership.Load().elections, coordinatorLimit, func(view *cluster.View) bool {
		other = ""
		for _, p := range view.Nodes {
			if _, takesPart := p.Paths[v.id]; takesPart && p.Node != n.name {
				other = p.Node
			}
		}
		return other == ""
	})
	if isLate(err) {
		return fmt.Errorf("node %s still uses volume %s: %w", other, v.name(), err)
	}
	return err
}

// awaitVacant returns when no node has the volume mounted any more.
func (n *Node) awaitVacant(ctx context.Context, volumeID string) error {
	view, err := awaitView(ctx, n.membership.Load().elections, coordinatorLimit, func(view *cluster.View) bool {
		return view.Seats[volumeID].Coordinator == nil
	})
	if isLate(err) {
		return fmt.Errorf("the volume is ejected, but node %s has not unmounted it yet: %w", view.Seats[volumeID].Coordinator.Node, err)
	}
	return err
}
