package wire

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"golang.org/x/sys/unix"

	"lunar/datapath/layout"
	"lunar/datapath/layout/protocol"
	"lunar/datapath/wire/wirepb"
)

// Epoch is the number of the coordinator's term.
func (c *Client) Epoch() uint64 { return c.opts.Epoch }

// Attach opens the image at path for h on this node; the grant describes all of it. h hears from the
// coordinator before Attach has returned, as a holder beside its coordinator does.
func (c *Client) Attach(ctx context.Context, node protocol.NodeID, path string, h protocol.Holder) (protocol.Grant, protocol.HolderID, error) {
	if node != c.opts.Node {
		return protocol.Grant{}, 0, fmt.Errorf("attach %s: node %s through the client of %s: %w", path, node, c.opts.Node, unix.EPERM)
	}
	a := c.enrol(h)
	g, err := c.attach(ctx, path, a)
	if err != nil {
		c.strike(a) //nolint:contextcheck // ctx may have ended, and the Detach has to be tried
		return protocol.Grant{}, 0, err
	}
	return g, protocol.HolderID(a.number), nil
}

func (c *Client) attach(ctx context.Context, path string, a *attachment) (g protocol.Grant, err error) {
	err = c.do(ctx, "attach "+path, func(ctx context.Context, api wirepb.LayoutsClient) error {
		if _, err := api.Attach(ctx, &wirepb.AttachRequest{Holder: a.number, Path: []byte(path)}); err != nil {
			return err
		}
		select {
		case g = <-a.first:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	return g, err
}

// enrol numbers a new attachment.
func (c *Client) enrol(h protocol.Holder) *attachment {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last++
	a := newAttachment(c.last, h)
	c.attached[a.number] = a
	return a
}

// strike ends an attachment whose Attach failed, here at once and at the coordinator, which may have done
// it, soon: by a Detach, or else by the next Hello.
func (c *Client) strike(a *attachment) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.attached, a.number)
	if c.ctx.Err() != nil {
		return
	}
	c.group.Go(func() {
		ctx, cancel := context.WithTimeout(c.ctx, c.opts.Timing.Connect)
		defer cancel()
		for errors.Is(c.detach(ctx, a.number), unix.EBUSY) { // the abandoned Attach is still executed
			select {
			case <-time.After(firstRetry):
			case <-ctx.Done():
			}
		}
	})
}

// Detach ends what Attach began; the holder has no I/O under way any more.
func (c *Client) Detach(ctx context.Context, _ protocol.Call, h protocol.HolderID) error {
	if err := c.detach(ctx, uint32(h)); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.attached, uint32(h))
	return nil
}

func (c *Client) detach(ctx context.Context, number uint32) error {
	return c.do(ctx, "detach", func(ctx context.Context, api wirepb.LayoutsClient) error {
		_, err := api.Detach(ctx, &wirepb.DetachRequest{Holder: number})
		return err
	})
}

// Acknowledge says that everything that this node has open is attached under epoch.
func (c *Client) Acknowledge(ctx context.Context, node protocol.NodeID, epoch uint64) error {
	if node != c.opts.Node {
		return fmt.Errorf("acknowledge: node %s through the client of %s: %w", node, c.opts.Node, unix.EPERM)
	}
	return c.do(ctx, "acknowledge", func(ctx context.Context, api wirepb.LayoutsClient) error {
		_, err := api.Acknowledge(ctx, &wirepb.AcknowledgeRequest{Epoch: epoch})
		return err
	})
}

// Read is the DataPath's.
func (c *Client) Read(ctx context.Context, call protocol.Call, p []byte, off int64) error {
	return c.opts.Data.Read(ctx, call, p, off)
}

// Write is the DataPath's.
func (c *Client) Write(ctx context.Context, call protocol.Call, p []byte, off int64, fua bool) error {
	return c.opts.Data.Write(ctx, call, p, off, fua)
}

// Flush is the DataPath's.
func (c *Client) Flush(ctx context.Context, call protocol.Call) error {
	return c.opts.Data.Flush(ctx, call)
}

// Unmap is the DataPath's.
func (c *Client) Unmap(ctx context.Context, call protocol.Call, ranges []layout.Range) error {
	return c.opts.Data.Unmap(ctx, call, ranges)
}

// CompareAndWrite writes data at off if the present content equals expect, atomically; miscompare is
// the first byte that differs, or -1.
func (c *Client) CompareAndWrite(ctx context.Context, call protocol.Call, expect, data []byte, off int64, fua bool) (miscompare int, err error) {
	miscompare = -1
	m := &wirepb.CompareAndWriteRequest{Call: callOut(call), Off: off, Expect: expect, Data: data, Fua: fua,
		Slot: call.Once.Slot, Serial: call.Once.Serial}
	err = c.do(ctx, "compare and write", func(ctx context.Context, api wirepb.LayoutsClient) error {
		reply, err := api.CompareAndWrite(ctx, m)
		if err == nil {
			miscompare = int(reply.GetMiscompare())
		}
		return err
	})
	return miscompare, err
}

