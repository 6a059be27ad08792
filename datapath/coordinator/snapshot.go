package coordinator

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"lunar/datapath/layout/protocol"
)

// The hidden folder of a volume, and what is in it. No image has a path there.
const (
	hiddenFolder   = ".lunar"
	snapshotFolder = hiddenFolder + "/snapshots" // NAME/PATH
	makingFolder   = hiddenFolder + "/making"    // what is not finished, or half removed: swept at the mount
)

// Bounds of the space that a snapshot wants free: the images' next writes need blocks of their own.
const (
	minSpare = 16 << 20
	maxSpare = 1 << 30
)

// Snapshot keeps the images at paths as they are at one instant, under a name. Their I/O is held meanwhile,
// on all nodes, for as long as hold says: from when the first image is asked for until the last is granted
// again. Nothing is held when it can be seen before that the snapshot cannot be. It is whole and durable on
// return, and not there after an error. Once per key of m.
//
// ErrUnsupported on a file system that cannot share blocks, ErrNoSpace when too little is free for the writes
// after it, ErrExists, ErrNotFound, ErrRecall when a node did not let go of an image in time.
func (c *Coordinator) Snapshot(ctx context.Context, m protocol.Meta, name string, paths []string) (hold time.Duration, err error) {
	if err := checkSnapshotOf(paths); err != nil {
		return 0, explainOf("snapshot "+name, "create", err)
	}
	err = c.changeSnapshot(ctx, m, name, "create", func() error {
		hold, err = c.snapshot(ctx, m, name, paths)
		return err
	})
	return hold, err
}

// checkSnapshotOf refuses lists of images that make no snapshot.
func checkSnapshotOf(paths []string) error {
	if len(paths) == 0 || len(paths) > protocol.MaxSnapshotImages {
		return fmt.Errorf("of %d images: %w: name 1 to %d", len(paths), unix.EINVAL, protocol.MaxSnapshotImages)
	}
	sorted := slices.Sorted(slices.Values(paths))
	for i, p := range sorted {
		if err := checkPath(p); err != nil {
			return err
		}
		if i > 0 && p == sorted[i-1] {
			return fmt.Errorf("image %s is named twice: %w", p, unix.EINVAL)
		}
	}
	return nil
}

// changeSnapshot is changeName for what is about a snapshot.
func (c *Coordinator) changeSnapshot(ctx context.Context, m protocol.Meta, name, operation string, fn func() error) error {
	what := "snapshot " + name
	if err := protocol.CheckSnapshotName(name); err != nil {
		return explainOf(what, operation, err)
	}
	if err := c.unsuspended(ctx, name); err != nil {
		return explainOf(what, operation, err)
	}
	return c.changeOf(ctx, m, what, operation, fn)
}

// set is a snapshot in the making. All its files lie in one folder, which gets its name at the end.
type set struct {
	c       *Coordinator
	m       protocol.Meta
	at      string // the folder
	members []*memberOf
	taken   time.Time
	hold    time.Duration
}

// memberOf is one image of a set.
type memberOf struct {
	path           string
	source, target *os.File
	im             *image // nil unless it is open
}

func (c *Coordinator) snapshot(ctx context.Context, m protocol.Meta, name string, paths []string) (hold time.Duration, err error) {
	if made, hold, err := c.madeSet(m, name); made || err != nil {
		return hold, err
	}
	if err := c.room(); err != nil {
		return 0, err
	}
	s := &set{c: c, m: m, at: path.Join(makingFolder, m.Key.String())}
	defer func() {
		s.close()
		if err != nil && !c.down.Load() {
			_ = c.fs.removeAll(s.at) // what is left goes at the next mount
		}
	}()
	if err := s.begin(paths); err != nil {
		return 0, err
	}
	c.step("files made")
	if err := s.take(ctx); err != nil {
		return 0, err
	}
	c.step("taken")
	if err := s.publish(name); err != nil {
		return 0, err
	}
	c.opts.Log.Info("snapshot taken", "name", name, "images", len(paths), "hold", s.hold)
	return s.hold, nil
}

