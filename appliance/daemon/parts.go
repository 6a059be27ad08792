package daemon

import (
	"context"
	"errors"

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
}

// openParts takes dev over, unless it fails.
func (n *Node) openParts(ctx context.Context, name string, dev *device.Device, epoch uint64) (*parts, error) {
	coord, err := coordinator.Open(ctx, dev, coordinator.Options{Epoch: epoch, Log: n.log})
	if err != nil {
		return nil, err
	}
	vol, err := volume.Open(ctx, volume.Options{Name: name, Device: dev, Coordinator: coord, Engine: n.engine, Log: n.log})
	if err != nil {
		return nil, errors.Join(err, coord.Close(context.WithoutCancel(ctx)))
	}
	return &parts{dev: dev, coord: coord, vol: vol}, nil
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
	return api.State(s.State), s.Reason.String()
}

func (p *parts) counters() api.Counters {
	s := p.vol.Status()
	return api.Counters{
		DirectRead: count(s.DirectRead), DirectWrite: count(s.DirectWrite),
		RedirectedRead: count(s.RedirectedRead), RedirectedWrite: count(s.RedirectedWrite), Metadata: count(s.Metadata),
	}
}

func count(c volume.Count) api.Count { return api.Count{IOs: uint64(c.IOs), Bytes: uint64(c.Bytes)} }
