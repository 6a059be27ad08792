package guard

import (
	"fmt"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// backstopDelay is how much later than the guard the kernel's timer ends the daemon. It is less than any margin of
// those who wait for the deadline.
const backstopDelay = 50 * time.Millisecond

// backstop has the kernel itself kill this process at the deadline: SIGKILL from a timer on CLOCK_BOOTTIME, which a stopped
// or frozen process cannot put off. It covers the time in which a guard has died, or is stopped too, and there is
// no other one yet. Unlike a guard it shuts no file system down: the kernel unmounts what the process leaves.
type backstop struct {
	mu    sync.Mutex // guards what follows
	timer int32
	gone  bool
}

// sigevent is struct sigevent of asm-generic/siginfo.h.
type sigevent struct {
	value        uint64
	signal, kind int32
	_            [48]byte
}

// sigevSignal is SIGEV_SIGNAL: the timer sends its signal to the whole process.
const sigevSignal = 0

func newBackstop() (*backstop, error) {
	b := &backstop{}
	event := sigevent{signal: int32(unix.SIGKILL), kind: sigevSignal}
	_, _, errno := unix.Syscall(unix.SYS_TIMER_CREATE, unix.CLOCK_BOOTTIME, uintptr(unsafe.Pointer(&event)), uintptr(unsafe.Pointer(&b.timer)))
	if errno != 0 {
		return nil, fmt.Errorf("timer that ends this process: %w", errno)
	}
	return b, nil
}

// follow moves the end to the word's deadline of this moment, later or earlier.
func (b *backstop) follow(w *word) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.gone {
		return nil
	}
	var at unix.ItimerSpec
	if deadline := w.load(); deadline != 0 {
		at.Value = unix.NsecToTimespec(int64(deadline + backstopDelay))
	}
	_, _, errno := unix.Syscall6(unix.SYS_TIMER_SETTIME, uintptr(b.timer), unix.TIMER_ABSTIME, uintptr(unsafe.Pointer(&at)), 0, 0, 0)
	if errno != 0 {
		return fmt.Errorf("timer that ends this process: %w", errno)
	}
	return nil
}

// drop takes the timer away. Repeating it does no harm.
func (b *backstop) drop() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.gone {
		return nil
	}
	b.gone = true
	if _, _, errno := unix.Syscall(unix.SYS_TIMER_DELETE, uintptr(b.timer), 0, 0); errno != 0 {
		return fmt.Errorf("timer that ends this process: %w", errno)
	}
	return nil
}
