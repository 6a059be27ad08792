package coordinator

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"lunar/datapath/device"
	"lunar/datapath/layout"
	"lunar/datapath/layout/protocol"
)

// Options sets a Coordinator up.
type Options struct {
	Epoch         uint64        // of this term; greater than every earlier one of the volume
	RecallTimeout time.Duration // for one holder to return a range; default 35 s, over a device's time-out
	Log           *slog.Logger  // default slog.Default()

	// Members are the nodes that may hold layouts of older epochs. Until each has acknowledged this
	// term, or is expelled, nothing is freed, moved, shared, deleted or renamed.
	Members []protocol.NodeID
	// Fence makes sure that a node cannot write to the device any more; nil means proven. It is called
	// when the node did not answer a recall in time, again and again until it succeeds. Without it a
	// recall that fails fails the change.
	Fence func(ctx context.Context, node protocol.NodeID) error
	// Failed is told, once, that this term's path to the device or its file system is gone.
	Failed func(error)
}

// Validate tells what is wrong with o.
func (o Options) Validate() error {
	if o.Epoch == 0 {
		return fmt.Errorf("coordinator: Options.Epoch is 0: count terms from 1: %w", unix.EINVAL)
	}
	if o.RecallTimeout < 0 {
		return fmt.Errorf("coordinator: Options.RecallTimeout is %v: give 0 or more: %w", o.RecallTimeout, unix.EINVAL)
	}
	return nil
}

func (o Options) withDefaults() Options {
	if o.RecallTimeout == 0 {
		o.RecallTimeout = 35 * time.Second
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	return o
}

// Coordinator has a volume mounted. Its methods block, and are safe from any goroutine.
type Coordinator struct {
	opts  Options
	dev   *device.Device
	fs    *mount
	names sync.Mutex  // orders changes of the name space, and opens
	down  atomic.Bool // after Shutdown

	unshareable atomic.Bool // the file system said that it cannot share blocks

	mu     sync.Mutex // guards images and what follows
	images map[protocol.ImageID]*image
	closed bool
	calls  sync.WaitGroup // begun before closed
}

// Open mounts the volume on dev, XFS or ext4, and changes nothing on it beyond its journal's
// replay. It refuses a device that anything else on this node uses (device.ErrInUse), and one
// without such a file system (ErrNoVolume). The caller keeps dev open until Close has returned.
func Open(ctx context.Context, dev *device.Device, o Options) (*Coordinator, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := dev.InUse(); err != nil {
		return nil, err
	}
	fs, err := volumeType(dev)
	if err != nil {
		return nil, err
	}
	if err := checkSuperblock(dev, fs); err != nil {
		return nil, err
	}
	if err := checkFits(dev, fs); err != nil {
		return nil, err
	}
	m, err := attach(dev, fs)
	if err != nil {
		return nil, err
	}
	c := &Coordinator{opts: o.withDefaults(), dev: dev, fs: m, images: map[protocol.ImageID]*image{}}
	c.opts.Log.Info("volume mounted", "device", dev.Path, "fs", fs, "epoch", o.Epoch)
	return c, nil
}

// Epoch is the number of this term.
func (c *Coordinator) Epoch() uint64 { return c.opts.Epoch }

// FS is the volume's file system.
func (c *Coordinator) FS() FSType { return c.fs.fs }

// BlockSize is the unit in which the file system allocates, bytes.
func (c *Coordinator) BlockSize() int64 { return c.fs.block }

// enter counts a call in, unless the Coordinator is closed. The caller calls c.calls.Done.
func (c *Coordinator) enter() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return ErrClosed
	}
	c.calls.Add(1)
	return nil
}

// enterFor is enter for a call that bears an epoch.
func (c *Coordinator) enterFor(epoch uint64) error {
	if err := c.checkEpoch(epoch); err != nil {
		return err
	}
	return c.enter()
}

// checkEpoch refuses what is not of this term.
func (c *Coordinator) checkEpoch(epoch uint64) error {
	if epoch != c.opts.Epoch {
		return fmt.Errorf("call of epoch %d in %d: %w", epoch, c.opts.Epoch, ErrStaleEpoch)
	}
	return nil
}

// Hello says that a node's process is there; incarnation is greater with each of its starts. What an
// earlier process of that node held is gone with it.
func (c *Coordinator) Hello(ctx context.Context, node protocol.NodeID, incarnation uint64) error {
	return c.enterThen(func() error { return nil })
}

// Acknowledge says that a node has attached every image that it has open under epoch, and holds
// nothing of an older one.
func (c *Coordinator) Acknowledge(ctx context.Context, node protocol.NodeID, epoch uint64) error {
	return c.enterThen(func() error { return c.checkEpoch(epoch) })
}

// Expel says that a node is fenced: what it held is gone.
func (c *Coordinator) Expel(node protocol.NodeID) {}

