package coordinator

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"lunar/datapath/layout"
	"lunar/datapath/layout/protocol"
)

// takenAttribute is where a snapshot's folder keeps when it was taken, in nanoseconds since 1970, and for how
// many nanoseconds I/O was held.
const takenAttribute = "trusted.lunar.taken"

func setTaken(folder *os.File, at time.Time, hold time.Duration) error {
	text := fmt.Sprintf("%d %d", at.UnixNano(), hold)
	if err := unix.Fsetxattr(int(folder.Fd()), takenAttribute, []byte(text), 0); err != nil {
		return fmt.Errorf("set %s: %w", takenAttribute, err)
	}
	return nil
}

func takenAt(folder *os.File) (at int64, hold time.Duration, err error) {
	buf := make([]byte, 64)
	n, err := unix.Fgetxattr(int(folder.Fd()), takenAttribute, buf)
	if err == nil {
		_, err = fmt.Sscanf(string(buf[:n]), "%d %d", &at, &hold)
	}
	if err != nil {
		return 0, 0, fmt.Errorf("read %s: %w", takenAttribute, err)
	}
	return at, hold, nil
}

// removeAll removes a folder beneath the root and all in it; nil when it is not there.
func (m *mount) removeAll(dir string) error {
	root, err := os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", m.root.Fd()))
	if err != nil {
		return err
	}
	return errors.Join(root.RemoveAll(dir), root.Close())
}

// names lists what is in a folder; nothing when it is not there.
func (m *mount) names(dir string) ([]string, error) {
	folder, err := m.open(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = folder.Close() }()
	return folder.Readdirnames(-1)
}

// sweepSnapshots removes what a crash has left of snapshots that were not finished, or half removed.
func (c *Coordinator) sweepSnapshots() error {
	names, err := c.fs.names(makingFolder)
	if err != nil || len(names) == 0 {
		return err
	}
	return c.fs.removeAll(makingFolder)
}

// Snapshots describes every image of every snapshot on the volume, by name and path.
func (c *Coordinator) Snapshots(ctx context.Context) (all []protocol.Snapshot, err error) {
	if err := c.enter(); err != nil {
		return nil, err
	}
	defer c.exit(&err)
	names, err := c.fs.names(snapshotFolder)
	if err != nil {
		return nil, fmt.Errorf("list snapshots: %w", err)
	}
	slices.Sort(names)
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("list snapshots: %w", err)
		}
		some, err := c.snapshotsOf(name)
		if err != nil && !errors.Is(err, unix.ENOENT) { // it is removed meanwhile
			return nil, fmt.Errorf("list snapshot %s: %w", name, err)
		}
		all = append(all, some...)
	}
	return all, nil
}

func (c *Coordinator) snapshotsOf(name string) (all []protocol.Snapshot, err error) {
	at := path.Join(snapshotFolder, name)
	folder, err := c.fs.open(at, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = folder.Close() }()
	taken, hold, err := takenAt(folder)
	if err != nil {
		return nil, err
	}
	st, err := statAt(int(folder.Fd()), "", at)
	if err != nil {
		return nil, err
	}
	files, err := c.fs.walk(at, 0, nil)
	for _, f := range files {
		p := strings.TrimPrefix(f.Path, at+"/")
		all = append(all, protocol.Snapshot{Name: name, Path: p, ID: f.ID, Set: st.ID, Size: f.Size,
			Exclusive: c.exclusive(f), Taken: taken, Hold: int64(hold)})
	}
	slices.SortFunc(all, func(a, b protocol.Snapshot) int { return strings.Compare(a.Path, b.Path) })
	return all, err
}

// exclusive is how many bytes a file has for itself; 0 when it cannot be read.
func (c *Coordinator) exclusive(st protocol.Stat) (n int64) {
	f, err := c.fs.open(st.Path, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return 0
	}
	defer func() { _ = f.Close() }()
	extents, _ := fiemap(f, layout.Range{Len: st.Size})
	for _, e := range extents {
		if e.State == layout.Written || e.State == layout.Unwritten {
			n += e.Len
		}
	}
	return n
}

