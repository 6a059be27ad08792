package diskfile

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What a confined program may do with a file, and with folders of programs and libraries.
const (
	mayRead  = unix.LANDLOCK_ACCESS_FS_READ_FILE
	mayWrite = mayRead | unix.LANDLOCK_ACCESS_FS_WRITE_FILE | unix.LANDLOCK_ACCESS_FS_TRUNCATE
	mayRun   = mayRead | unix.LANDLOCK_ACCESS_FS_READ_DIR | unix.LANDLOCK_ACCESS_FS_EXECUTE
)

// system is what every program needs of the machine.
var system = map[string]uint64{
	"/usr": mayRun, "/lib": mayRun, "/lib64": mayRun, "/bin": mayRun, "/nix/store": mayRun,
	"/etc/ld.so.cache": mayRead, "/etc/ld.so.preload": mayRead, "/etc/ssl": mayRead, "/etc/pki": mayRead, "/etc/gnutls": mayRead, "/etc/crypto-policies": mayRead,
	"/dev/null": mayWrite, "/dev/urandom": mayRead, "/dev/random": mayRead, "/sys": mayRead | unix.LANDLOCK_ACCESS_FS_READ_DIR,
}

// allowed is a path and what may be done there.
type allowed map[string]uint64

// rights are those of the kernel's version of Landlock: of the file system, of the network.
func rights(version int) (files, net uint64) {
	bits := map[int]int{1: 13, 2: 14, 3: 15, 4: 15}
	n, ok := bits[version]
	if !ok {
		n = 16
	}
	if version >= 4 {
		net = unix.LANDLOCK_ACCESS_NET_BIND_TCP | unix.LANDLOCK_ACCESS_NET_CONNECT_TCP
	}
	return 1<<n - 1, net
}

// attrSize is how much of the attributes is given: what the kernel does not know has to be left out, or nought.
const attrSize = 16

// run runs a program that can open what a says and the system's own, and no network. Where the kernel
// has no Landlock it runs as any other.
func run(cmd *exec.Cmd, a allowed) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for ever: the thread is confined, and ends with this goroutine
		if err := confine(filepath.Dir(cmd.Path), a); err != nil {
			done <- err
			return
		}
		done <- cmd.Run() // the thread lives on until the program has ended, as Pdeathsig wants
	}()
	return <-done
}

// confine confines the calling thread, and what it starts.
func confine(programs string, a allowed) error {
	version, _, no := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if no != 0 {
		return nil
	}
	files, net := rights(int(version))
	attr := unix.LandlockRulesetAttr{Handled_access_fs: files, Handled_access_net: net}
	fd, _, no := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&attr)), attrSize, 0)
	if no != 0 {
		return fmt.Errorf("confine qemu-img: %w", no)
	}
	defer func() { _ = unix.Close(int(fd)) }()
	err := allow(int(fd), programs, mayRun&files)
	for _, list := range []allowed{system, a} {
		for path, access := range list {
			err = errors.Join(err, allow(int(fd), path, access&files))
		}
	}
	if err == nil {
		err = unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
	}
	if err != nil {
		return fmt.Errorf("confine qemu-img: %w", err)
	}
	if _, _, no := unix.Syscall(unix.SYS_LANDLOCK_RESTRICT_SELF, fd, 0, 0); no != 0 {
		return fmt.Errorf("confine qemu-img: %w", no)
	}
	return nil
}

// allow adds a rule; what is not there, or not the user's to open, needs none.
func allow(ruleset int, path string, access uint64) error {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EACCES) {
		return nil
	}
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer func() { _ = unix.Close(fd) }()
	rule := unix.LandlockPathBeneathAttr{Allowed_access: access, Parent_fd: int32(fd)}
	_, _, no := unix.Syscall6(unix.SYS_LANDLOCK_ADD_RULE, uintptr(ruleset), unix.LANDLOCK_RULE_PATH_BENEATH, uintptr(unsafe.Pointer(&rule)), 0, 0, 0)
	if no != 0 {
		return fmt.Errorf("%s: %w", path, no)
	}
	return nil
}
