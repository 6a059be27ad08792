package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"runtime/pprof"
	"sync"

	"lunar/datapath/coordinator"
	"lunar/datapath/device"
	"lunar/datapath/layout"
	"lunar/datapath/layout/protocol"
	"lunar/datapath/uring"
	"lunar/datapath/wire/nbd"
)

const imageSize = 768 << 20

// holder keeps the layout that the coordinator tells it, and does no I/O.
type holder struct {
	mu   sync.Mutex // guards view
	view *protocol.View
}

// Recall gives a range back: nothing is under way.
func (h *holder) Recall(_ context.Context, r protocol.Recall) (err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.view, err = h.view.Recalled(r)
	return err
}

// Publish takes a grant.
func (h *holder) Publish(g protocol.Grant) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if next, err := h.view.Granted(g); err == nil {
		h.view = next
	}
}

func (h *holder) layout() *layout.Layout {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.view.Layout
}

// serveDevice formats a device, makes one image, all written, and serves it until ctx ends.
func serveDevice(ctx context.Context, path, address, keys, profile string, blocking bool) (err error) {
	if profile != "" {
		f, err := os.Create(profile)
		if err != nil {
			return err
		}
		defer f.Close() //nolint:errcheck // a profile
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	dev, err := device.Open(path)
	if err != nil {
		return err
	}
	defer dev.Close() //nolint:errcheck // at the end
	if err := coordinator.Format(ctx, dev, coordinator.FormatOptions{Force: true}); err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	o := coordinator.Options{Epoch: 1, Log: log}
	if !blocking {
		if o.Engine, err = uring.Open(uring.Options{Log: log}); err != nil { //nolint:contextcheck // it ends below
			return err
		}
		defer o.Engine.Close(context.Background()) //nolint:errcheck,contextcheck // at the end
	}
	c, err := coordinator.Open(ctx, dev, o)
	if err != nil {
		return err
	}
	defer c.Close(context.Background()) //nolint:errcheck,contextcheck // at the end
	meta := protocol.Meta{Key: protocol.NewKey(), Epoch: 1}
	if err := c.Create(ctx, meta, "disk", protocol.CreateOptions{Size: imageSize, Thick: true, Eager: true}); err != nil {
		return err
	}
	h := &holder{}
	grant, id, err := c.Attach(ctx, "here", "disk", h)
	if err != nil {
		return err
	}
	defer c.Detach(context.Background(), grant.Call, id) //nolint:errcheck,contextcheck // at the end
	if h.view, err = protocol.NewView(grant); err != nil {
		return err
	}
	carry := func(done func([]*protocol.Transfer)) nbd.Carrier {
		if k := c.Carrier(grant.Call, done); k != nil {
			return k
		}
		return nil
	}
	image := &nbd.Image{To: c, Call: grant.Call, Layout: h.layout, Carry: carry, About: nbd.Info{Block: 512}}
	return serveImage(ctx, image, address, keys, log)
}

func serveImage(ctx context.Context, image *nbd.Image, address, keys string, log *slog.Logger) error {
	o := nbd.Options{Log: log, Open: func(context.Context, string, nbd.Peer) (nbd.Export, error) { return image, nil }}
	if keys != "" {
		config, err := loadKeys(keys, "server")
		if err != nil {
			return err
		}
		o.TLS, o.RequireTLS = config, true
	}
	s, err := nbd.NewServer(o)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	<-ctx.Done()
	err = s.Stop(context.WithoutCancel(ctx))
	if served := <-done; !errors.Is(served, nbd.ErrStopped) {
		err = errors.Join(err, fmt.Errorf("serve: %w", served))
	}
	return err
}