// openSnapshot opens one image of a snapshot.
func (c *Coordinator) openSnapshot(name, p string) (*os.File, protocol.Stat, error) {
	if err := errors.Join(protocol.CheckSnapshotName(name), checkPath(p)); err != nil {
		return nil, protocol.Stat{}, err
	}
	f, st, err := c.fs.openFile(path.Join(snapshotFolder, name, p), unix.O_RDONLY)
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("snapshot %s of image %s: %w: list the snapshots to see what there is", name, p, ErrNotFound)
	}
	return f, st, err
}

// DeleteSnapshot removes one image of a snapshot, or with an empty path all of it; ErrInUse while one that would
// go is open. m.Image, if it is not 0, is the Snapshot's ID or Set: then a later one of the same name stays.
func (c *Coordinator) DeleteSnapshot(ctx context.Context, m protocol.Meta, name, p string) error {
	if p != "" {
		if err := checkPath(p); err != nil {
			return err
		}
	}
	return c.changeSnapshot(ctx, m, name, "delete", func() error {
		err := c.deleteSnapshot(m, name, p)
		if errors.Is(err, unix.ENOENT) && m.Retry {
			return nil // an earlier try did it
		}
		return err
	})
}

func (c *Coordinator) deleteSnapshot(m protocol.Meta, name, p string) error {
	all, err := c.snapshotsOf(name)
	if err != nil {
		return err
	}
	isIt := func(s protocol.Snapshot) bool {
		return (p == "" || s.Path == p) && (m.Image == 0 || m.Image == s.ID || p == "" && m.Image == s.Set)
	}
	isOpen := func(s protocol.Snapshot) bool { return isIt(s) && c.opened(s.ID) != nil }
	switch i := slices.IndexFunc(all, isIt); {
	case i < 0:
		return fmt.Errorf("image %q: %w there", p, ErrNotFound)
	case slices.ContainsFunc(all, isOpen):
		at := all[slices.IndexFunc(all, isOpen)]
		return fmt.Errorf("image %s@%s: %w: unmap it from its targets first", at.Path, name, ErrInUse)
	case p != "" && len(all) > 1:
		return c.deleteFile(path.Join(snapshotFolder, name, p))
	}
	trash := path.Join(makingFolder, m.Key.String())
	if err := c.fs.removeAll(trash); err != nil {
		return err
	}
	if err := c.moveFolder(path.Join(snapshotFolder, name), trash); err != nil {
		return err
	}
	return c.fs.removeAll(trash)
}

// deleteFile removes a file, durably.
func (c *Coordinator) deleteFile(at string) error {
	folder, err := c.fs.openFolder(at, false)
	if err != nil {
		return err
	}
	defer func() { _ = folder.Close() }()
	if err := unix.Unlinkat(int(folder.Fd()), path.Base(at), 0); err != nil {
		return err
	}
	c.step("snapshot unlinked")
	return durable(folder)
}

// CloneSnapshot makes a new image at to, equal to an image of a snapshot, which shares its blocks.
func (c *Coordinator) CloneSnapshot(ctx context.Context, m protocol.Meta, name, p, to string) error {
	return c.changeName(ctx, m, to, "clone of "+p+"@"+name, func() error {
		f, _, err := c.openSnapshot(name, p)
		if err != nil {
			return err
		}
		defer func() { _ = f.Close() }()
		if done, err := c.made(m, to); done || err != nil {
			return err
		}
		return c.reflink(m, f, to)
	})
}

// Revert makes an image what it was in a snapshot, size included, at once or not at all. ErrInUse while it
// is open: who has it open knows the content of now.
func (c *Coordinator) Revert(ctx context.Context, m protocol.Meta, name, p string) error {
	return c.changeName(ctx, m, p, "revert to "+name, func() error {
		f, _, err := c.openSnapshot(name, p)
		if err != nil {
			return err
		}
		defer func() { _ = f.Close() }()
		if done, err := c.reverted(m, p); done || err != nil {
			return err
		}
		return c.replace(m, f, p)
	})
}

