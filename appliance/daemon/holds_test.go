package daemon

import (
	"context"
	"testing"
	"time"

	"lunar/appliance/api"
	"lunar/datapath/volume"
)

// heldLimit is how soon every node follows a hold, or its end.
const heldLimit = 2 * time.Second

// followed waits until every node has the state, and tells how long that took.
func (c *nodes) followed(t *testing.T, state api.State, reason string) {
	t.Helper()
	began := time.Now()
	for _, b := range c.all {
		eventually(t, 10*time.Second, "every node is "+string(state), func() bool {
			row := b.daemon.node.ownRow(b.daemon.node.sortedVolumes()[0])
			return row.State == state && row.Reason == reason
		})
	}
	if took := time.Since(began); took > heldLimit {
		t.Errorf("all nodes were %s after %v", state, took)
	}
}

// An operation's hold redirects the I/O of every node, by its name, and ends with it or with its owner.
func TestHoldRedirectsEveryNode(t *testing.T) {
	if !apart(t) {
		return
	}
	c := newNodes(t, 2)
	defer c.stop()
	first, second := c.all[0], c.all[1]
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	_, err := first.client.AddVolume(ctx, api.AddVolume{Device: c.loops[0].Path, Format: "xfs", AllowUnfenced: true})
	must(t, err)
	_, err = first.client.CreateImage(ctx, api.CreateImage{Image: "Volume1/disk.img", Size: 64 << 20, Thick: true})
	must(t, err)
	_, err = first.client.CreateTarget(ctx, iqn)
	must(t, err)
	_, err = first.client.Map(ctx, iqn, api.Map{Image: "Volume1/disk.img"})
	must(t, err)
	for _, b := range c.all {
		eventually(t, 10*time.Second, "the LUN is on every node", func() bool {
			all, err := b.client.Targets(ctx)
			return err == nil && len(all) == 1 && len(all[0].LUNs) == 1 && all[0].LUNs[0].State == api.LUNOnline
		})
	}
	must(t, qemuIO(t, second.portal(), "", "write -P 1 0 1M"))
	c.followed(t, api.Direct, "")
	_, err = first.client.MoveVolume(ctx, "Volume1", "n1")
	must(t, err)

	n := first.daemon.node
	h, err := n.hold(ctx, n.sortedVolumes()[0], volume.Maintenance, true, "test")
	must(t, err)
	must(t, h.redirected(ctx))
	c.followed(t, api.Redirected, "Maintenance")
	_, err = n.hold(ctx, h.v, volume.Maintenance, true, "another")
	refused(t, err, api.Busy, "held", "")
	other := second.daemon.node
	_, err = other.hold(ctx, other.sortedVolumes()[0], volume.Maintenance, true, "another")
	refused(t, err, api.Busy, "test on node n1", "")
	must(t, first.client.Unmap(ctx, iqn, 0))
	refused(t, first.client.EjectVolume(ctx, "Volume1"), api.Busy, "held: test", "wait")
	_, err = first.client.Map(ctx, iqn, api.Map{Image: "Volume1/disk.img"}) // opened while the volume is held
	must(t, err)
	eventually(t, 10*time.Second, "the LUN is on n2", func() bool {
		all, err := second.client.Targets(ctx)
		return err == nil && len(all[0].LUNs) == 1 && all[0].LUNs[0].State == api.LUNOnline
	})
	before := other.ownRow(other.sortedVolumes()[0])
	must(t, qemuIO(t, second.portal(), "", "write -P 2 1M 1M", "read -P 1 0 1M"))
	after := other.ownRow(other.sortedVolumes()[0])
	if after.DirectWrite != before.DirectWrite || after.RedirectedWrite == before.RedirectedWrite {
		t.Errorf("a write while the volume is held: %+v, before it %+v", after, before)
	}
	h.end(ctx)
	c.followed(t, api.Direct, "")
	must(t, qemuIO(t, second.portal(), "", "write -P 3 2M 1M", "read -P 2 1M 1M"))
	if direct := other.ownRow(other.sortedVolumes()[0]); direct.DirectWrite == after.DirectWrite {
		t.Errorf("no write is direct after the hold: %+v", direct)
	}

	h, err = other.hold(ctx, other.sortedVolumes()[0], volume.Backup, true, "its owner dies")
	must(t, err)
	c.followed(t, api.Redirected, "Backup")
	other.membership.Load().session.Renew("as after a death")
	<-h.Lost()
	c.followed(t, api.Direct, "")
	h.end(ctx)
}
