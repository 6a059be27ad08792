// Package publish shows the machine what a daemon has mounted in a mount namespace of its own, as systemd's sandbox gives it:
// the tree of package namespace.
//
// The mount is cloned there and attached here, at the same path. Both are one file system: it ends with the daemon, and what is
// left here is taken away by Hide. The caller's duties: full rights, and a process that ends soon after Show.
package publish

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// kind is the tree's type in proc_pid_mountinfo(5).
const kind = "fuse.lunar"

// machine is the process whose mount namespace is the machine's. A command of a unit has one of its own, also with systemd's "+".
const machine = 1

// Show attaches the tree that process pid has mounted, and writes its path to the file record. Without such a tree, or when it
// is there already, it does nothing and the path is empty.
func Show(pid int, record string) (path string, err error) {
	if path, err = mounted(pid); path == "" {
		return "", err
	}
	if there, err := mounted(machine); err != nil || there == path {
		return "", err
	}
	tree := -1
	err = within(pid, func() (err error) {
		tree, err = unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("clone %s of process %d: %w", path, pid, err)
	}
	defer func() { _ = unix.Close(tree) }()
	if err := os.WriteFile(record, []byte(path), 0o600); err != nil {
		return "", err
	}
	err = within(machine, func() error {
		return errors.Join(os.MkdirAll(path, 0o755), unix.MoveMount(tree, "", unix.AT_FDCWD, path, unix.MOVE_MOUNT_F_EMPTY_PATH))
	})
	if err != nil {
		return "", fmt.Errorf("mount %s: %w", path, err)
	}
	return path, nil
}

// Hide takes away what Show has attached.
func Hide(record string) error {
	path, err := os.ReadFile(record)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if there, err := mounted(machine); err == nil && there == string(path) {
		err = within(machine, func() error { return unix.Unmount(there, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) })
		if err != nil && !errors.Is(err, unix.EINVAL) { // somebody has
			return fmt.Errorf("unmount %s: %w", there, err)
		}
	}
	return os.Remove(record)
}

// within runs fn in a process's mount namespace.
func within(pid int, fn func() error) error {
	there, err := os.Open(fmt.Sprintf("/proc/%d/ns/mnt", pid))
	if err != nil {
		return err
	}
	defer func() { _ = there.Close() }()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // to its end: the thread is in the other namespace
		err := unix.Unshare(unix.CLONE_FS)
		if err == nil {
			err = unix.Setns(int(there.Fd()), unix.CLONE_NEWNS)
		}
		if err == nil {
			err = fn()
		}
		done <- err
	}()
	return <-done
}

// mounted is where a process sees the tree; "" for nowhere.
func mounted(pid int) (string, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(text)) {
		front, back, _ := strings.Cut(line, " - ")
		fields, tail := strings.Fields(front), strings.Fields(back)
		const point = 4
		if len(fields) > point && len(tail) > 0 && tail[0] == kind {
			return unescape.Replace(fields[point]), nil
		}
	}
	return "", nil
}

var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