// reverted tells whether the call m has replaced the image, and else that nobody has it open.
func (c *Coordinator) reverted(m protocol.Meta, p string) (bool, error) {
	f, st, err := c.fs.openImage(p)
	if err != nil {
		return false, err
	}
	defer func() { _ = f.Close() }()
	if madeBy(f, m.Key) {
		return true, errors.Join(durable(f), c.syncFolder(p))
	}
	if c.opened(st.ID) != nil {
		return false, fmt.Errorf("%w: unmap it from its targets first", ErrInUse)
	}
	return false, nil
}

// replace puts a file that shares the blocks of f in the place of the image at p.
func (c *Coordinator) replace(m protocol.Meta, f *os.File, p string) error {
	at := path.Join(makingFolder, m.Key.String())
	if err := c.fs.removeAll(at); err != nil {
		return err
	}
	if err := c.reflink(m, f, at); err != nil {
		return err
	}
	source, err := c.fs.openFolder(at, false)
	if err != nil {
		return err
	}
	defer func() { _ = source.Close() }()
	target, err := c.fs.openFolder(p, false)
	if err != nil {
		return err
	}
	defer func() { _ = target.Close() }()
	if err := unix.Renameat(int(source.Fd()), path.Base(at), int(target.Fd()), path.Base(p)); err != nil {
		return err
	}
	c.step("replaced")
	return errors.Join(durable(target), durable(source))
}

// Diff tells which ranges of an image differ between two snapshots, in order: those whose blocks they do
// not share. A range that was written with what it had counts as different.
func (c *Coordinator) Diff(ctx context.Context, p, from, to string) (changed []layout.Range, err error) {
	changes, err := c.Changes(ctx, p, from, to)
	for _, d := range changes {
		if n := len(changed); n > 0 && changed[n-1].End() == d.Off {
			changed[n-1].Len += d.Len
			continue
		}
		changed = append(changed, d.Range)
	}
	return changed, err
}

// Change is a range that differs between two snapshots of an image.
type Change struct {
	layout.Range
	// New says that it had no data before, and has blocks now: where it reads as zeroes nothing has changed. That is so
	// for what was allocated ahead of writes.
	New bool
}

// Changes is Diff for who can tell more of it by reading.
func (c *Coordinator) Changes(_ context.Context, p, from, to string) (changes []Change, err error) {
	if err := c.enter(); err != nil {
		return nil, err
	}
	defer c.exit(&err)
	before, err := c.snapshotLayout(from, p)
	if err != nil {
		return nil, err
	}
	after, err := c.snapshotLayout(to, p)
	if err != nil {
		return nil, err
	}
	for d := range layout.Diff(before, after) {
		if same(d.Before, d.After) {
			continue
		}
		x := Change{layout.Range{Off: d.After.FileOff, Len: d.After.Len}, d.Before.State.Zero()}
		if n := len(changes); n > 0 && changes[n-1].End() == x.Off && changes[n-1].New == x.New {
			changes[n-1].Len += x.Len
			continue
		}
		changes = append(changes, x)
	}
	return changes, nil
}

// same tells whether two extents of the same range have the same content for certain.
func same(a, b layout.Extent) bool {
	if a.State.Zero() && b.State.Zero() {
		return true
	}
	return a.State.Readable() && b.State.Readable() && a.DevOff == b.DevOff
}

func (c *Coordinator) snapshotLayout(name, p string) (*layout.Layout, error) {
	f, st, err := c.openSnapshot(name, p)
	if err != nil {
		return nil, explain(p, "compare", err)
	}
	defer func() { _ = f.Close() }()
	extents, err := fiemap(f, layout.Range{Len: st.Size})
	if err != nil {
		return nil, explain(p, "compare", err)
	}
	if slices.ContainsFunc(extents, func(e layout.Extent) bool { return e.State == layout.Withheld }) {
		return nil, explain(p, "compare", fmt.Errorf("%w: the file system does not tell where all of its blocks are", ErrUnsupported))
	}
	return layout.New(st.Size, extents)
}
