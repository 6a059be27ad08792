package guard

import (
	"fmt"
	"os"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// word is the deadline in memory that daemon and guard share: nanoseconds of Now, 0 for none.
type word struct{ page []byte }

func newWord() (*os.File, *word, error) {
	fd, err := unix.MemfdCreate("lunar-deadline", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, nil, fmt.Errorf("shared deadline: %w", err)
	}
	f := os.NewFile(uintptr(fd), "deadline")
	w, err := func() (*word, error) {
		if err := f.Truncate(int64(os.Getpagesize())); err != nil {
			return nil, err
		}
		// Sealed, so that neither side can make the other's access fail.
		const seals = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_SEAL
		if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals); err != nil {
			return nil, err
		}
		return mapWord(f)
	}()
	if err != nil {
		_ = f.Close()
		return nil, nil, fmt.Errorf("shared deadline: %w", err)
	}
	return f, w, nil
}

func mapWord(f *os.File) (*word, error) {
	page, err := unix.Mmap(int(f.Fd()), 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map the shared deadline: %w", err)
	}
	return &word{page}, nil
}

func (w *word) ns() *int64          { return (*int64)(unsafe.Pointer(&w.page[0])) }
func (w *word) load() time.Duration { return time.Duration(atomic.LoadInt64(w.ns())) }
func (w *word) close() error        { return unix.Munmap(w.page) }

// renew moves the deadline on, never back, and returns what it was.
func (w *word) renew(to time.Duration) (was time.Duration) {
	for {
		was = w.load()
		if to <= was || atomic.CompareAndSwapInt64(w.ns(), int64(was), int64(to)) {
			return was
		}
	}
}
