package uring

import (
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"lunar/datapath/uring/internal/sys"
)

// maxHelp bounds the discards that wait for the helper.
const maxHelp = 16

// helper does discards by ioctl(2), on kernels without the io_uring command (before Linux 6.12).
// It is one goroutine for the engine, started at the first such discard.
type helper struct {
	mu    sync.Mutex // guards jobs
	jobs  chan discardJob
	ended chan struct{}
}

type discardJob struct {
	ring        *Ring
	tag         uint64
	fd          int
	off, length int64
}

// offer hands a job to the helper; false when too many wait.
func (h *helper) offer(j discardJob) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.jobs == nil {
		h.jobs, h.ended = make(chan discardJob, maxHelp), make(chan struct{})
		go h.run()
	}
	select {
	case h.jobs <- j:
		return true
	default:
		return false
	}
}

func (h *helper) run() {
	defer close(h.ended)
	for j := range h.jobs {
		res := -int32(blkdiscard(j.fd, j.off, j.length))
		_ = j.ring.mail.post(func() { j.ring.complete(sys.CQE{UserData: j.tag, Res: res}) }, true)
	}
}

// stop ends the goroutine and waits for it; the rings have stopped.
func (h *helper) stop() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.jobs != nil {
		close(h.jobs)
		<-h.ended
	}
}

// blkdiscard is ioctl BLKDISCARD of linux/fs.h.
func blkdiscard(fd int, off, length int64) syscall.Errno {
	span := [2]uint64{uint64(off), uint64(length)}
	_, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.BLKDISCARD, uintptr(unsafe.Pointer(&span)))
	return e
}

// discardByIoctl passes op to the helper; its answer comes back as a completion of op's slot.
func (r *Ring) discardByIoctl(op *Op) {
	j := discardJob{ring: r, tag: r.tag(op.slot), fd: op.File.fd, off: op.Offset, length: op.Length}
	if !r.engine.help.offer(j) {
		r.ready = append(r.ready, sys.CQE{UserData: j.tag, Res: -int32(unix.EBUSY)})
	}
}
