package fusedev

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Files takes the transfers that a lane can do at once.
type Files interface {
	// Begin starts t on the lane and reports true; t.Done is then called there once, maybe before Begin returns.
	// False: it took nothing, and t is for the file system. It never blocks.
	Begin(t *Transfer) bool
	// End takes back what Begin gave to t, whose I/O ended with err, and returns what the program gets for it. With a
	// nil err it is called on the lane, after the answer; else on a goroutine, before it.
	End(t *Transfer, err error) syscall.Errno
}

// Lane is where the device is read.
type Lane interface {
	Post(fn func()) error
	// Watch has ready called on the lane each time that fd may have become readable, until stop is called there;
	// stopped follows. It is called on the lane.
	Watch(fd int, ready func()) (stop func(stopped func()), err error)
}

// Options says what to serve.
type Options struct {
	FD        int // of /dev/fuse, mounted, not blocking; the server closes it
	Lane      Lane
	Files     Files
	FS        fuse.RawFileSystem
	Mount     *fuse.MountOptions // MaxWrite is the size of the largest request
	Transfers int                // on the lane at once
	Requests  int                // on goroutines at once
	Log       *slog.Logger
}

// Server serves one connection.
type Server struct {
	o     Options
	proto *fuse.ProtocolServer
	ways  sync.Pool // of *way

	// What follows is the lane's.
	head  [headSize / 8]uint64 // the request's first bytes
	bulk  []byte               // the others
	iov   [2]unix.Iovec
	stop  func(stopped func())
	free  []*Transfer
	moves int // transfers under way
	ended bool

	busy    atomic.Int32 // requests on goroutines
	starved atomic.Bool  // one that ends has the lane read on
	all     sync.WaitGroup
	done    chan struct{}
}

// batch bounds the requests that are read before the lane does something else.
const batch = 64

// Serve answers the kernel's first request and begins to serve. It has the descriptor also when it fails.
func Serve(o Options) (*Server, error) {
	s := &Server{o: o, proto: fuse.NewProtocolServer(o.FS, o.Mount), done: make(chan struct{})}
	if err := s.open(); err != nil {
		return nil, errors.Join(fmt.Errorf("fusedev: %w", err), s.close())
	}
	return s, nil
}

func (s *Server) open() (err error) {
	if s.bulk, err = unix.Mmap(-1, 0, s.o.Mount.MaxWrite, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE); err != nil {
		return fmt.Errorf("buffer of %d bytes: %w", s.o.Mount.MaxWrite, err)
	}
	for range s.o.Transfers {
		s.free = append(s.free, newTransfer(s))
	}
	if err := s.greet(); err != nil {
		return fmt.Errorf("first request: %w", err)
	}
	watching := make(chan error, 1)
	if err := s.o.Lane.Post(func() {
		var err error
		s.stop, err = s.o.Lane.Watch(s.o.FD, s.readable)
		watching <- err
	}); err != nil {
		return err
	}
	return <-watching
}

// greetLimit bounds the wait for the first request, which mount(2) has already sent.
const greetLimit = 10 * time.Second

// greet answers INIT.
func (s *Server) greet() error {
	for until := time.Now().Add(greetLimit); ; {
		n, e := s.read()
		switch {
		case e == 0:
			return s.by(s.wayOf(n))
		case e != unix.EAGAIN && e != unix.EINTR:
			return e
		case time.Now().After(until):
			return unix.ETIMEDOUT
		}
		ready := []unix.PollFd{{Fd: int32(s.o.FD), Events: unix.POLLIN}}
		_, _ = unix.Poll(ready, int(greetLimit/time.Millisecond))
	}
}

// Done is closed when the mount is gone and every request has ended.
func (s *Server) Done() <-chan struct{} { return s.done }

// readable takes what the kernel has.
func (s *Server) readable() {
	for range batch {
		if s.ended || !s.room() {
			return
		}
		n, e := s.read()
		switch e {
		case 0:
			s.take(n)
		case unix.EINTR, unix.ENOENT: // ENOENT: the program gave that request up
		case unix.EAGAIN:
			return
		default:
			if e != unix.ENODEV && e != unix.ECONNABORTED {
				s.o.Log.Error("requests of programs can no longer be read", "err", e)
			}
			s.end()
			return
		}
	}
	s.goOn()
}

// goOn has the lane read again, after what else it has to do.
func (s *Server) goOn() {
	if err := s.o.Lane.Post(s.readable); err != nil {
		s.o.Log.Error("requests of programs can no longer be read", "err", err)
	}
}

// room tells whether one more request may be taken; if not, the end of one has the lane read on.
func (s *Server) room() bool {
	if int(s.busy.Load()) < s.o.Requests {
		return true
	}
	s.starved.Store(true)
	return int(s.busy.Load()) < s.o.Requests
}

// end lets what is under way end, and reads no more.
func (s *Server) end() {
	s.ended = true
	s.settle()
}

// settle ends the server when nothing is under way on the lane.
func (s *Server) settle() {
	if !s.ended || s.moves > 0 || s.stop == nil {
		return
	}
	stop := s.stop
	s.stop = nil
	stop(func() { go s.finish() })
}

func (s *Server) finish() {
	defer close(s.done)
	s.all.Wait()
	if err := s.close(); err != nil {
		s.o.Log.Warn("close the connection of programs", "err", err)
	}
	s.o.FS.OnUnmount()
}

func (s *Server) close() error {
	err := unix.Close(s.o.FD)
	if s.bulk != nil {
		err = errors.Join(err, unix.Munmap(s.bulk))
	}
	return err
}
