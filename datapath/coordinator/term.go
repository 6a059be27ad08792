package coordinator

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"lunar/datapath/layout/protocol"
)

// errEnded is why a term's waits end.
var errEnded = fmt.Errorf("this coordinator's term has ended: %w", ErrStaleEpoch)

// Hello says that a node's process is there; incarnation is greater with each of its starts. What an
// earlier process of that node held is gone with it: the caller makes sure, before it says Hello,
// that the device has ended every I/O of the earlier process. ErrStaleEpoch for a process that was
// expelled, or is older than one that was heard.
func (c *Coordinator) Hello(_ context.Context, node protocol.NodeID, incarnation uint64) (err error) {
	if err := c.enter(); err != nil {
		return err
	}
	defer c.exit(&err)
	c.mu.Lock()
	lost, err := c.term.Hello(node, incarnation)
	c.mu.Unlock()
	if lost {
		c.drop(node)
	}
	return stale(err)
}

// Acknowledge says that a node has attached every image that it has open under epoch, and holds
// nothing of an older one.
func (c *Coordinator) Acknowledge(_ context.Context, node protocol.NodeID, epoch uint64) (err error) {
	if err := c.enter(); err != nil {
		return err
	}
	defer c.exit(&err)
	c.mu.Lock()
	defer c.mu.Unlock()
	passed, err := c.term.Acknowledge(node, epoch)
	if passed {
		c.passBarrier()
	}
	return stale(err)
}

// Expel says that a node is fenced: what it held is gone, and nothing waits for it any more. It is
// refused until another process of it says Hello. Expel does not block.
func (c *Coordinator) Expel(node protocol.NodeID) {
	if c.enter() != nil {
		return
	}
	defer c.calls.Done()
	c.mu.Lock()
	if c.term.Expel(node) {
		c.passBarrier()
	}
	c.mu.Unlock()
	c.drop(node)
}

// admit refuses a node that was expelled.
func (c *Coordinator) admit(node protocol.NodeID) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return stale(c.term.Admit(node))
}

// stale gives what the protocol refuses as old the coordinator's sentinel.
func stale(err error) error {
	if errors.Is(err, protocol.ErrStale) {
		return fmt.Errorf("%w: %w", ErrStaleEpoch, err)
	}
	return err
}

// passBarrier lets changes run; mu is locked.
func (c *Coordinator) passBarrier() {
	close(c.barrier)
	c.opts.Log.Info("barrier passed", "epoch", c.opts.Epoch)
}

// drop takes what a node held as returned.
func (c *Coordinator) drop(node protocol.NodeID) {
	c.tries.forget(node)
	for _, im := range c.all() {
		im.expel(node)
	}
	// The name space may be locked by a change that waited for this node.
	c.background.Go(func() {
		c.names.Lock()
		defer c.names.Unlock()
		for _, im := range c.all() {
			if err := c.dropIfUnused(c.life, im); err != nil {
				c.opts.Log.Warn("image not closed", "image", im.name(), "err", err)
			}
		}
	})
}

// changeable returns when every node has left the older epochs: RecallBeforeChange.
func (c *Coordinator) changeable(ctx context.Context) error {
	select {
	case <-c.barrier:
		return nil
	default:
	}
	select {
	case <-c.barrier:
		return nil
	case <-c.life.Done():
		return errEnded
	case <-ctx.Done():
		c.mu.Lock()
		defer c.mu.Unlock()
		return fmt.Errorf("%w: nodes %v have not acknowledged epoch %d: %w", ErrRecall, c.term.Awaited(), c.opts.Epoch, ctx.Err())
	}
}

// watchBarrier fences the nodes that do not acknowledge the term in time.
func (c *Coordinator) watchBarrier() {
	wait := time.NewTimer(c.opts.RecallTimeout)
	defer wait.Stop()
	select {
	case <-c.barrier:
		return
	case <-c.life.Done():
		return
	case <-wait.C:
	}
	c.mu.Lock()
	late := c.term.Awaited()
	c.mu.Unlock()
	for _, node := range late {
		c.fence(node)
	}
}

// Bounds of the back-off between tries to fence a node.
const (
	minFenceBackoff = 100 * time.Millisecond
	maxFenceBackoff = 5 * time.Second
)

// fence has a node fenced and expels it, in the background; once at a time per node.
func (c *Coordinator) fence(node protocol.NodeID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fencing[node] {
		return
	}
	c.fencing[node] = true
	c.background.Go(func() {
		c.fenceUntilProven(node)
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.fencing, node)
	})
}

