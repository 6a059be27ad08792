package uring

import (
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// mailbox takes functions from any goroutine to the ring's thread, and wakes it if it sleeps.
type mailbox struct {
	fd      int           // eventfd that the ring polls
	asleep  atomic.Uint32 // 1: a post must write to fd
	waiting atomic.Bool   // fns is not empty
	wakers  atomic.Int32  // goroutines that are about to write to fd

	mu      sync.Mutex // guards what follows
	fns     []func()
	spare   []func()
	refuses bool // new work from outside
	dead    bool // the thread is gone
}

func (m *mailbox) open() (err error) {
	if m.fd, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return fmt.Errorf("eventfd: %w", err)
	}
	return nil
}

// post adds fn. internal functions are taken until the thread is gone.
func (m *mailbox) post(fn func(), internal bool) error {
	m.mu.Lock()
	switch {
	case m.dead, m.refuses && !internal:
		m.mu.Unlock()
		return fmt.Errorf("uring: post: %w", ErrClosed)
	case len(m.fns) >= MaxPosts && !internal:
		m.mu.Unlock()
		return fmt.Errorf("uring: post: %w", ErrQueueFull)
	}
	m.fns = append(m.fns, fn)
	m.waiting.Store(true)
	m.wakers.Add(1)
	m.mu.Unlock()
	m.wake()
	m.wakers.Add(-1)
	return nil
}

var one = uint64(1)

// wake ends the thread's sleep, if it sleeps or is about to. The caller is counted in wakers.
func (m *mailbox) wake() {
	if m.asleep.Load() != 0 && m.asleep.Swap(0) != 0 {
		_, _, _ = syscall.RawSyscall(unix.SYS_WRITE, uintptr(m.fd), uintptr(unsafe.Pointer(&one)), 8)
	}
}

// sleep announces a sleep; false if there is something to do instead.
func (m *mailbox) sleep() bool {
	m.asleep.Store(1)
	if m.waiting.Load() {
		m.asleep.Store(0)
		return false
	}
	return true
}

func (m *mailbox) awake() { m.asleep.Store(0) }

// take returns what was posted; the slice is valid until the call after the next.
func (m *mailbox) take() []func() {
	if !m.waiting.Load() {
		return nil
	}
	m.mu.Lock()
	fns := m.fns
	m.fns, m.spare = m.spare[:0], fns
	m.waiting.Store(false)
	m.mu.Unlock()
	return fns
}

// refuse turns new work from outside away.
func (m *mailbox) refuse() {
	m.mu.Lock()
	m.refuses = true
	m.mu.Unlock()
}

// kill ends the mailbox if nothing is in it.
func (m *mailbox) kill() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.dead = len(m.fns) == 0
	return m.dead
}

// close closes the descriptor, once nobody is about to write to it.
func (m *mailbox) close() {
	for m.wakers.Load() != 0 {
		runtime.Gosched()
	}
	_ = unix.Close(m.fd)
}

// Post runs fn on the ring's thread; any goroutine may call it. Functions run in the order of their
// posts. It fails with ErrClosed once the engine closes, with ErrQueueFull when MaxPosts functions wait.
func (r *Ring) Post(fn func()) error { return r.mail.post(fn, false) }

// takePosts runs what was posted up to now.
func (r *Ring) takePosts() bool {
	fns := r.mail.take()
	for i, fn := range fns {
		fns[i] = nil
		fn()
	}
	return len(fns) > 0
}
