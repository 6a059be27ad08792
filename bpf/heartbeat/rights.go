package heartbeat

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// needed are the capabilities without which the kernel refuses, and that which stands in for two of them.
var needed = []struct {
	number uint
	name   string
	or     uint
}{
	{unix.CAP_BPF, "CAP_BPF", unix.CAP_SYS_ADMIN},
	{unix.CAP_NET_ADMIN, "CAP_NET_ADMIN", unix.CAP_NET_ADMIN},
	{unix.CAP_PERFMON, "CAP_PERFMON", unix.CAP_SYS_ADMIN},
}

// rights says which capabilities the calling thread lacks.
func rights() error {
	var data [2]unix.CapUserData
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	if err := unix.Capget(&header, &data[0]); err != nil {
		return fmt.Errorf("heartbeat: read the capabilities: %w", err)
	}
	has := func(c uint) bool { return data[c/32].Effective&(1<<(c%32)) != 0 }
	var missing []string
	for _, n := range needed {
		if !has(n.number) && !has(n.or) {
			missing = append(missing, n.name)
		}
	}
	if missing == nil {
		return nil
	}
	return fmt.Errorf("heartbeat: %w: this process lacks %s: %w", ErrUnsupported, strings.Join(missing, ", "), unix.EPERM)
}

// noCommand is one that bpf(2) does not have.
const noCommand = 1 << 30

// answers asks bpf(2) for nothing: only a kernel that has it, and lets us, finds the question wrong.
func answers() error {
	_, _, errno := unix.Syscall(unix.SYS_BPF, noCommand, 0, 0)
	switch errno {
	case unix.EINVAL:
		return nil
	case unix.ENOSYS:
		return fmt.Errorf("heartbeat: %w: the kernel has no bpf(2) (CONFIG_BPF_SYSCALL): %w", ErrUnsupported, errno)
	}
	return fmt.Errorf("heartbeat: %w: bpf(2) is refused, as by a filter of system calls: %w", ErrUnsupported, errno)
}

// refused says ErrUnsupported where the kernel's answer means that it never will.
func refused(what string, err error) error {
	for _, final := range []error{unix.EPERM, unix.EACCES, unix.ENOSYS, ebpf.ErrNotSupported} {
		if errors.Is(err, final) {
			return fmt.Errorf("heartbeat: %w: %s: %w", ErrUnsupported, what, err)
		}
	}
	return fmt.Errorf("heartbeat: %s: %w", what, err)
}

// tcxSupported tries an interface that cannot exist: only a kernel with tcx gets so far as to miss it.
func tcxSupported(p *ebpf.Program) error {
	l, err := link.AttachTCX(link.TCXOptions{Interface: math.MaxInt32, Program: p, Attach: ebpf.AttachTCXIngress})
	if err == nil {
		return l.Close()
	}
	if errors.Is(err, ebpf.ErrNotSupported) {
		return fmt.Errorf("heartbeat: %w: no tcx, which Linux 6.6 brought: %w", ErrUnsupported, err)
	}
	if errors.Is(err, unix.ENODEV) {
		return nil
	}
	return refused("try tcx", err)
}

func monotonic() time.Duration {
	var t unix.Timespec
	// It cannot fail: the clock exists since Linux 2.6, and the address is good.
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &t)
	return time.Duration(t.Nano())
}
