package coordinator

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"lunar/datapath/layout/protocol"
)

// lostAndFound is ext4's own folder.
const lostAndFound = "lost+found"

// checkPath tells what is wrong with an image's path within the volume.
func checkPath(p string) error {
	reason := ""
	switch {
	case p == "":
		reason = "it is empty"
	case strings.ContainsRune(p, 0):
		reason = "it has a NUL"
	case strings.HasPrefix(p, "/"):
		reason = "it begins with a slash"
	case path.Clean(p) != p || p == "." || p == ".." || strings.HasPrefix(p, "../"):
		reason = "it leaves the volume, or has empty or dot parts"
	case p == lostAndFound || strings.HasPrefix(p, lostAndFound+"/"):
		reason = "the file system keeps that name"
	case p == hiddenFolder || strings.HasPrefix(p, hiddenFolder+"/"):
		reason = "the volume keeps its snapshots there"
	}
	if reason == "" {
		return nil
	}
	return fmt.Errorf("image %q: %w: %s: give NAME or DIR/NAME within the volume", p, ErrPath, reason)
}

// openImage opens an image's file for direct I/O. An image is a regular file that holds its content
// in plain blocks.
func (m *mount) openImage(p string) (*os.File, protocol.Stat, error) {
	if err := checkPath(p); err != nil {
		return nil, protocol.Stat{}, err
	}
	return m.openFile(p, unix.O_RDWR)
}

// openFile is openImage for a path of any kind; access is O_RDONLY or O_RDWR.
func (m *mount) openFile(p string, access uint64) (*os.File, protocol.Stat, error) {
	var st protocol.Stat
	if err := m.checkFile(p); err != nil {
		return nil, st, err
	}
	f, err := m.open(p, access|unix.O_DIRECT|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, st, err
	}
	st, err = statAt(int(f.Fd()), "", p)
	if err = errors.Join(err, m.checkPlacement(f)); err != nil {
		return nil, st, errors.Join(err, f.Close())
	}
	return f, st, nil
}

// statImage describes the regular file at p.
func (m *mount) statImage(p string) (st protocol.Stat, err error) {
	f, err := m.open(p, unix.O_PATH|unix.O_NOFOLLOW, 0)
	if err != nil {
		return st, err
	}
	defer func() { _ = f.Close() }()
	if err := checkAttributes(f); err != nil {
		return st, err
	}
	return statAt(int(f.Fd()), "", p)
}

// checkFile looks at what lies at p before it is opened: opening some files has effects, or fails
// without saying why.
func (m *mount) checkFile(p string) error {
	f, err := m.open(p, unix.O_PATH|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	return checkAttributes(f)
}

// openFolder opens the folder that p lies in; with mkdir it and those above it are made.
func (m *mount) openFolder(p string, mkdir bool) (*os.File, error) {
	dir := path.Dir(p)
	if mkdir && dir != "." {
		if err := m.mkdirAll(dir); err != nil {
			return nil, err
		}
	}
	return m.open(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
}

func (m *mount) mkdirAll(dir string) error {
	folder, err := m.open(".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	at := ""
	for _, part := range strings.Split(dir, "/") {
		err := unix.Mkdirat(int(folder.Fd()), part, 0o700)
		if err == nil {
			err = durable(folder)
		}
		_ = folder.Close()
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return err
		}
		at = path.Join(at, part)
		if folder, err = m.open(at, unix.O_RDONLY|unix.O_DIRECTORY, 0); err != nil {
			return err
		}
	}
	return folder.Close()
}

// Bounds of a walk over the volume.
const (
	maxDepth  = 32
	maxImages = 100_000
)

// walk lists the regular files below dir.
func (m *mount) walk(dir string, depth int, found []protocol.Stat) ([]protocol.Stat, error) {
	folder, err := m.open(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return found, err
	}
	defer func() { _ = folder.Close() }()
	entries, err := folder.ReadDir(-1)
	if err != nil {
		return found, err
	}
	for _, e := range entries {
		at := path.Join(dir, e.Name())
		switch {
		case len(found) >= maxImages:
			return found, fmt.Errorf("more than %d files: %w", maxImages, ErrUnsupported)
		case e.IsDir() && at != lostAndFound && at != hiddenFolder && depth < maxDepth:
			found, err = m.walk(at, depth+1, found)
			if err != nil && !errors.Is(err, unix.ENAMETOOLONG) { // deeper than a path can name: no image
				return found, err
			}
		case e.Type().IsRegular():
			if st, err := m.stat(folder, at); err == nil {
				found = append(found, st)
			}
		}
	}
	return found, nil
}

// stat describes the file at p, which lies in folder; one that has just gone is fs.ErrNotExist.
func (m *mount) stat(folder *os.File, p string) (protocol.Stat, error) {
	st, err := statAt(int(folder.Fd()), path.Base(p), p)
	if err != nil {
		return st, &fs.PathError{Op: "stat", Path: p, Err: err}
	}
	return st, nil
}

// statAt describes the file name in folder, or folder itself when that is empty, which is the one at p.
func statAt(folder int, name, p string) (protocol.Stat, error) {
	var st unix.Statx_t
	flags := unix.AT_SYMLINK_NOFOLLOW
	if name == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	if err := unix.Statx(folder, name, flags, unix.STATX_BASIC_STATS|unix.STATX_BTIME, &st); err != nil {
		return protocol.Stat{}, err
	}
	return protocol.Stat{Path: p, ID: imageID(&st), Size: int64(st.Size), Used: int64(st.Blocks) * 512, ModTime: st.Mtime.Sec}, nil
}
