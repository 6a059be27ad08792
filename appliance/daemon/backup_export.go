package daemon

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"lunar/appliance/api"
	"lunar/datapath/coordinator"
	"lunar/datapath/layout"
	"lunar/datapath/layout/protocol"
	"lunar/datapath/volume"
	"lunar/datapath/wire/nbd"
)

// backupImage is one image of a backup, as the snapshot has it.
type backupImage struct {
	b    *backup
	path string

	image   *volume.Image
	layout  *layout.Layout // all of it, as the file system has it
	changes changes        // since the other snapshot
	read    atomic.Int64   // bytes that were served
}

// open opens all images of the snapshot.
func (b *backup) open(ctx context.Context) error {
	for _, im := range b.images {
		if err := b.with(func(p *parts) error { return im.open(ctx, p) }); err != nil {
			return err
		}
	}
	return nil
}

func (im *backupImage) open(ctx context.Context, p *parts) (err error) {
	if im.image, err = p.vol.OpenImage(ctx, protocol.SnapshotPath(im.b.record.Snapshot, im.path)); err != nil {
		return err
	}
	s := im.b.v.seat.Load()
	if s == nil || s.coordinator(0) == nil {
		return api.Errorf(api.Unavailable, "this node does not coordinate volume %s any more", im.b.v.name()).WithHint("try again")
	}
	c := s.coordinator(0)
	if im.layout, err = c.Layout(protocol.Call{Image: im.image.ID(), Epoch: c.Epoch()}); err != nil {
		return err
	}
	return im.compare(ctx, c)
}

// compare finds what has changed. An image that the other snapshot does not have has changed everywhere.
func (im *backupImage) compare(ctx context.Context, c *coordinator.Coordinator) (err error) {
	since := im.b.r.Since
	if since == "" {
		return nil
	}
	im.changes.read = im.fetch
	im.changes.all, err = c.Changes(ctx, im.path, since, im.b.record.Snapshot)
	if errors.Is(err, coordinator.ErrNotFound) {
		im.changes.all, err = []coordinator.Change{{Range: layout.Range{Len: im.layout.Size()}}}, nil
	}
	im.changes.clip(im.layout.Size())
	return err
}

// fetch reads p.
func (im *backupImage) fetch(ctx context.Context, p []byte, off int64) error {
	return patiently(ctx, func() error {
		_, err := im.image.ReadAt(p, off)
		return err
	})
}

// close ends the use of the image.
func (im *backupImage) close(ctx context.Context) error {
	if im.image == nil {
		return nil
	}
	return im.image.Close(ctx)
}

func (im *backupImage) describe() api.BackupImage {
	out := api.BackupImage{Image: im.b.v.name() + "/" + im.path, Export: im.path, Size: im.layout.Size(), Read: im.read.Load()}
	at := (&url.URL{Path: "/" + im.path}).EscapedPath()
	out.URI = "nbd+unix://" + at + "?socket=" + url.QueryEscape(im.b.socket)
	if im.b.address != "" {
		out.TLSURI = "nbds://" + im.b.address + at
	}
	for e := range im.layout.In(layout.Range{Len: im.layout.Size()}) {
		if !e.State.Zero() {
			out.Data += e.Len
		}
	}
	if im.b.r.Since == "" {
		return out
	}
	changed := im.changes.bytes()
	out.Changed, out.Bitmap = &changed, nbd.DirtyBitmap+im.b.r.Since
	return out
}

// export finds an image by its path; of a backup of one image it is the default, too.
func (b *backup) export(_ context.Context, name string, _ nbd.Peer) (nbd.Export, error) {
	for _, im := range b.images {
		if im.path == name || name == "" && len(b.images) == 1 {
			return &backupExport{im}, nil
		}
	}
	return nil, fmt.Errorf("backup %s has no image %q: %w", b.record.ID, name, unix.ENOENT)
}

// exports are the images' paths.
func (b *backup) exports(context.Context, nbd.Peer) (names []string) {
	for _, im := range b.images {
		names = append(names, im.path)
	}
	return names
}

// backupExport is an image as NBD serves it.
type backupExport struct{ *backupImage }

var (
	_ nbd.Export = (*backupExport)(nil)
	_ nbd.Marked = (*backupExport)(nil)
)

// Size implements nbd.Export.
func (x *backupExport) Size() int64 { return x.layout.Size() }

// Info implements nbd.Export.
func (x *backupExport) Info() nbd.Info {
	return nbd.Info{ReadOnly: true, Block: uint32(x.image.BlockSize()), Preferred: uint32(os.Getpagesize()), Description: x.path + " in backup " + x.b.record.ID}
}

// Read implements nbd.Export.
func (x *backupExport) Read(ctx context.Context, p []byte, off int64) error {
	err := x.fetch(ctx, p, off)
	if err == nil {
		x.read.Add(int64(len(p)))
	}
	return err
}

// errBackup refuses what would change a backup; the server has refused it before.
var errBackup = fmt.Errorf("a backup is read-only: %w", unix.EPERM)

// Write implements nbd.Export.
func (x *backupExport) Write(context.Context, []byte, int64, bool) error { return errBackup }

// Flush implements nbd.Export.
func (x *backupExport) Flush(context.Context) error { return nil }

// Trim implements nbd.Export.
func (x *backupExport) Trim(context.Context, int64, int64) error { return errBackup }

// WriteZeroes implements nbd.Export.
func (x *backupExport) WriteZeroes(context.Context, int64, int64, nbd.ZeroOptions) error {
	return errBackup
}

// Status implements nbd.Export.
func (x *backupExport) Status(_ context.Context, off, n int64, each func(nbd.Extent) bool) error {
	for e := range x.layout.In(layout.Range{Off: off, Len: n}) {
		if !each(nbd.Extent{Len: e.Len, Hole: !e.State.Allocated(), Zero: e.State.Zero()}) {
			return nil
		}
	}
	return nil
}

// Bitmaps implements nbd.Marked.
func (x *backupExport) Bitmaps() []string {
	if x.b.r.Since == "" {
		return nil
	}
	return []string{x.b.r.Since}
}

// Marks implements nbd.Marked.
func (x *backupExport) Marks(ctx context.Context, bitmap string, off, n int64, each func(nbd.Mark) bool) error {
	if bitmap != x.b.r.Since {
		return fmt.Errorf("bitmap %q: %w", bitmap, unix.ENOENT)
	}
	return x.changes.marks(ctx, off, n, each)
}

// Close implements nbd.Export.
func (x *backupExport) Close() error { return nil }