func (c *Coordinator) fenceUntilProven(node protocol.NodeID) {
	for backoff := minFenceBackoff; c.life.Err() == nil; backoff = min(2*backoff, maxFenceBackoff) {
		err := c.opts.Fence(c.life, node)
		if err == nil {
			c.opts.Log.Warn("node fenced", "node", node, "epoch", c.opts.Epoch)
			c.Expel(node)
			return
		}
		c.opts.Log.Error("fence", "node", node, "err", err, "again_in", backoff)
		sleep(c.life, backoff)
	}
}

func sleep(ctx context.Context, d time.Duration) {
	wait := time.NewTimer(d)
	defer wait.Stop()
	select {
	case <-wait.C:
	case <-ctx.Done():
	}
}

// endTerm refuses new calls from now on, and ends what waits; false when that was done before.
func (c *Coordinator) endTerm() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.term.Ended() {
		return false
	}
	c.term.End()
	c.endLife()
	return true
}

// Handover ends the term in plan: new calls get ErrStaleEpoch, those that wait too, those that run end;
// then the volume is unmounted. Holders keep their layouts, and may go on with direct I/O until they
// attach under the next term. When ctx ends first the file system is shut down, as by Shutdown, and
// the error tells; Close then still has to be called.
func (c *Coordinator) Handover(ctx context.Context) error {
	began := time.Now()
	if !c.down.Load() {
		_ = c.fs.sync() // most of it while calls go on; an error shows at the unmount
	}
	synced := time.Since(began)
	c.endTerm()
	err := c.finish(ctx)
	c.opts.Log.Info("volume handed over", "device", c.dev.Path, "epoch", c.opts.Epoch, "took", time.Since(began),
		"synced", synced, "err", err)
	return err
}

// Close unmounts, after the calls under way have ended, and waits until the kernel has let the
// device go. ErrInUse when an image is open, unless the term has ended.
func (c *Coordinator) Close(ctx context.Context) error {
	c.mu.Lock()
	if open := len(c.images); open > 0 && !c.term.Ended() && !c.closed {
		c.mu.Unlock()
		return fmt.Errorf("volume on %s: %w: %d images are open: close them first", c.dev.Path, ErrInUse, open)
	}
	c.mu.Unlock()
	return c.finish(ctx)
}

// finish waits for the calls under way and unmounts.
func (c *Coordinator) finish(ctx context.Context) error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return ErrClosed
	}
	c.closed = true
	c.endLife()
	c.mu.Unlock()
	if err := c.settle(ctx); err != nil {
		c.mu.Lock()
		c.closed = false
		c.mu.Unlock()
		return err
	}
	errs := []error{c.aios.close(), c.lanes.close()}
	for _, im := range c.all() {
		errs = append(errs, im.file.Close())
	}
	clear(c.images)
	errs = append(errs, c.fs.unmount(ctx, c.dev, c.down.Load()))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("unmount %s: %w", c.dev.Path, err)
	}
	c.opts.Log.Info("volume unmounted", "device", c.dev.Path)
	return nil
}

// settle waits for what is under way. When ctx ends first nothing more is to reach the device.
func (c *Coordinator) settle(ctx context.Context) error {
	idle := make(chan struct{})
	go func() {
		defer close(idle)
		c.calls.Wait()
		c.background.Wait()
	}()
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return errors.Join(fmt.Errorf("calls are under way on %s: %w: %w", c.dev.Path, ErrInUse, ctx.Err()), c.Shutdown())
	}
}

// Shutdown ends the file system at once, as a power failure would: nothing more reaches the device,
// not even the log. Every later call fails; Close still has to be called.
func (c *Coordinator) Shutdown() error {
	c.down.Store(true)
	return c.fs.shutdown()
}

// MountFD is a new descriptor on the volume's root, for who has to shut the file system down when this
// process cannot (XFS_IOC_GOINGDOWN, EXT4_IOC_SHUTDOWN). It keeps the volume mounted: the caller
// closes it, and every copy of it, before Close or Handover can end.
func (c *Coordinator) MountFD() (*os.File, error) {
	if err := c.enter(); err != nil {
		return nil, err
	}
	defer c.calls.Done()
	fd, err := unix.FcntlInt(c.fs.root.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("descriptor of the mount of %s: %w", c.dev.Path, err)
	}
	return os.NewFile(uintptr(fd), c.dev.Path), nil
}
