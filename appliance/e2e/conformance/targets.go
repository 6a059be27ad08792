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

// sectors are those of lunard's disks: some tests want one, some the other.
var sectors = []uint32{512, 4096}

// targets starts the target under test, each time from nothing.
type targets struct {
	bin, peer, dir string
	lab            *lab.Lab
	started        int
}

// start gives the disks of the target, the one first that most tests are for.
func (t *targets) start(ctx context.Context) ([]*lab.Export, error) {
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

func (t *targets) lunard(ctx context.Context) ([]*lab.Export, error) {
	// Two portals, for the multipath tests.
	node, err := t.lab.Lunard(ctx, lab.Config{Portals: 2})
	if err != nil {
		return nil, err
	}
	var disks []*lab.Export
	for _, sector := range sectors {
		device, err := t.lab.LoopSectors(fmt.Sprintf("lun%d.img", sector), deviceSize, sector)
		if err != nil {
			return nil, err
		}
		name := fmt.Sprintf("%s-%d", iqn, sector)
		disk, err := node.ServeImageOn(ctx, fmt.Sprintf("Sectors%d", sector), device.Path, fmt.Sprint(imageSize), name)
		if err != nil {
			return nil, err
		}
		disks = append(disks, disk)
	}
	return disks, nil
}

func (t *targets) serveFile(ctx context.Context) ([]*lab.Export, error) {
	path := t.lab.Path("disk.img")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		return nil, err
	}
	if err := os.Truncate(path, imageSize); err != nil {
		return nil, err
	}
	disk, err := t.peerOver(ctx, path)
	return []*lab.Export{disk}, err
}

func (t *targets) peerOver(ctx context.Context, path string) (*lab.Export, error) {
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
