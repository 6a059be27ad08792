package main

import (
	"net"

	"golang.org/x/sys/unix"

	"lunar/datapath/uring"
)

// ringConn is a connection whose socket is on the ring.
type ringConn struct {
	ring    *uring.Ring
	sock    *uring.Socket
	in      [4096]byte
	have    int
	free    []*uring.Op
	answers [][]byte
	answer  [answerLen]byte
	sending bool
}

func serveRing(r *uring.Ring, c *net.TCPConn) error {
	f, err := c.File()
	if err != nil {
		return err
	}
	fd, err := unix.Dup(int(f.Fd()))
	if err != nil {
		return err
	}
	_, _ = f.Close(), c.Close()
	attached := make(chan error, 1)
	err = r.Post(func() {
		s, err := r.Attach(fd)
		if err == nil {
			rc := &ringConn{ring: r, sock: s}
			rc.receive()
		}
		attached <- err
	})
	if err != nil {
		return err
	}
	return <-attached
}

func (c *ringConn) receive() { c.sock.Recv(c.in[c.have:], nil, c.received) }

func (c *ringConn) received(n int, err error) {
	if err != nil || n == 0 {
		c.sock.Close(nil)
		return
	}
	for c.have += n; c.have >= requestLen; c.have -= requestLen {
		c.ring.Submit(c.op())
	}
	c.receive()
}

func (c *ringConn) op() *uring.Op {
	if n := len(c.free); n > 0 {
		op := c.free[n-1]
		c.free = c.free[:n-1]
		return op
	}
	return &uring.Op{Code: uring.Nop, Done: c.done}
}

func (c *ringConn) done(op *uring.Op) {
	c.free = append(c.free, op)
	c.answers = append(c.answers, c.answer[:requestLen], c.answer[requestLen:])
	if !c.sending {
		c.sending = true
		_ = c.ring.Post(c.flush) // runs after the other completions of the batch
	}
}

func (c *ringConn) flush() {
	if c.sending = len(c.answers) > 0; c.sending {
		answers := c.answers
		c.answers = c.answers[:0]
		c.sock.Send(answers, c.sent)
	}
}

func (c *ringConn) sent(err error) {
	if err == nil {
		c.flush()
	}
}
