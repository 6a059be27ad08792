package lab

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"lunar/appliance/api"
)

// Cluster is several nodes with one LUN: each a network namespace on one segment, with a loop device of its own
// over one file as its path to the LUN. The initiators are in the lab's own namespace.
type Cluster struct {
	Nodes   []*ClusterNode
	Network *Network
	Second  *Network // nil unless asked for
	// Device is one more path, which no node has, for what comes after them: fsck, checksums.
	Device *Loop

	lab *Lab
}

// ClusterNode is one of them. Kill of the embedded Lunard kills the daemon; its guard ends by itself.
type ClusterNode struct {
	*Lunard
	Host *Host
	Path *Loop
	API  *api.Client
	Name string

	cluster *Cluster
}

// ClusterConfig says what to make; zero values give three nodes and a LUN of 2 GiB.
type ClusterConfig struct {
	Nodes int
	Size  int64  // of the LUN, bytes
	Disk  bool   // the LUN lies in a file of the lab's folder, not in memory
	Extra string // added to each node's configuration file
	// Second is one more network. The cluster gives the nodes their addresses then, which both networks reach.
	Second bool
	// Family is the only one that the nodes have; 0 is both, with IPv4 for the subnets.
	Family Family
	// Lease is cluster.lease, "" its default.
	Lease string
	// Sys is that of the hosts.
	Sys bool
	// Hidden is that of the last host.
	Hidden []string
}

// Volume, Image and Target are what Serve makes.
const (
	ClusterVolume = "Volume1"
	ClusterImage  = ClusterVolume + "/disk.img"
	ClusterTarget = "iqn.2026-01.lunar.test:cluster"
	portalPort    = 3260
)

// Cluster starts nodes and joins them; there is no volume yet.
func (l *Lab) Cluster(ctx context.Context, c ClusterConfig) (*Cluster, error) {
	if c.Nodes == 0 {
		c.Nodes = 3
	}
	if c.Size == 0 {
		c.Size = 2 << 30
	}
	network, err := l.NetworkOf(ctx, c.Family)
	if err != nil {
		return nil, err
	}
	loops, err := l.paths(&c)
	if err != nil {
		return nil, err
	}
	out := &Cluster{Network: network, Device: loops[c.Nodes], lab: l}
	if c.Second {
		if out.Second, err = l.NetworkOf(ctx, c.Family); err != nil {
			return nil, err
		}
	}
	for i := range c.Nodes {
		n, err := out.node(ctx, i, loops[i], c)
		if err != nil {
			return nil, err
		}
		out.Nodes = append(out.Nodes, n)
	}
	err = out.join(ctx)
	return out, err
}

// paths makes devices over one file, one for each node and one more.
func (l *Lab) paths(c *ClusterConfig) ([]*Loop, error) {
	open := inMemory
	if c.Disk {
		open = l.onDisk
	}
	file, err := open(c.Size)
	if err != nil {
		return nil, fmt.Errorf("LUN: %w", err)
	}
	defer file.Close() //nolint:errcheck // the devices have their own references
	loops := make([]*Loop, c.Nodes+1)
	for i := range loops {
		dev, err := attach(file, 512)
		if err != nil {
			return nil, fmt.Errorf("path to the LUN: %w", err)
		}
		loops[i] = &Loop{Path: dev.Name(), File: file.Name(), dev: dev}
		l.own(loops[i].Close)
	}
	return loops, nil
}

// inMemory is a file that cannot grow: a write past its end, which is where a cut path leads, fails.
func inMemory(size int64) (*os.File, error) {
	if have := available(); have < 2*size {
		return nil, fmt.Errorf("it needs up to %d bytes of memory, %d are free", size, have)
	}
	fd, err := unix.MemfdCreate(fmt.Sprintf("lunar-lun-%d-%d", os.Getpid(), luns.Add(1)), unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, err
	}
	memory := os.NewFile(uintptr(fd), "memory")
	defer memory.Close() //nolint:errcheck // it is opened once more
	if err := memory.Truncate(size); err != nil {
		return nil, err
	}
	if _, err := unix.FcntlInt(memory.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_GROW|unix.F_SEAL_SHRINK); err != nil {
		return nil, err
	}
	return os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", fd), os.O_RDWR, 0) // only so it can do direct I/O
}

