package guard

import (
	"time"

	"golang.org/x/sys/unix"
)

// Now is CLOCK_BOOTTIME: it never steps, and counts while the machine sleeps. Deadlines are on it.
func Now() time.Duration {
	var t unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &t) // cannot fail for this clock
	return time.Duration(t.Nano())
}