// madeSet tells whether the call with m's key has made the snapshot; ErrExists when another has.
func (c *Coordinator) madeSet(m protocol.Meta, name string) (made bool, hold time.Duration, err error) {
	folder, err := c.fs.open(path.Join(snapshotFolder, name), unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if errors.Is(err, unix.ENOENT) {
		return false, 0, nil
	}
	if err != nil {
		return false, 0, err
	}
	defer func() { _ = folder.Close() }()
	if !madeBy(folder, m.Key) {
		return false, 0, ErrExists
	}
	_, hold, err = takenAt(folder)
	return true, hold, errors.Join(err, durable(folder), c.syncFolder(path.Join(snapshotFolder, name)))
}

// room refuses a snapshot on a volume where the writes after it would find no blocks.
func (c *Coordinator) room() error {
	size, free, err := c.fs.space()
	if err != nil {
		return err
	}
	if want := min(maxSpare, max(minSpare, size/100)); free < want {
		return fmt.Errorf("%w: %d bytes are free, and writes after a snapshot need blocks of their own: free %d: delete or move images, or grow the volume", ErrNoSpace, free, want)
	}
	return nil
}

// begin makes the set's folder, with empty files in it.
func (s *set) begin(paths []string) error {
	if err := errors.Join(s.c.fs.removeAll(s.at), s.c.fs.mkdirAll(snapshotFolder), s.c.fs.mkdirAll(s.at)); err != nil {
		return err
	}
	for _, p := range paths {
		m := &memberOf{path: p}
		s.members = append(s.members, m)
		if err := s.open(m); err != nil {
			return explain(p, "open", err)
		}
	}
	return s.trial()
}

func (s *set) open(m *memberOf) error {
	f, st, err := s.c.fs.openImage(m.path)
	if err != nil {
		return err
	}
	m.source, m.im = f, s.c.opened(st.ID)
	at := path.Join(s.at, m.path)
	folder, err := s.c.fs.openFolder(at, true)
	if err != nil {
		return err
	}
	defer func() { _ = folder.Close() }()
	m.target, err = s.c.fs.open(at, unix.O_CREAT|unix.O_EXCL|unix.O_RDWR|unix.O_DIRECT, 0o600)
	return err
}

// trial finds out, before anything is held, whether blocks can be shared here.
func (s *set) trial() error {
	from, err := s.c.fs.open(s.at, unix.O_TMPFILE|unix.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = from.Close() }()
	to, err := s.c.fs.open(s.at, unix.O_TMPFILE|unix.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = to.Close() }()
	return s.c.cloneFile(to, from)
}

func (s *set) close() {
	for _, m := range s.members {
		for _, f := range []*os.File{m.source, m.target} {
			if f != nil {
				_ = f.Close()
			}
		}
	}
}

// publish makes all that was taken durable, and then gives it its name, at once or not at all.
func (s *set) publish(name string) error {
	for _, m := range s.members {
		if err := durable(m.target); err != nil {
			return explain(m.path, "commit", err)
		}
	}
	folder, err := s.c.fs.open(s.at, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer func() { _ = folder.Close() }()
	if err := errors.Join(setKey(folder, s.m.Key), setTaken(folder, s.taken, s.hold), s.c.fs.sync(), durable(folder)); err != nil {
		return err
	}
	s.c.step("set durable")
	return s.c.moveFolder(s.at, path.Join(snapshotFolder, name))
}

// moveFolder gives a folder of the hidden one another path, durably; ErrExists when that is taken.
func (c *Coordinator) moveFolder(from, to string) error {
	source, err := c.fs.openFolder(from, true)
	if err != nil {
		return err
	}
	defer func() { _ = source.Close() }()
	target, err := c.fs.openFolder(to, true)
	if err != nil {
		return err
	}
	defer func() { _ = target.Close() }()
	err = unix.Renameat2(int(source.Fd()), path.Base(from), int(target.Fd()), path.Base(to), unix.RENAME_NOREPLACE)
	if err != nil {
		return err
	}
	c.step("set moved")
	return errors.Join(durable(target), durable(source))
}
