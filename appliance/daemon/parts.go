package daemon

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"

	"lunar/appliance/api"
	"lunar/datapath/coordinator"
	"lunar/datapath/device"
	"lunar/datapath/volume"
)

// parts are what a volume consists of while it is on line.
type parts struct {
	dev   *device.Device
	coord *coordinator.Coordinator
	vol   *volume.Volume
	size  int64 // of the device, when it was opened

	alarm atomic.Pointer[string] // what is wrong with the device, in words
}

// openParts takes dev over, unless it fails.
func (n *Node) openParts(ctx context.Context, name string, dev *device.Device, epoch uint64) (*parts, error) {
	size, err := dev.Size()
	if err != nil {
		return nil, err
	}
	coord, err := coordinator.Open(ctx, dev, coordinator.Options{Epoch: epoch, Log: n.log})
	if err != nil {
		return nil, err
	}
	vol, err := volume.Open(ctx, volume.Options{Name: name, Device: dev, Coordinator: coord, Engine: n.engine, Log: n.log})
	if err != nil {
		return nil, errors.Join(err, coord.Close(context.WithoutCancel(ctx)))
	}
	return &parts{dev: dev, coord: coord, vol: vol, size: size}, nil
}

// close flushes and unmounts. stays tells that nothing was done because images are open.
func (p *parts) close(ctx context.Context) (stays bool, err error) {
	if err := p.vol.Close(); err != nil {
		return true, err
	}
	return false, errors.Join(p.coord.Close(ctx), p.dev.Close())
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

func (p *parts) counters() api.Counters {
	s := p.vol.Status()
	return api.Counters{
		DirectRead: count(s.DirectRead), DirectWrite: count(s.DirectWrite),
		RedirectedRead: count(s.RedirectedRead), RedirectedWrite: count(s.RedirectedWrite), Metadata: count(s.Metadata),
	}
}

func count(c volume.Count) api.Count { return api.Count{IOs: uint64(c.IOs), Bytes: uint64(c.Bytes)} }