// onDisk is a file all of whose blocks are there.
func (l *Lab) onDisk(size int64) (*os.File, error) {
	file, err := os.OpenFile(l.Path("lun"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Fallocate(int(file.Fd()), 0, 0, size); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}

// luns numbers the LUNs of this process.
var luns atomic.Uint32

func (c *Cluster) node(ctx context.Context, i int, path *Loop, config ClusterConfig) (*ClusterNode, error) {
	name := fmt.Sprintf("n%d", i+1)
	host, err := c.lab.Host(ctx, name)
	if err != nil {
		return nil, err
	}
	host.Sys = config.Sys
	if i == config.Nodes-1 {
		host.Hidden = config.Hidden
	}
	if config.Family == IPv4 {
		if err := host.WithoutIPv6(ctx); err != nil {
			return nil, err
		}
	}
	address, err := host.Join(ctx, c.Network, byte(i+1))
	if err != nil {
		return nil, err
	}
	own := fmt.Sprintf("address = %q\n", address)
	if c.Second != nil {
		own = "" // the cluster gives it
		if _, err := host.Join(ctx, c.Second, byte(i+1)); err != nil {
			return nil, err
		}
	}
	c.lab.own(func() error { return host.clear(context.Background()) }) //nolint:contextcheck // at the lab's end
	n := &ClusterNode{Host: host, Path: path, Name: name, cluster: c}
	n.Lunard, err = c.lab.Lunard(ctx, Config{
		Name: name, Host: host, Address: address.String(), Port: portalPort,
		Extra: fmt.Sprintf("\n[cluster]\n%sprofile = \"fast\"\nlease = %q\n\n[storage]\ndevices = [%q]\nshared_kernel = true\n\n"+
			"[fence]\nin_flight = \"300ms\"\n\n[engine]\nrings = 1\nbuffer_pool_mib = 32\n", own, cmp.Or(config.Lease, "2s"), path.Path) + config.Extra,
	})
	if err != nil {
		return nil, err
	}
	n.API = api.NewClient(n.Socket)
	return n, nil
}

func (c *Cluster) join(ctx context.Context) error {
	first := c.Nodes[0]
	if _, err := first.API.InitCluster(ctx); err != nil {
		return fmt.Errorf("cluster init: %w", err)
	}
	for _, n := range c.Nodes[1:] {
		token, err := first.API.NewToken(ctx, api.NewToken{})
		if err != nil {
			return fmt.Errorf("cluster token: %w", err)
		}
		if _, err := n.API.JoinCluster(ctx, api.Join{Address: first.Address, Token: token.Token}); err != nil {
			return fmt.Errorf("node %s: cluster join: %w", n.Name, err)
		}
	}
	return c.awaitVotes(ctx)
}

// awaitVotes waits until the database lives on without any one node.
func (c *Cluster) awaitVotes(ctx context.Context) error {
	const enough = 3
	if len(c.Nodes) < enough {
		return nil
	}
	return Poll(startLimit, func() error {
		st, err := c.Nodes[0].API.Cluster(ctx)
		if err == nil && min(st.Voters, st.Living) < enough {
			err = fmt.Errorf("%d voters live, not %d", st.Living, enough)
		}
		return err
	})
}

// Serve makes the LUN a volume, with an image of size bytes that all nodes export, and waits until they do.
func (c *Cluster) Serve(ctx context.Context, size int64) error {
	first := c.Nodes[0]
	_, err := first.API.AddVolume(ctx, api.AddVolume{Device: first.Path.Path, Name: ClusterVolume, Format: "xfs", AllowUnfenced: true})
	if err != nil {
		return err
	}
	return c.Export(ctx, ClusterImage, ClusterTarget, size)
}

// Export makes an image and a target with it as LUN 0, and waits until every node has it.
func (c *Cluster) Export(ctx context.Context, image, target string, size int64) error {
	first := c.Nodes[0]
	if _, err := first.API.CreateImage(ctx, api.CreateImage{Image: image, Size: size}); err != nil {
		return err
	}
	if _, err := first.API.CreateTarget(ctx, target); err != nil {
		return err
	}
	if _, err := first.API.Map(ctx, target, api.Map{Image: image}); err != nil {
		return err
	}
	for _, n := range c.Nodes {
		if err := n.AwaitLUN(ctx, target); err != nil {
			return err
		}
	}
	return nil
}

// AwaitLUN waits until a target's LUNs are on line on the node.
func (n *ClusterNode) AwaitLUN(ctx context.Context, target string) error {
	return Poll(startLimit, func() error {
		all, err := n.API.Targets(ctx)
		if err != nil {
			return err
		}
		for i := range all {
			if all[i].Name == target && len(all[i].LUNs) > 0 {
				lun := &all[i].LUNs[0]
				if lun.State == api.LUNOnline {
					return nil
				}
				return fmt.Errorf("node %s: target %s: LUN %s: %s", n.Name, target, lun.State, lun.Reason)
			}
		}
		return fmt.Errorf("node %s: target %s is not there", n.Name, target)
	})
}

// Portal is where initiators find the node.
func (n *ClusterNode) Portal() string { return net.JoinHostPort(n.Address, fmt.Sprint(n.Ports[0])) }

// URL is a target's LUN 0 at the node's portal, as libiscsi writes it.
func (n *ClusterNode) URL(target string) string {
	return fmt.Sprintf("iscsi://%s/%s/0", n.Portal(), target)
}

// Coordinator is the node that coordinates the volume, as some node that answers says.
func (c *Cluster) Coordinator(ctx context.Context) (*ClusterNode, error) {
	errs := []error{errors.New("no node names the volume's coordinator")}
	for _, n := range c.Nodes {
		name, err := n.coordinator(ctx)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		for _, o := range c.Nodes {
			if o.Name == name {
				return o, nil
			}
		}
	}
	return nil, errors.Join(errs...)
}

// Leader is the node whose member leads the cluster's database.
func (c *Cluster) Leader(ctx context.Context) (*ClusterNode, error) {
	st, err := c.Nodes[0].API.Cluster(ctx)
	if err != nil {
		return nil, err
	}
	for _, n := range c.Nodes {
		if n.Name == st.Leader {
			return n, nil
		}
	}
	return nil, fmt.Errorf("no node leads the database: %q", st.Leader)
}

// LeaderCoordinates moves the volume to the node whose member leads the database, and returns it.
func (c *Cluster) LeaderCoordinates(ctx context.Context) (*ClusterNode, error) {
	leader, err := c.Leader(ctx)
	if err != nil {
		return nil, err
	}
	if now, err := c.Coordinator(ctx); err != nil || now == leader {
		return leader, err
	}
	return leader, c.Move(ctx, leader)
}

const askLimit = 2 * time.Second // for a node to tell what it knows

// coordinator is what the node knows without asking others.
func (n *ClusterNode) coordinator(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	all, err := n.API.Volumes(ctx)
	for i := range all {
		if all[i].Name == ClusterVolume {
			return all[i].Coordinator, err
		}
	}
	return "", err
}

func (n *ClusterNode) detail(ctx context.Context) (api.VolumeDetail, error) {
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	return n.API.Volume(ctx, ClusterVolume)
}

// Others lists the nodes but n.
func (c *Cluster) Others(n *ClusterNode) []*ClusterNode {
	var out []*ClusterNode
	for _, o := range c.Nodes {
		if o != n {
			out = append(out, o)
		}
	}
	return out
}

// Move makes a node the volume's coordinator, by an order to another one.
func (c *Cluster) Move(ctx context.Context, to *ClusterNode) error {
	_, err := c.Others(to)[0].API.MoveVolume(ctx, ClusterVolume, to.Name)
	return err
}

// State is how a node reaches the volume, as it says itself.
func (n *ClusterNode) State(ctx context.Context) (api.State, string, error) {
	v, err := n.detail(ctx)
	if err != nil {
		return "", "", err
	}
	for i := range v.Nodes {
		if v.Nodes[i].Node == n.Name {
			return v.Nodes[i].State, v.Nodes[i].Reason, nil
		}
	}
	return "", "", fmt.Errorf("node %s does not list itself", n.Name)
}

// AwaitState waits until the node reaches the volume in that way.
func (n *ClusterNode) AwaitState(ctx context.Context, want api.State, limit time.Duration) error {
	return Poll(limit, func() error {
		state, reason, err := n.State(ctx)
		if err == nil && state != want {
			err = fmt.Errorf("node %s: volume %s (%s), not %s", n.Name, state, reason, want)
		}
		return err
	})
}

// Eject takes the targets and the volume away, by orders to a node that does not coordinate it; the file system is
// clean after it.
func (c *Cluster) Eject(ctx context.Context) error {
	coordinator, err := c.Coordinator(ctx)
	if err != nil {
		return err
	}
	n := c.Others(coordinator)[0]
	all, err := n.API.Targets(ctx)
	if err != nil {
		return err
	}
	for i := range all {
		if err := n.API.DeleteTarget(ctx, all[i].Name, true); err != nil {
			return err
		}
	}
	return Poll(startLimit, func() error { return n.API.EjectVolume(ctx, ClusterVolume) })
}

// Repair fails unless xfs_repair -n finds nothing; the volume is ejected, or all nodes are stopped.
func (c *Cluster) Repair(ctx context.Context) error {
	out, err := Run(ctx, "xfs_repair", "-n", c.Device.Path)
	if err != nil {
		return fmt.Errorf("xfs_repair -n: %w\n%s", err, out)
	}
	return nil
}

// Stop ends all nodes in order, at once.
func (c *Cluster) Stop() error {
	errs := make([]error, len(c.Nodes))
	var all sync.WaitGroup
	for i, n := range c.Nodes {
		all.Go(func() { errs[i] = n.Lunard.Stop() })
	}
	all.Wait()
	return errors.Join(errs...)
}

// PIDs are the daemon's process and its guard's.
func (n *ClusterNode) PIDs() []int { return append([]int{n.PID()}, n.guardOf()...) }

// KillGuard kills the guard of the node's daemon, and returns when another one is there.
func (n *ClusterNode) KillGuard() error {
	was := n.guardOf()
	for _, pid := range was {
		_ = unix.Kill(pid, unix.SIGKILL)
	}
	return Poll(startLimit, func() error {
		if now := n.guardOf(); len(was) == 0 || len(now) == 0 || now[0] == was[0] {
			return fmt.Errorf("node %s had the guard %v and has %v", n.Name, was, now)
		}
		return nil
	})
}

// guardOf finds the guard of a node's daemon: the same program with another argument, its child.
func (n *ClusterNode) guardOf() []int {
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", n.PID()))
	var out []int
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		out = append(out, numbers(string(text))...)
	}
	return out
}
