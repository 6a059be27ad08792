package coordinator

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// open opens path beneath the root, part by part: no symbolic link, no ".." and no other mount is followed. It is what openat2(2)
// does with RESOLVE_BENEATH, _NO_SYMLINKS and _NO_XDEV, which systemd's RestrictSUIDSGID= takes away. Each part is looked up in
// a folder that is held open, so that a rename meanwhile leads nowhere else.
func (m *mount) open(path string, flags uint64, mode uint64) (*os.File, error) {
	at := int(m.tree.Fd())
	dir, last := -1, path
	defer func() {
		if dir >= 0 {
			_ = unix.Close(dir)
		}
	}()
	for {
		part, rest, more := strings.Cut(last, "/")
		if part == "" || part == ".." {
			return nil, unix.EXDEV
		}
		if !more {
			break
		}
		next, err := m.step(at, part, unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			return nil, err
		}
		if dir >= 0 {
			_ = unix.Close(dir)
		}
		at, dir, last = next, next, rest
	}
	fd, err := m.step(at, last, int(flags), uint32(mode))
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), path), nil
}

// step opens one part in a folder, if it lies on the mount.
func (m *mount) step(at int, part string, flags int, mode uint32) (int, error) {
	for {
		fd, err := unix.Openat(at, part, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC, mode)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ENOTDIR) && isLink(at, part):
			return -1, unix.ELOOP // O_DIRECTORY hides it
		case err != nil:
			return -1, err
		}
		id, err := mountOf(fd)
		if err == nil && id != m.id {
			err = unix.EXDEV
		}
		if err != nil {
			return -1, errors.Join(err, unix.Close(fd))
		}
		return fd, nil
	}
}

func isLink(at int, part string) bool {
	var st unix.Stat_t
	err := unix.Fstatat(at, part, &st, unix.AT_SYMLINK_NOFOLLOW)
	return err == nil && st.Mode&unix.S_IFMT == unix.S_IFLNK
}

// mountOf is the mount that fd's file is on (kernel 5.8).
func mountOf(fd int) (uint64, error) {
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_MNT_ID, &st); err != nil {
		return 0, fmt.Errorf("statx: %w", err)
	}
	return st.Mnt_id, nil
}
