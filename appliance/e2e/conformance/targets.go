package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"lunar/appliance/e2e/lab"
)

const (
	deviceSize = 4 << 30
	imageSize  = 1 << 30
	iqn        = "iqn.2026-01.lunar.test:conformance"
)

// targets starts the target under test, each time from nothing.
type targets struct {
	bin, peer, dir string
	lab            *lab.Lab
	started        int
}

func (t *targets) start(ctx context.Context) (*lab.Export, error) {
	_ = t.close() // what crashed has nothing to say here
	t.started++
	l, err := lab.Open(filepath.Join(t.dir, fmt.Sprint(t.started)), t.bin)
	if err != nil {
		return nil, err
	}
	t.lab = l
	switch t.peer {
	case "":
		return t.lunard(ctx)
	case "tgtd", "gotgt":
		return t.serveFile(ctx)
	}
	return nil, fmt.Errorf("no peer %q: use tgtd or gotgt", t.peer)
}

func (t *targets) lunard(ctx context.Context) (*lab.Export, error) {
	device, err := t.lab.Loop("lun.img", deviceSize)
	if err != nil {
		return nil, err
	}
	// Two portals, for the multipath tests.
	node, err := t.lab.Lunard(ctx, lab.Config{Portals: 2})
	if err != nil {
		return nil, err
	}
	return node.ServeImage(ctx, device.Path, fmt.Sprint(imageSize), iqn)
}

func (t *targets) serveFile(ctx context.Context) (*lab.Export, error) {
	path := t.lab.Path("disk.img")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		return nil, err
	}
	if err := os.Truncate(path, imageSize); err != nil {
		return nil, err
	}
	if t.peer == "tgtd" {
		return t.lab.Tgtd(ctx, lab.TgtdDefault, path)
	}
	return t.lab.Gotgt(filepath.Join(t.lab.Bin, "gotgt"), path)
}

func (t *targets) close() error {
	if t.lab == nil {
		return nil
	}
	err := t.lab.Close()
	t.lab = nil
	return err
}
