package uring

import (
	"fmt"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// File is a descriptor that every ring has in its table of fixed files.
type File struct {
	engine  *Engine
	fd      int
	index   int32
	block   bool // a block device
	closing atomic.Bool
	uses    []fileUse    // by ring
	depth   int32        // see limit
	share   int          // see limit
	running atomic.Int32 // operations in the kernel, if depth is set
}

// fileUse counts the operations of one ring; only the ring's thread touches it.
type fileUse struct {
	ops     int
	idle    func() // called when ops is 0, once, after closing
	running int    // of ops, in the kernel, if File.depth is set
	waiting opList // of ops, for room in the device's queue
	_       [16]byte
}

// Register puts fd into every ring's table. The caller opens fd for what it is used for (O_DIRECT
// for direct I/O) and keeps it open until File.Close. Not for callbacks: it waits for the rings.
func (e *Engine) Register(fd int) (*File, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("uring: register descriptor %d: %w", fd, err)
	}
	f := &File{engine: e, fd: fd, block: st.Mode&unix.S_IFMT == unix.S_IFBLK, uses: make([]fileUse, len(e.rings))}
	if f.block {
		f.limit(queueDepth(st.Rdev))
	}
	var err error
	if f.index, err = e.files.take(); err != nil {
		return nil, err
	}
	if err = e.updateFile(f.index, int32(fd)); err != nil {
		_ = e.updateFile(f.index, -1)
		e.files.give(f.index)
		return nil, fmt.Errorf("uring: register descriptor %d: %w", fd, err)
	}
	return f, nil
}

// updateFile sets a place of every ring's table.
func (e *Engine) updateFile(index, fd int32) error {
	return e.each(func(r *Ring) error { return r.sys.UpdateFile(int(index), fd) })
}

// Close refuses new operations on f, waits until those under way and those held (Op.Held) are done,
// and takes f out of the tables. The descriptor stays the caller's. Not for callbacks.
func (f *File) Close() error {
	if f.closing.Swap(true) {
		return fmt.Errorf("uring: close of file %d: %w", f.index, ErrClosed)
	}
	done := make(chan struct{}, len(f.engine.rings))
	for i, r := range f.engine.rings {
		use := &f.uses[i]
		err := r.mail.post(func() {
			use.idle = func() { done <- struct{}{} }
			use.settle()
		}, true)
		if err != nil { // the ring has stopped: nothing of it uses f
			done <- struct{}{}
		}
	}
	for range f.engine.rings {
		<-done
	}
	err := f.engine.updateFile(f.index, -1)
	f.engine.files.give(f.index)
	return err
}

// settle tells a waiting Close when nothing is under way.
func (u *fileUse) settle() {
	if u.ops == 0 && u.idle != nil {
		u.idle()
		u.idle = nil
	}
}
