package daemon

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"lunar/appliance/api"
	"lunar/appliance/config"
	"lunar/datapath/device/loopdev"
)

// nodes are several nodes in this process, each with its own loop device over one file as its path to the LUN.
type nodes struct {
	all   []*bench
	loops []*loopdev.Loop
}

// newNodes makes a cluster of n nodes. Its addresses are loopback's.
func newNodes(t *testing.T, n int) *nodes {
	t.Helper()
	before := runtime.GOMAXPROCS(4 + 4*n) // each engine's rings keep a P while they wait
	t.Cleanup(func() { runtime.GOMAXPROCS(before) })
	file := filepath.Join(t.TempDir(), "lun")
	must(t, os.WriteFile(file, nil, 0o600))
	must(t, os.Truncate(file, 1<<30))
	c := &nodes{}
	for i := range n {
		loop, err := loopdev.Attach(file, loopdev.Options{})
		must(t, err)
		t.Cleanup(func() { must(t, loop.Detach()) })
		b := newBench(t)
		b.config.Node.Name = fmt.Sprintf("n%d", i+1)
		b.config.Cluster.Address = fmt.Sprintf("127.0.%d.%d", os.Getpid()%250+1, i+1)
		b.config.Cluster.Profile = config.ProfileFast
		b.config.Cluster.Lease = config.Duration(20 * time.Second) // a loaded machine renews late
		b.config.ISCSI.Portals = []string{b.config.Cluster.Address + ":0"}
		b.config.Storage = config.Storage{Devices: []string{loop.Path}, SharedKernel: true}
		b.config.Fence.InFlight = config.Duration(300 * time.Millisecond)
		b.config.Engine.Rings = 1
		c.all, c.loops = append(c.all, b), append(c.loops, loop)
	}
	first := c.all[0]
	_, err := first.start().InitCluster(t.Context())
	must(t, err)
	for _, b := range c.all[1:] {
		token, err := first.client.NewToken(t.Context(), api.NewToken{})
		must(t, err)
		_, err = b.start().JoinCluster(t.Context(), api.Join{Address: first.config.Cluster.Address, Token: token.Token})
		must(t, err)
	}
	return c
}

func (c *nodes) stop() {
	var all sync.WaitGroup // one after the other, the last would be without a majority for too long
	for _, b := range c.all {
		all.Go(b.stop)
	}
	all.Wait()
}

func TestThreeNodes(t *testing.T) {
	if !apart(t) {
		return
	}
	c := newNodes(t, 3)
	defer c.stop()
	first := c.all[0]
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	_, err := first.client.AddVolume(ctx, api.AddVolume{Device: c.loops[0].Path, Format: "xfs"})
	refused(t, err, api.Refused, "cannot be fenced", "--allow-unfenced")
	_, err = first.client.AddVolume(ctx, api.AddVolume{Device: c.loops[0].Path, Format: "xfs", AllowUnfenced: true})
	must(t, err)
	_, err = first.client.CreateImage(ctx, api.CreateImage{Image: "Volume1/disk.img", Size: 64 << 20})
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
	for i, b := range c.all {
		must(t, qemuIO(t, b.portal(), "", fmt.Sprintf("write -P %d %dM 1M", i+1, i)))
	}
	for _, b := range c.all {
		must(t, qemuIO(t, b.portal(), "", "read -P 1 0 1M", "read -P 2 1M 1M", "read -P 3 2M 1M"))
	}
	_, err = first.daemon.node.MoveVolume(ctx, "Volume1", "n2")
	must(t, err)
	for i, b := range c.all {
		must(t, qemuIO(t, b.portal(), "", fmt.Sprintf("write -P %d %dM 1M", i+11, i+8)))
	}
	for _, b := range c.all {
		must(t, qemuIO(t, b.portal(), "", "read -P 11 8M 1M", "read -P 12 9M 1M", "read -P 13 10M 1M", "read -P 3 2M 1M"))
	}
	must(t, first.client.Unmap(ctx, iqn, 0))
	must(t, first.client.EjectVolume(ctx, "Volume1")) // from a node that does not coordinate it
	must(t, exec.Command("xfs_repair", "-n", c.loops[0].Path).Run())
	for _, b := range c.all {
		eventually(t, 10*time.Second, "the volume is gone on every node", func() bool {
			all, err := b.client.Volumes(ctx)
			return err == nil && len(all) == 0
		})
	}
}

// A LUN that a cluster has not ejected is refused elsewhere; one that it has ejected is not.
func TestVolumeOfAnotherCluster(t *testing.T) {
	if !apart(t) {
		return
	}
	c := newNodes(t, 1)
	defer c.stop()
	first, device := c.all[0], c.loops[0].Path
	_, err := first.client.AddVolume(t.Context(), api.AddVolume{Device: device, Format: "xfs", AllowUnfenced: true})
	must(t, err)
	first.stop()

	other := newBench(t)
	other.config.Storage = first.config.Storage
	other.start()
	defer other.stop()
	_, err = other.client.AddVolume(t.Context(), api.AddVolume{Device: device})
	refused(t, err, api.Refused, "another cluster", "--force")
	_, err = other.client.AddVolume(t.Context(), api.AddVolume{Device: device, Force: true})
	must(t, err)
	must(t, other.client.EjectVolume(t.Context(), "Volume1"))
	_, err = other.client.AddVolume(t.Context(), api.AddVolume{Device: device})
	must(t, err)
}
