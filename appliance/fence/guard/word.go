package guard

import (
	"fmt"
	"os"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// word is what daemon and guard share in memory: the deadline, nanoseconds of Now, 0 for none; and the first
// and the latest incarnation of the daemon's session, 0 for none.
type word struct{ page []byte }

// The places in the page, in words of 8 bytes.
const (
	atDeadline = iota
	atFirst
	atLatest
)

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

func (w *word) ns() *int64           { return (*int64)(unsafe.Pointer(&w.page[8*atDeadline])) }
func (w *word) place(at int) *uint64 { return (*uint64)(unsafe.Pointer(&w.page[8*at])) }
func (w *word) load() time.Duration  { return time.Duration(atomic.LoadInt64(w.ns())) }
func (w *word) close() error         { return unix.Munmap(w.page) }

// present notes an incarnation of the daemon's session; they rise.
func (w *word) present(incarnation uint64) {
	atomic.CompareAndSwapUint64(w.place(atFirst), 0, incarnation)
	atomic.StoreUint64(w.place(atLatest), incarnation)
}

// incarnations are those that the daemon had.
func (w *word) incarnations() (first, latest uint64) {
	return atomic.LoadUint64(w.place(atFirst)), atomic.LoadUint64(w.place(atLatest))
}

// disarm takes the deadline away, unless it was renewed since it was seen.
func (w *word) disarm(seen time.Duration) bool {
	return atomic.CompareAndSwapInt64(w.ns(), int64(seen), 0)
}

// renew moves the deadline on, never back, and returns what it was.
func (w *word) renew(to time.Duration) (was time.Duration) {
	for {
		was = w.load()
		if to <= was || atomic.CompareAndSwapInt64(w.ns(), int64(was), int64(to)) {
			return was
		}
	}
}
