package iscsi

import "time"

// Lane is one of the host's I/O threads. A connection lives on one lane: all its callbacks run
// there, one at a time, and the backends that it calls complete there.
type Lane interface {
	// Index is the lane's number, which scsi.Backend's methods take.
	Index() int
	// Attach takes a connected stream socket over, the descriptor included; its O_NONBLOCK flag may
	// be set and is the lane's to change. On an error the caller keeps it. Called on the lane.
	Attach(fd int) (Socket, error)
	// Post runs fn on the lane; it may be called from any goroutine. It fails when the lane has closed.
	Post(fn func()) error
	// OnBatch runs fn on the lane after each batch of completions and posted functions, before the
	// thread sleeps: the place to flush answers together.
	OnBatch(fn func())
	// OnTick runs fn on the lane about four times a second: the place for time limits.
	OnTick(fn func(now time.Time))
}

// Socket is a connected stream socket on a lane. Its methods are called on the lane; done runs there too.
type Socket interface {
	// Recv reads at least one byte, into p and then into rest, which may be empty; one Recv may be
	// under way at a time. n is 0 with a nil error at the peer's orderly close. p and rest must stay
	// untouched until done, which is never called before Recv returns.
	Recv(p, rest []byte, done func(n int, err error))
	// Send writes all of bufs (at most MaxSendBuffers); one Send may be under way at a time. The
	// buffers must stay untouched until done, which may be called before Send returns.
	Send(bufs [][]byte, done func(err error))
	// Pages maps n bytes for this socket alone, one at a time; an error says that there are none to be had.
	Pages(n int) (Pages, error)
	// Close ends both directions. What is under way completes with an error first; then the
	// descriptor is closed and closed is called.
	Close(closed func())
}

// MaxSendBuffers bounds one Send: the kernel takes 1,024 vectors at most (UIO_MAXIOV).
const MaxSendBuffers = 1024

// Buffers is the host's pool of aligned buffers for command data.
type Buffers interface {
	// Get returns a buffer of n bytes, 4,096-aligned, content undefined; nil when the pool has
	// none left. The caller owns it until Put.
	Get(n int) []byte
	// Put takes back a buffer that Get returned.
	Put(p []byte)
}

// Pages are buffers of one socket which Send may not copy: the network refers to them until the peer has read them,
// longer than until done, so a buffer may be put back only when the peer has shown that it has. Its methods are called
// on the lane.
type Pages interface {
	Buffers
	// Close unmaps them, whoever has some; what the peer has not read yet keeps its content.
	Close() error
}