func (c *Coordinator) enterThen(fn func() error) error {
	if err := c.enter(); err != nil {
		return err
	}
	defer c.calls.Done()
	return fn()
}

// image finds the open image of a call, counted in as enter does.
func (c *Coordinator) image(call protocol.Call) (*image, error) {
	if err := c.enterFor(call.Epoch); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if im := c.images[call.Image]; im != nil {
		return im, nil
	}
	c.calls.Done()
	return nil, fmt.Errorf("image %d is not open: %w", call.Image, ErrNotFound)
}

// Space tells how the volume is filled.
func (c *Coordinator) Space(_ context.Context) (protocol.Space, error) {
	if err := c.enter(); err != nil {
		return protocol.Space{}, err
	}
	defer c.calls.Done()
	size, free, err := c.fs.space()
	return protocol.Space{Size: size, Free: free}, err
}

// free is what is left, 0 when it cannot be told.
func (c *Coordinator) free() int64 {
	_, free, err := c.fs.space()
	if err != nil {
		return 0
	}
	return free
}

// Attach opens the image at path for a holder on a node: the grant describes all of it. Each Attach
// needs a Detach.
func (c *Coordinator) Attach(ctx context.Context, node protocol.NodeID, path string, h protocol.Holder) (protocol.Grant, protocol.HolderID, error) {
	if err := c.enter(); err != nil {
		return protocol.Grant{}, 0, err
	}
	defer c.calls.Done()
	c.names.Lock()
	defer c.names.Unlock()
	im, err := c.openImage(path)
	if err != nil {
		return protocol.Grant{}, 0, explain(path, "open", err)
	}
	g, id, err := im.join(ctx, node, h)
	if err != nil {
		return g, id, errors.Join(explain(path, "open", err), c.dropIfUnused(ctx, im))
	}
	return g, id, nil
}

// openImage finds or opens the image at path; names is locked.
func (c *Coordinator) openImage(path string) (*image, error) {
	f, st, err := c.fs.openImage(path)
	if err != nil {
		return nil, err
	}
	id := protocol.ImageID(st.Ino)
	if im := c.opened(id); im != nil {
		return im, f.Close()
	}
	im, err := c.newImage(id, path, f, st.Size)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.images[id] = im
	return im, nil
}

func (c *Coordinator) opened(id protocol.ImageID) *image {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.images[id]
}

func (c *Coordinator) newImage(id protocol.ImageID, path string, f *os.File, size int64) (*image, error) {
	if unit := int64(c.dev.LogicalBlock); size%unit != 0 {
		return nil, fmt.Errorf("%w: %d is not a multiple of %d: resize it to %d", ErrSize, size, unit, (size/unit+1)*unit)
	}
	if err := unix.Fdatasync(int(f.Fd())); err != nil {
		return nil, err
	}
	_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
	extents, err := fiemap(f, layout.Range{Len: size})
	if err != nil {
		return nil, err
	}
	l, err := layout.New(size, extents)
	if err != nil {
		return nil, err
	}
	return newImage(c, id, path, f, l), nil
}

// Detach ends what Attach began; the holder has no I/O under way any more.
func (c *Coordinator) Detach(ctx context.Context, call protocol.Call, h protocol.HolderID) error {
	im, err := c.image(call)
	if err != nil {
		return err
	}
	defer c.calls.Done()
	c.names.Lock()
	defer c.names.Unlock()
	im.leave(h)
	return c.dropIfUnused(ctx, im)
}

// dropIfUnused closes an image that nobody has open; names is locked.
func (c *Coordinator) dropIfUnused(ctx context.Context, im *image) error {
	if im.holderCount() > 0 {
		return nil
	}
	c.mu.Lock()
	delete(c.images, im.id)
	c.mu.Unlock()
	return errors.Join(im.idle(context.WithoutCancel(ctx)), im.file.Close())
}

// Close unmounts, after the calls under way have ended, and waits until the kernel has let the
// device go. ErrInUse when an image is open.
func (c *Coordinator) Close(ctx context.Context) error {
	c.mu.Lock()
	open := len(c.images)
	switch {
	case c.closed:
		c.mu.Unlock()
		return ErrClosed
	case open > 0:
		c.mu.Unlock()
		return fmt.Errorf("volume on %s: %w: %d images are open: close them first", c.dev.Path, ErrInUse, open)
	}
	c.closed = true
	c.mu.Unlock()
	c.calls.Wait()
	if err := c.fs.unmount(ctx, c.dev); err != nil {
		return fmt.Errorf("unmount %s: %w", c.dev.Path, err)
	}
	c.opts.Log.Info("volume unmounted", "device", c.dev.Path)
	return nil
}

// Shutdown ends the file system at once, as a power failure would: nothing more reaches the device,
// not even the log. Every later call fails with EIO; Close still has to be called.
func (c *Coordinator) Shutdown() error {
	c.down.Store(true)
	return c.fs.shutdown()
}
