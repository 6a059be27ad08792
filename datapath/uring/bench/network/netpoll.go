package main

import (
	"bufio"
	"io"
	"net"

	"lunar/datapath/uring"
)

// maxAnswers bounds the requests of a connection that are under way.
const maxAnswers = 256

// netpollConn is a connection with a reading and a writing goroutine.
type netpollConn struct {
	ring    *uring.Ring
	conn    *net.TCPConn
	answers chan *uring.Op
	free    chan *netpollOp
}

// netpollOp submits itself on the ring.
type netpollOp struct {
	uring.Op
	submit func()
}

func serveNetpoll(r *uring.Ring, c *net.TCPConn) error {
	n := &netpollConn{ring: r, conn: c, answers: make(chan *uring.Op, maxAnswers), free: make(chan *netpollOp, maxAnswers)}
	for range maxAnswers {
		op := &netpollOp{}
		op.Code, op.Done = uring.Nop, func(*uring.Op) { n.answers <- &op.Op; n.free <- op }
		op.submit = func() { r.Submit(&op.Op) }
		n.free <- op
	}
	go n.read()
	go n.write()
	return nil
}

func (n *netpollConn) read() {
	var request [requestLen]byte
	in := bufio.NewReader(n.conn)
	for {
		if _, err := io.ReadFull(in, request[:]); err != nil {
			n.end()
			return
		}
		_ = n.ring.Post((<-n.free).submit)
	}
}

// end closes the connection when nothing is under way any more.
func (n *netpollConn) end() {
	for range maxAnswers {
		<-n.free
	}
	close(n.answers)
}

func (n *netpollConn) write() {
	var answer [answerLen]byte
	bufs := make(net.Buffers, 0, 2*maxAnswers)
	for range n.answers {
		bufs = append(bufs[:0], answer[:requestLen], answer[requestLen:])
		for more := len(n.answers); more > 0; more-- {
			<-n.answers
			bufs = append(bufs, answer[:requestLen], answer[requestLen:])
		}
		out := bufs
		if _, err := out.WriteTo(n.conn); err != nil {
			break
		}
	}
	_ = n.conn.Close()
}
