package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// writers is how many threads of a hostile process write at the same time.
const writers = 32

// counts is what a hostile process reports at its end.
type counts struct {
	Good, Refused, Other int64
	LastGood             time.Duration // when the last good write completed, CLOCK_BOOTTIME
}

func now() time.Duration {
	var t unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &t) // cannot fail for this clock
	return time.Duration(t.Nano())
}

// during runs do while a hostile process writes to the device.
func during(device string, do func() error) (c counts, err error) {
	cmd := exec.Command("/proc/self/exe", "hostile", device)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return c, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return c, err
	}
	if err := cmd.Start(); err != nil {
		return c, err
	}
	err = do()
	_ = in.Close() // the order to stop
	err = errors.Join(err, json.NewDecoder(out).Decode(&c), cmd.Wait())
	return c, err
}

// hostile writes until its standard input ends, whatever the device says.
func hostile(device string) {
	fd, err := unix.Open(device, unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	var stop atomic.Bool
	var good, refused, other, last atomic.Int64
	var all sync.WaitGroup
	for range writers {
		all.Go(func() {
			b := aligned(4096)
			for !stop.Load() {
				for i := range b {
					b[i] = byte(rand.Uint32())
				}
				_, err := unix.Pwrite(fd, b, rand.Int64N(area/4096)*4096)
				switch {
				case err == nil:
					good.Add(1)
					raise(&last, int64(now()))
				case errors.Is(err, unix.EBADE):
					refused.Add(1)
				default:
					other.Add(1)
				}
			}
		})
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
	stop.Store(true)
	all.Wait()
	_ = json.NewEncoder(os.Stdout).Encode(counts{good.Load(), refused.Load(), other.Load(), time.Duration(last.Load())})
}

func raise(to *atomic.Int64, v int64) {
	for {
		have := to.Load()
		if v <= have || to.CompareAndSwap(have, v) {
			return
		}
	}
}

// aligned is n bytes as direct I/O wants them.
func aligned(n int) []byte {
	b := make([]byte, n+4096)
	at := int(-uintptr(unsafe.Pointer(&b[0])) & 4095)
	return b[at : at+n : at+n]
}
