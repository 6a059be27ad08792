package loopdev

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Mount mounts the XFS on a device without a path, as a coordinator does, and opens its root: the file system is
// unmounted when the caller has closed that. It may be mounted through another path of the LUN as well, as that of a
// node that is out.
func Mount(device string) (*os.File, error) {
	fail := func(err error) (*os.File, error) { return nil, fmt.Errorf("mount %s: %w", device, err) }
	fd, err := unix.Fsopen("xfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fail(err)
	}
	defer unix.Close(fd) //nolint:errcheck // the mount has its own reference
	if err = unix.FsconfigSetString(fd, "source", device); err == nil {
		err = unix.FsconfigSetFlag(fd, "nouuid")
	}
	if err == nil {
		err = unix.FsconfigCreate(fd)
	}
	if err != nil {
		return fail(err)
	}
	tree, err := unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return fail(err)
	}
	defer unix.Close(tree) //nolint:errcheck // the root keeps the mount
	root, err := unix.Openat(tree, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fail(err)
	}
	return os.NewFile(uintptr(root), device), nil
}
