package coordinator

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"lunar/datapath/device"
	"lunar/datapath/layout"
	"lunar/datapath/layout/protocol"
	"lunar/datapath/uring"
)

// Options sets a Coordinator up.
type Options struct {
	Epoch         uint64        // of this term; greater than every earlier one of the volume
	AnswerTimeout time.Duration // for one holder to answer a recall, then it is asked again; default 2 s
	RecallTimeout time.Duration // for one holder to return a range in all; default 35 s, over a device's time-out
	Quiet         time.Duration // how long COMPARE AND WRITE keeps a range from the holders; default 10 s
	Log           *slog.Logger  // default slog.Default()

	// Cluster names whose volume it is from now on, "" nobody's. Another's is refused (ErrForeign), and
	// one that was mounted in this term or a later one (ErrStaleEpoch), unless TakeOver is set.
	Cluster  string
	TakeOver bool

	// Members are the nodes that may hold layouts of older epochs. Until each has acknowledged this
	// term, or is expelled, nothing is freed, moved, shared, deleted or renamed.
	Members []protocol.NodeID
	// Fence makes sure that a node cannot write to the device any more; nil means proven. It is called
	// when the node did not answer a recall in time, again and again until it succeeds. Without it a
	// recall that fails fails the change. Its context ends with the term.
	Fence func(ctx context.Context, node protocol.NodeID) error
	// Withheld begins the term as after Withhold.
	Withheld bool
	// Failed is told, once, that this node cannot go on with the volume: its path to the device or the
	// file system is gone, or there is a later term. The term has ended then: every call, also those under
	// way, fails with ErrStaleEpoch. Failed does not block and calls nothing of the Coordinator; its
	// caller's duty is Close, soon. Without it errors pass through and the term goes on.
	Failed func(error)
	// Twin allows an XFS while this kernel has one with the same UUID mounted: for nodes that share
	// a kernel, where a fenced node's dead mount may be there still. Only fencing guards OneMount then.
	Twin bool
	// Engine lets a Carrier execute transfers by Lanes, by default the engine's rings; it stays open until
	// Close or Handover has returned. Without it every call blocks.
	Engine *uring.Engine
	Lanes  []Lane
}

// Validate tells what is wrong with o.
func (o Options) Validate() error {
	if o.Epoch == 0 {
		return fmt.Errorf("coordinator: Options.Epoch is 0: count terms from 1: %w", unix.EINVAL)
	}
	if least := min(o.RecallTimeout, o.AnswerTimeout, o.Quiet); least < 0 {
		return fmt.Errorf("coordinator: a time of %v in Options: give 0 or more: %w", least, unix.EINVAL)
	}
	return nil
}

