package daemon

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"strings"
	"syscall"
	"time"

	"lunar/appliance/cluster"
	"lunar/appliance/namespace"
	"lunar/datapath/layout/protocol"
	"lunar/datapath/volume"
)

// backupTree is the folder of the namespace that shows what backups hold, ID/PATH, on every node and to be read only.
const backupTree = ".backup"

// heldBackup is a backup of any node, with its volume.
type heldBackup struct {
	v      *volumeState
	record cluster.Backup
}

// heldBackups are those that this node has heard of.
func (n *Node) heldBackups() (out []heldBackup) {
	for _, v := range n.sortedVolumes() {
		if h, ok := n.backupHold(v.id); ok {
			out = append(out, heldBackup{v, *h.Backup})
		}
	}
	return out
}

// heldImage finds the backup and the image that a path of backupTree names.
func (n *Node) heldImage(at string) (heldBackup, string, error) {
	id, path, _ := strings.Cut(at, "/")
	for _, b := range n.heldBackups() {
		if b.record.ID == id {
			return b, path, nil
		}
	}
	return heldBackup{}, "", fmt.Errorf("%s is of no backup that is under way: %w", at, syscall.ENOENT)
}

// heldFiles are a backup's images. They never change, and are asked for once.
func (t tree) heldFiles(ctx context.Context, b heldBackup) ([]namespace.File, error) {
	known := &t.n.backups
	if files := known.files(b.record.ID); files != nil {
		return files, nil
	}
	files := []namespace.File{}
	err := t.on(b.v.id, func(v *volumeState, p *parts) error {
		all, err := p.vol.Snapshots(ctx)
		for i := range all {
			if s := &all[i]; s.Name == b.record.Snapshot {
				files = append(files, namespace.File{Path: b.record.ID + "/" + s.Path, ID: heldID(v.id, s.ID), Size: s.Size, ModTime: time.Unix(0, s.Taken)})
			}
		}
		return err
	})
	if err == nil && len(files) > 0 {
		known.keepFiles(b.record.ID, files)
	}
	return files, err
}

// heldID is a number for a file, of all volumes.
func heldID(volumeID string, id protocol.ImageID) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(volumeID))
	_, _ = h.Write(binary.LittleEndian.AppendUint64(nil, uint64(id)))
	return h.Sum64()
}

// listHeld lists the images of all backups.
func (t tree) listHeld(ctx context.Context) (out []namespace.File, err error) {
	for _, b := range t.n.heldBackups() {
		files, err := t.heldFiles(ctx, b)
		if err != nil {
			return nil, err
		}
		out = append(out, files...)
	}
	return out, nil
}

// statHeld describes an image of a backup; EISDIR for a folder.
func (t tree) statHeld(ctx context.Context, at string) (namespace.File, error) {
	b, _, err := t.n.heldImage(at)
	if err != nil {
		return namespace.File{}, err
	}
	files, err := t.heldFiles(ctx, b)
	if err != nil {
		return namespace.File{}, err
	}
	for i := range files {
		switch f := &files[i]; {
		case f.Path == at:
			return *f, nil
		case strings.HasPrefix(f.Path, at+"/"):
			return *f, fmt.Errorf("%s is a folder: %w", at, syscall.EISDIR)
		}
	}
	return namespace.File{}, fmt.Errorf("%s: %w", at, syscall.ENOENT)
}

// openHeld opens an image of a backup.
func (t tree) openHeld(ctx context.Context, at string) (out *volume.Image, err error) {
	b, path, err := t.n.heldImage(at)
	if err != nil {
		return nil, err
	}
	err = t.on(b.v.id, func(_ *volumeState, p *parts) (err error) {
		out, err = p.vol.OpenImage(ctx, protocol.SnapshotPath(b.record.Snapshot, path))
		return err
	})
	return out, err
}

// errHeld refuses a change below backupTree.
var errHeld = fmt.Errorf("a backup is read-only: %w", syscall.EROFS)

// files is what is known of a backup's images, nil: nothing.
func (b *backups) files(id string) []namespace.File {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.shown[id]
}

// maxShown bounds the backups of which the images are known; those before are asked for again.
const maxShown = 64

func (b *backups) keepFiles(id string, files []namespace.File) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.shown == nil || len(b.shown) >= maxShown {
		b.shown = map[string][]namespace.File{}
	}
	b.shown[id] = files
}
