package volume

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"golang.org/x/sys/unix"

	"lunar/datapath/device"
	"lunar/datapath/layout"
	"lunar/datapath/layout/protocol"
	"lunar/datapath/uring"
)

// Coordinator is what a node needs of the volume's coordinator, here or elsewhere. Its methods
// block. Buffers are the caller's again when a method has returned.
//
// protocol.ErrStale and protocol.ErrUnreachable mean that there is no answer: the call is made again,
// with Retry set, to this coordinator or the next. For that, a call that has returned is over, whatever
// its error: it has no effect any more once a later call of this node has begun, here or there. So a
// retried write cannot overtake a later one, nor one that was given up come after it.
//
// What is acknowledged is there in the next term too: what a Write, Unmap, CompareAndWrite or Copy has
// changed in the file system is durable when it returns. Only the content of blocks that were there may
// wait for a Flush, in the device's cache, which any node's Flush empties.
type Coordinator interface {
	Epoch() uint64
	// Attach opens an image for h on a node; the grant describes all of it. Detach ends that.
	Attach(ctx context.Context, node protocol.NodeID, path string, h protocol.Holder) (protocol.Grant, protocol.HolderID, error)
	Detach(ctx context.Context, call protocol.Call, h protocol.HolderID) error

	Read(ctx context.Context, call protocol.Call, p []byte, off int64) error
	Write(ctx context.Context, call protocol.Call, p []byte, off int64, fua bool) error
	Flush(ctx context.Context, call protocol.Call) error
	Unmap(ctx context.Context, call protocol.Call, ranges []layout.Range) error
	CompareAndWrite(ctx context.Context, call protocol.Call, expect, data []byte, off int64, fua bool) (miscompare int, err error)
	// Copy makes r.Len bytes at off of one image equal to r of another, or the same one, by sharing blocks;
	// EOPNOTSUPP or EINVAL: not these, and nothing was changed.
	Copy(ctx context.Context, to protocol.Call, off int64, from protocol.Call, r layout.Range) error

	// Acknowledge says that everything that the node has open is attached under epoch.
	Acknowledge(ctx context.Context, node protocol.NodeID, epoch uint64) error

	Create(ctx context.Context, m protocol.Meta, path string, o protocol.CreateOptions) error
	Delete(ctx context.Context, m protocol.Meta, path string) error
	Rename(ctx context.Context, m protocol.Meta, from, to string) error
	Resize(ctx context.Context, m protocol.Meta, path string, size int64, force bool) error
	Clone(ctx context.Context, m protocol.Meta, from, to string) error
	List(ctx context.Context) ([]protocol.Stat, error)
	Stat(ctx context.Context, path string) (protocol.Stat, error)
	Space(ctx context.Context) (protocol.Space, error)

	Snapshot(ctx context.Context, m protocol.Meta, name string, paths []string) (hold time.Duration, err error)
	Snapshots(ctx context.Context) ([]protocol.Snapshot, error)
	DeleteSnapshot(ctx context.Context, m protocol.Meta, name, path string) error
	CloneSnapshot(ctx context.Context, m protocol.Meta, name, path, to string) error
	Revert(ctx context.Context, m protocol.Meta, name, path string) error
	Diff(ctx context.Context, path, from, to string) ([]layout.Range, error)
}

// Lane is one of the engine's I/O threads; *uring.Ring is one, and what injects faults before it.
type Lane interface {
	// Submit is called on the lane's thread; the operation's Done runs there.
	Submit(op *uring.Op)
	// Post runs fn on the lane's thread; any goroutine may call it.
	Post(fn func()) error
}

// Options sets a Volume up.
type Options struct {
	Name        string
	Node        protocol.NodeID // this node
	Device      *device.Device
	Coordinator Coordinator // the first to Follow; may be nil
	Engine      *uring.Engine
	Lanes       []Lane        // default: the engine's rings
	Workers     int           // that execute redirected I/O; default 32
	Queue       int           // redirected operations that run, or wait for a worker or a coordinator; default 4096
	Deadline    time.Duration // of a direct I/O; default: the engine's
	Redirected  time.Duration // of a redirected operation, and of a wait for a coordinator; default 60 s
	Probe       time.Duration // between tries of a failed disk path; default 500 ms
	// Fenced is told that the device refuses this node's writes by reservation (EBADE): its key is gone,
	// or a path came back without it. All I/O waits from then on, with reason Fenced, until Resume(Fenced).
	// It is called from a goroutine of the volume, once per pause. Default: that counts as a lost path.
	Fenced func(error)
	Log    *slog.Logger // default slog.Default()
	// Clock times the commands of a lane; nil times none.
	Clock func(lane int) Clock
}

func (o Options) withDefaults() Options {
	o.Workers = or(o.Workers, 32)
	o.Queue = or(o.Queue, 4096)
	o.Redirected = or(o.Redirected, time.Minute)
	o.Probe = or(o.Probe, 500*time.Millisecond)
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Lanes == nil && o.Engine != nil {
		for i := range o.Engine.Rings() {
			o.Lanes = append(o.Lanes, o.Engine.Ring(i))
		}
	}
	return o
}

func or[T ~int | ~int64](v, def T) T {
	if v == 0 {
		return def
	}
	return v
}

// Validate tells what is wrong with o.
func (o Options) Validate() error {
	switch {
	case o.Device == nil, o.Engine == nil:
		return fmt.Errorf("volume %s: Options need Device and Engine: %w", o.Name, unix.EINVAL)
	case o.Workers < 0, o.Queue < 0, o.Deadline < 0, o.Redirected < 0, o.Probe < 0:
		return fmt.Errorf("volume %s: a negative bound in Options: %w", o.Name, unix.EINVAL)
	}
	return nil
}
