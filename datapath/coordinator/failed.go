package coordinator

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"lunar/datapath/device"
)

// pathErrnos say that the device or the file system, and not the call, has failed.
var pathErrnos = []error{unix.EIO, unix.EROFS, unix.ENXIO, unix.ENODEV, unix.ENOLINK, unix.EREMOTEIO, unix.EBADE, unix.ETIMEDOUT, unix.ESHUTDOWN}

// doubtful is a failed read of an image's data: it may be the sector alone.
type doubtful struct{ error }

// Unwrap is what failed.
func (e doubtful) Unwrap() error { return e.error }

func doubt(err error) error {
	if err == nil {
		return nil
	}
	return doubtful{err}
}

// exit counts a call out. A call that failed with the term ends with it: then nobody may rely on what
// it did or found, and it is made again in the next one.
func (c *Coordinator) exit(err *error) {
	defer c.calls.Done()
	if *err == nil || c.opts.Failed == nil {
		return
	}
	if c.broken(*err) {
		c.fail(*err)
	}
	if c.failed.Load() && !errors.Is(*err, ErrStaleEpoch) {
		*err = fmt.Errorf("%w: the volume failed here: %s", ErrStaleEpoch, (*err).Error()) // not its errno: it is no answer
	}
}

// broken tells whether err means that this node cannot go on with the volume.
func (c *Coordinator) broken(err error) bool {
	if c.failed.Load() || errors.Is(err, ErrRecall) || errors.Is(err, ErrClosed) || errors.Is(err, ErrReadOnly) || isContext(err) {
		return false
	}
	for _, errno := range pathErrnos {
		if errors.Is(err, errno) {
			return !errors.As(err, new(doubtful)) || c.probe() != nil
		}
	}
	return false
}

func isContext(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// probe looks whether device and file system answer.
func (c *Coordinator) probe() error {
	if c.down.Load() {
		return fmt.Errorf("shut down: %w", unix.EIO)
	}
	if err := c.fs.alive(); err != nil {
		return err
	}
	return probeEnds(c.dev, c.end)
}

// probeEnds reads the first and the last block that the file system has on the device: a path is also
// cut when the device has shrunk.
func probeEnds(dev *device.Device, end int64) error {
	p := alignedBuffer(alignment)
	for _, off := range []int64{0, end - alignment} {
		if _, err := dev.ReadAt(p, off); err != nil {
			return fmt.Errorf("probe %s at %d: %w", dev.Path, off, err)
		}
	}
	return nil
}

// fail ends the term, once: nothing more reaches the device, who waits is sent away.
func (c *Coordinator) fail(err error) {
	if !c.failed.CompareAndSwap(false, true) {
		return
	}
	c.endTerm()
	c.opts.Log.Error("volume failed", "device", c.dev.Path, "epoch", c.opts.Epoch, "err", err, "shutdown", c.Shutdown())
	c.opts.Failed(err)
}
