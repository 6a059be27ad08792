package daemon

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"lunar/appliance/api"
	"lunar/appliance/cluster"
	"lunar/datapath/device"
	"lunar/datapath/layout/protocol"
	"lunar/datapath/volume"
)

// parts are what a volume consists of on a node that has a path to its LUN. Who coordinates it is the
// seat's matter.
type parts struct {
	dev    *device.Device
	vol    *volume.Volume
	fencer *fencing // nil where no other node has the volume
	size   int64    // of the device, when it was opened
	forget func()   // tells the guard

	space atomic.Pointer[protocol.Space] // what the coordinator last said of it
	alarm atomic.Pointer[string]         // what is wrong with the device, in words
}

// openParts takes dev over, unless it fails.
func (n *Node) openParts(ctx context.Context, r cluster.Volume, dev *device.Device) (*parts, error) {
	size, err := dev.Size()
	if err != nil {
		return nil, err
	}
	p := &parts{dev: dev, size: size}
	if p.fencer, err = n.openFencing(ctx, r, dev.Path); err != nil {
		return nil, err
	}
	if err := n.watchDevice(r.ID, dev); err != nil {
		return nil, errors.Join(err, p.fencer.close(ctx))
	}
	p.forget = func() { n.forgetDevice(r.ID) }
	p.vol, err = volume.Open(ctx, volume.Options{
		Name: r.Name, Node: protocol.NodeID(n.name), Device: dev, Engine: n.engine, Log: n.log,
		Fenced: func(err error) { n.fencedOff(r.ID, err) }, Clock: n.tracing.volumeClock(),
	})
	if err != nil {
		p.forget()
		return nil, errors.Join(err, p.fencer.close(ctx))
	}
	return p, nil
}

// close ends the volume here. stays tells that nothing was done because images are open.
func (p *parts) close(ctx context.Context) (stays bool, err error) {
	if err := p.vol.Close(); err != nil {
		return true, err
	}
	p.forget()
	return false, errors.Join(p.fencer.close(ctx), p.dev.Close())
}

// redirect switches redirected I/O by the user's request.
func (p *parts) redirect(ctx context.Context, on bool) error {
	return p.vol.Redirect(ctx, volume.UserRequest, on)
}

// state is how this node reaches the volume, and why.
func (p *parts) state() (api.State, string) {
	s := p.vol.Status()
	reason := s.Reason.String()
	if alarm := p.alarm.Load(); alarm != nil {
		reason = strings.TrimPrefix(reason+"; "+*alarm, "; ")
	}
	return api.State(s.State), reason
}

// readable tells whether both ends of the device can be read.
func (p *parts) readable() bool { return p.dev.ReadEnds(p.size) == nil }

// checkSize raises the alarm when the device has become smaller than the file system was made for, and
// tells whether there is news. The kernel only fails what lies beyond, with errors that say otherwise.
func (p *parts) checkSize() (news bool) {
	size, err := p.dev.Size()
	if err != nil {
		return false // the path's state says it
	}
	if size >= p.size {
		return p.alarm.Swap(nil) != nil
	}
	text := fmt.Sprintf("the LUN shrank from %s to %s: I/O beyond fails; grow it back", api.FormatSize(p.size), api.FormatSize(size))
	was := p.alarm.Swap(&text)
	return was == nil || *was != text
}

// askSpace asks the coordinator what the volume has left, within limit; without an answer it is what was last heard.
func (p *parts) askSpace(ctx context.Context, limit time.Duration) protocol.Space {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if space, err := p.vol.Space(ctx); err == nil {
		p.space.Store(&space)
	}
	return p.lastSpace()
}

func (p *parts) lastSpace() protocol.Space {
	if space := p.space.Load(); space != nil {
		return *space
	}
	return protocol.Space{}
}

func (p *parts) counters() api.Counters {
	s := p.vol.Status()
	return api.Counters{
		DirectRead: count(s.DirectRead), DirectWrite: count(s.DirectWrite),
		RedirectedRead: count(s.RedirectedRead), RedirectedWrite: count(s.RedirectedWrite), Metadata: count(s.Metadata),
	}
}

func count(c volume.Count) api.Count { return api.Count{IOs: uint64(c.IOs), Bytes: uint64(c.Bytes)} }