func (o Options) withDefaults() Options {
	if o.RecallTimeout == 0 {
		o.RecallTimeout = 35 * time.Second
	}
	if o.AnswerTimeout == 0 {
		o.AnswerTimeout = 2 * time.Second
	}
	if o.Quiet == 0 {
		o.Quiet = 10 * time.Second
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
	end   int64        // of the file system on the device
	names sync.Mutex   // orders changes of the name space, and opens
	pairs sync.RWMutex // a copy between two images holds it shared, a snapshot of several alone
	down  atomic.Bool  // after Shutdown

	life       context.Context // ends with the term
	endLife    context.CancelFunc
	barrier    chan struct{}  // closed when changes may run
	failed     atomic.Bool    // after fail
	background sync.WaitGroup // goroutines that end with life
	hook       func(step string)

	lanes lanes
	aios  aios
	tries tries

	suspension suspension

	unshareable atomic.Bool // the file system said that it cannot share blocks
	withheld    atomic.Bool // between Withhold and Grant

	mu      sync.Mutex // guards images and what follows
	images  map[protocol.ImageID]*image
	term    *protocol.Term
	fencing map[protocol.NodeID]bool
	closed  bool
	calls   sync.WaitGroup // begun before closed, or before the term's end
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
	end, err := checkFits(dev, fs)
	if err != nil {
		return nil, err
	}
	m, err := attach(dev, fs, o.Twin)
	if err != nil {
		return nil, err
	}
	c := newCoordinator(dev, m, end, o.withDefaults())
	if err := c.claim(); err != nil {
		return nil, errors.Join(err, c.Close(ctx))
	}
	if err := c.openLanes(); err != nil {
		return nil, errors.Join(err, c.Close(ctx))
	}
	if err := c.sweepSnapshots(); err != nil {
		c.opts.Log.Warn("unfinished snapshots not removed", "device", dev.Path, "err", err)
	}
	c.opts.Log.Info("volume mounted", "device", dev.Path, "fs", fs, "epoch", o.Epoch)
	return c, nil
}

func newCoordinator(dev *device.Device, m *mount, end int64, o Options) *Coordinator {
	c := &Coordinator{opts: o, dev: dev, fs: m, end: end, images: map[protocol.ImageID]*image{},
		term: protocol.NewTerm(o.Epoch, o.Members), fencing: map[protocol.NodeID]bool{}, barrier: make(chan struct{}),
		tries: tries{nodes: map[protocol.NodeID]map[uint32]*try{}}}
	c.life, c.endLife = context.WithCancel(context.Background())
	c.withheld.Store(o.Withheld)
	switch {
	case c.term.Passed():
		close(c.barrier)
	case o.Fence != nil:
		c.background.Go(c.watchBarrier)
	}
	return c
}

// Epoch is the number of this term.
func (c *Coordinator) Epoch() uint64 { return c.opts.Epoch }

// FS is the volume's file system.
func (c *Coordinator) FS() FSType { return c.fs.fs }

// BlockSize is the unit in which the file system allocates, bytes.
func (c *Coordinator) BlockSize() int64 { return c.fs.block }

// enter counts a call in, unless the Coordinator is closed or its term has ended. The caller calls exit.
func (c *Coordinator) enter() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.term.Ended() {
		return errEnded
	}
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
func (c *Coordinator) Space(_ context.Context) (_ protocol.Space, err error) {
	if err := c.enter(); err != nil {
		return protocol.Space{}, err
	}
	defer c.exit(&err)
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

// Attach opens the image at path for a holder on a node: the grant describes all of it. A path of
// protocol.SnapshotPath opens an image of a snapshot, of which nothing is granted for writing; a change of it
// is ErrReadOnly. Each Attach needs a Detach.
func (c *Coordinator) Attach(ctx context.Context, node protocol.NodeID, path string, h protocol.Holder) (g protocol.Grant, id protocol.HolderID, err error) {
	if err := c.enter(); err != nil {
		return g, 0, err
	}
	defer c.exit(&err)
	c.names.Lock()
	defer c.names.Unlock()
	im, err := c.openImage(path)
	if err != nil {
		return g, 0, explain(path, "open", err)
	}
	g, id, err = im.join(ctx, node, h)
	if err == nil {
		if err = c.admit(node); err != nil { // also when it was expelled meanwhile
			im.leave(id)
		}
	}
	if err != nil {
		return g, id, errors.Join(explain(path, "open", err), c.dropIfUnused(ctx, im))
	}
	return g, id, nil
}

// openImage finds or opens the image at path; names is locked.
func (c *Coordinator) openImage(path string) (*image, error) {
	f, st, err := c.openPath(path)
	if err != nil {
		return nil, err
	}
	if im := c.opened(st.ID); im != nil {
		return im, f.Close()
	}
	im, err := c.newImage(st.ID, path, f, st.Size)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.images[st.ID] = im
	return im, nil
}

// all is the images that are open now.
func (c *Coordinator) all() []*image {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Collect(maps.Values(c.images))
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
	_, _, frozen := protocol.CutSnapshotPath(path)
	extents, err := extentsOf(f, layout.Range{Len: size}, frozen)
	if err != nil {
		return nil, err
	}
	l, err := layout.New(size, extents)
	if err != nil {
		return nil, err
	}
	im := newImage(c, id, path, f, l)
	im.frozen = frozen
	return im, nil
}

// Detach ends what Attach began; the holder has no I/O under way any more.
func (c *Coordinator) Detach(ctx context.Context, call protocol.Call, h protocol.HolderID) (err error) {
	im, err := c.image(call)
	if err != nil {
		return err
	}
	defer c.exit(&err)
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
	if err := im.retire(context.WithoutCancel(ctx)); err != nil { // the term has ended: finish closes it
		c.mu.Lock()
		defer c.mu.Unlock()
		c.images[im.id] = im
		return err
	}
	return im.file.Close()
}
