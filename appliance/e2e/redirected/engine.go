package main

import (
	"context"
	"errors"
	"log/slog"

	"lunar/datapath/coordinator"
	"lunar/datapath/device"
	"lunar/datapath/layout"
	"lunar/datapath/layout/protocol"
	"lunar/datapath/uring"
	"lunar/datapath/wire/nbd"
)

// throughEngine measures what redirected I/O would gain if the coordinator did its disk I/O by
// io_uring: data that is Written goes to the device by the layout, all else to the coordinator. Nothing
// changes the image here, so it needs no order against recalls; the product does.
type throughEngine struct {
	*coordinator.Coordinator
	layout func() *layout.Layout
	engine *uring.Engine
	file   *uring.File
}

// redirector is the coordinator, or the coordinator behind an engine.
func redirector(c *coordinator.Coordinator, dev *device.Device, l func() *layout.Layout, engine bool, log *slog.Logger) (nbd.Redirector, func() error, error) {
	if !engine {
		return c, func() error { return nil }, nil
	}
	e, err := uring.Open(uring.Options{Log: log})
	if err != nil {
		return nil, nil, err
	}
	file, err := e.Register(dev.Fd())
	if err != nil {
		return nil, nil, errors.Join(err, e.Close(context.Background()))
	}
	end := func() error { return errors.Join(file.Close(), e.Close(context.Background())) }
	return &throughEngine{Coordinator: c, layout: l, engine: e, file: file}, end, nil
}

// at is where a range lies on the device, if it is one Written extent.
func (f *throughEngine) at(p []byte, off int64) (int64, bool) {
	e, ok := f.layout().At(off)
	return e.DevOff + off - e.FileOff, ok && e.State == layout.Written && off+int64(len(p)) <= e.FileOff+e.Len
}

// Read fills p.
func (f *throughEngine) Read(ctx context.Context, call protocol.Call, p []byte, off int64) error {
	at, ok := f.at(p, off)
	if !ok {
		return f.Coordinator.Read(ctx, call, p, off)
	}
	return f.engine.Do(ctx, 0, &uring.Op{Code: uring.Read, File: f.file, Buf: p, Offset: at})
}

// Write stores p.
func (f *throughEngine) Write(ctx context.Context, call protocol.Call, p []byte, off int64, fua bool) error {
	at, ok := f.at(p, off)
	if !ok {
		return f.Coordinator.Write(ctx, call, p, off, fua)
	}
	return f.engine.Do(ctx, 0, &uring.Op{Code: uring.Write, File: f.file, Buf: p, Offset: at, FUA: fua})
}
