package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"lunar/appliance/e2e/lab"
)

const (
	deviceSize = 3 << 30
	imageSize  = 1 << 30
	iqn        = "iqn.2026-01.lunar.test:bench"
)

// Target is one contestant.
type Target struct {
	Name   string
	Export *lab.Export
}

// ours is the contestant whom the ratios are about.
const ours = "lunard"

// field starts the contestants that were asked for.
type field struct {
	lab     *lab.Lab
	source  string // folder of the C programs
	targets []Target
	labs    []*lab.Lab // of lunards
}

func (f *field) start(ctx context.Context, names []string) error {
	for _, name := range names {
		export, err := f.one(ctx, name)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		f.targets = append(f.targets, Target{name, export})
	}
	return nil
}

func (f *field) one(ctx context.Context, name string) (*lab.Export, error) {
	kind, bin, _ := strings.Cut(name, "=")
	if kind == ours {
		return f.lunard(ctx, cmp.Or(bin, f.lab.Bin))
	}
	if mode, ok := strings.CutPrefix(name, floorPrefix); ok {
		return f.floor(ctx, name, mode)
	}
	device, err := f.lab.Loop(name+".disk", deviceSize)
	if err != nil {
		return nil, err
	}
	path, err := f.fileOn(ctx, device, name)
	if err != nil {
		return nil, err
	}
	switch name {
	case "tgtd-aio":
		return f.lab.Tgtd(ctx, lab.TgtdAIO, path)
	case "tgtd-rdwr":
		return f.lab.Tgtd(ctx, lab.TgtdRdwr, path)
	case "gotgt":
		return f.lab.Gotgt(filepath.Join(f.lab.Bin, "gotgt"), path)
	}
	return nil, errors.New("unknown target: use lunard, tgtd-aio, tgtd-rdwr, gotgt, floor-pread, floor-ring, floor-null")
}

// lunard starts the build in the folder bin, in a lab of its own: there may be several.
func (f *field) lunard(ctx context.Context, bin string) (*lab.Export, error) {
	own, err := lab.Open(f.lab.Path(fmt.Sprint("l", len(f.targets))), bin)
	if err != nil {
		return nil, err
	}
	f.labs = append(f.labs, own)
	device, err := own.Loop("disk", deviceSize)
	if err != nil {
		return nil, err
	}
	node, err := own.Lunard(ctx, lab.Config{})
	if err != nil {
		return nil, err
	}
	return node.ServeImage(ctx, device.Path, fmt.Sprint(imageSize), iqn)
}

// close ends the labs that lunard made.
func (f *field) close() (err error) {
	for _, l := range f.labs {
		err = errors.Join(err, l.Close())
	}
	return err
}

// fileOn makes an XFS with one file, as lunard has it.
func (f *field) fileOn(ctx context.Context, device *lab.Loop, name string) (string, error) {
	mount, err := f.lab.MountXFS(ctx, device, name)
	if err != nil {
		return "", err
	}
	path := filepath.Join(mount.Path, "disk.img")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		return "", err
	}
	return path, os.Truncate(path, imageSize)
}
