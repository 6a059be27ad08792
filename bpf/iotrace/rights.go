package iotrace

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"
)

// needed are the capabilities without which the kernel refuses; CAP_SYS_ADMIN stands in for each.
var needed = []struct {
	number uint
	name   string
}{{unix.CAP_BPF, "CAP_BPF"}, {unix.CAP_PERFMON, "CAP_PERFMON"}}

// noCommand is one that bpf(2) does not have.
const noCommand = 1 << 30

// lacks says which rights the calling thread lacks, "" for none.
func lacks() string {
	var data [2]unix.CapUserData
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	if err := unix.Capget(&header, &data[0]); err != nil {
		return "the capabilities cannot be read: " + err.Error()
	}
	has := func(c uint) bool { return data[c/32].Effective&(1<<(c%32)) != 0 }
	var missing []string
	for _, n := range needed {
		if !has(n.number) && !has(unix.CAP_SYS_ADMIN) {
			missing = append(missing, n.name)
		}
	}
	if missing != nil {
		return "lunard lacks " + strings.Join(missing, " and ")
	}
	if _, _, errno := unix.Syscall(unix.SYS_BPF, noCommand, 0, 0); errno != unix.EINVAL {
		return fmt.Sprintf("bpf(2) is refused, as by a filter of system calls: %v", errno)
	}
	return ""
}

// reason is an error in a few words.
func reason(err error) string {
	var verifier *ebpf.VerifierError
	switch {
	case errors.Is(err, btf.ErrNotFound), errors.Is(err, os.ErrNotExist):
		return "this kernel does not have the tracepoint, or it is not as it was: " + err.Error()
	case errors.As(err, &verifier):
		return fmt.Sprintf("this kernel does not take the program: %v", verifier)
	case errors.Is(err, unix.EPERM):
		return "the kernel does not permit it: " + err.Error()
	}
	return err.Error()
}
