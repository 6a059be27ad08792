package guard

import (
	"errors"
	"fmt"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// wdiocSetTimeout is WDIOC_SETTIMEOUT of linux/watchdog.h.
const wdiocSetTimeout = 0xc0045706

// watchdog restarts the machine unless it is fed. A nil one is none.
type watchdog struct {
	file  *os.File
	every time.Duration
	fed   time.Duration // of Now
}

// openWatchdog arms the device. A device that takes another time-out than asked for is refused: others
// count on it.
func openWatchdog(name string, seconds int) (*watchdog, error) {
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		return nil, fmt.Errorf("watchdog: %w", err)
	}
	w := &watchdog{file: f, every: time.Duration(seconds) * time.Second / 3}
	got := int32(seconds)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), wdiocSetTimeout, uintptr(unsafe.Pointer(&got))); errno != 0 {
		return nil, errors.Join(fmt.Errorf("watchdog %s: set its time-out: %w", name, errno), w.disarm())
	}
	if got > int32(seconds) {
		return nil, errors.Join(fmt.Errorf("watchdog %s has a time-out of %d s, not %d s: configure that", name, got, seconds), w.disarm())
	}
	w.every = time.Duration(got) * time.Second / 3
	return w, nil
}

// next is when it wants food, on Now's clock; 0 for never.
func (w *watchdog) next(now time.Duration) time.Duration {
	if w == nil {
		return 0
	}
	return max(w.fed+w.every, now+1)
}

// feed is called only while the deadline lies ahead.
func (w *watchdog) feed(now time.Duration) {
	if w == nil || now < w.fed+w.every {
		return
	}
	if _, err := w.file.Write([]byte{0}); err == nil {
		w.fed = now
	}
}

// disarm lets the machine live: the magic character before the close.
func (w *watchdog) disarm() error {
	if w == nil {
		return nil
	}
	_, err := w.file.WriteString("V")
	return errors.Join(err, w.file.Close())
}