// Copy makes r.Len bytes at off of one image equal to r of another, by sharing blocks.
func (c *Client) Copy(ctx context.Context, to protocol.Call, off int64, from protocol.Call, r layout.Range) error {
	return c.do(ctx, "copy", func(ctx context.Context, api wirepb.LayoutsClient) error {
		_, err := api.Copy(ctx, &wirepb.CopyRequest{To: callOut(to), Off: off, From: callOut(from), Range: rangeOut(r)})
		return err
	})
}

// Create makes an image; o.Progress is called on the caller's goroutine.
func (c *Client) Create(ctx context.Context, m protocol.Meta, path string, o protocol.CreateOptions) error {
	req := &wirepb.CreateRequest{Meta: metaOut(m), Path: []byte(path), Size: o.Size, Thick: o.Thick, Eager: o.Eager, Progress: o.Progress != nil}
	return c.do(ctx, "create "+path, func(ctx context.Context, api wirepb.LayoutsClient) error {
		stream, err := api.Create(ctx, req)
		if err != nil {
			return err
		}
		return drain(stream.Recv, func(p *wirepb.Progress) {
			if o.Progress != nil {
				o.Progress(p.GetBytes())
			}
		})
	})
}

// drain takes a stream's messages to its end.
func drain[M any](recv func() (M, error), each func(M)) error {
	for {
		m, err := recv()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
		each(m)
	}
}

// Delete removes an image.
func (c *Client) Delete(ctx context.Context, m protocol.Meta, path string) error {
	return c.do(ctx, "delete "+path, func(ctx context.Context, api wirepb.LayoutsClient) error {
		_, err := api.Delete(ctx, &wirepb.DeleteRequest{Meta: metaOut(m), Path: []byte(path)})
		return err
	})
}

// Rename gives an image another path.
func (c *Client) Rename(ctx context.Context, m protocol.Meta, from, to string) error {
	return c.do(ctx, "rename "+from, func(ctx context.Context, api wirepb.LayoutsClient) error {
		_, err := api.Rename(ctx, &wirepb.RenameRequest{Meta: metaOut(m), From: []byte(from), To: []byte(to)})
		return err
	})
}

// Resize changes an image's size.
func (c *Client) Resize(ctx context.Context, m protocol.Meta, path string, size int64, force bool) error {
	return c.do(ctx, "resize "+path, func(ctx context.Context, api wirepb.LayoutsClient) error {
		_, err := api.Resize(ctx, &wirepb.ResizeRequest{Meta: metaOut(m), Path: []byte(path), Size: size, Force: force})
		return err
	})
}

// Clone makes an image that shares the blocks of another.
func (c *Client) Clone(ctx context.Context, m protocol.Meta, from, to string) error {
	return c.do(ctx, "clone "+from, func(ctx context.Context, api wirepb.LayoutsClient) error {
		_, err := api.Clone(ctx, &wirepb.CloneRequest{Meta: metaOut(m), From: []byte(from), To: []byte(to)})
		return err
	})
}

// List describes every image.
func (c *Client) List(ctx context.Context) (all []protocol.Stat, err error) {
	err = c.do(ctx, "list", func(ctx context.Context, api wirepb.LayoutsClient) error {
		stream, err := api.List(ctx, &wirepb.ListRequest{})
		if err != nil {
			return err
		}
		return drain(stream.Recv, func(p *wirepb.StatPage) {
			for _, s := range p.GetImages() {
				all = append(all, statIn(s))
			}
		})
	})
	if err != nil {
		return nil, err
	}
	return all, nil
}

// Stat describes one image.
func (c *Client) Stat(ctx context.Context, path string) (s protocol.Stat, err error) {
	err = c.do(ctx, "stat "+path, func(ctx context.Context, api wirepb.LayoutsClient) error {
		m, err := api.Stat(ctx, &wirepb.StatRequest{Path: []byte(path)})
		s = statIn(m)
		return err
	})
	return s, err
}

// Space tells how the volume is filled.
func (c *Client) Space(ctx context.Context) (s protocol.Space, err error) {
	err = c.do(ctx, "space", func(ctx context.Context, api wirepb.LayoutsClient) error {
		m, err := api.Space(ctx, &wirepb.SpaceRequest{})
		s = protocol.Space{Size: m.GetSize(), Free: m.GetFree()}
		return err
	})
	return s, err
}
