package guard

import (
	"bufio"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// populateText faults in the program's executable pages. They are shared with the daemon's.
func populateText() error {
	f, err := os.Open("/proc/self/maps")
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		var from, to uintptr
		var mode string
		if _, err := fmt.Sscanf(lines.Text(), "%x-%x %s", &from, &to, &mode); err != nil || !strings.HasPrefix(mode, "r-x") {
			continue
		}
		if strings.HasSuffix(lines.Text(), "]") { // the kernel's own
			continue
		}
		if err := populate(from, to-from); err != nil {
			return fmt.Errorf("read the program in: %w", err)
		}
	}
	return lines.Err()
}

func populate(from, size uintptr) error {
	_, _, errno := unix.Syscall(unix.SYS_MADVISE, from, size, unix.MADV_POPULATE_READ)
	if errno != 0 {
		return errno
	}
	return nil
}
