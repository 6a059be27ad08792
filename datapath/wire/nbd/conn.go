package nbd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"lunar/datapath/layout/protocol"
)

// serverConn is a connection to the server. Its own goroutine reads requests, workers execute them,
// and whoever finishes one sends all replies that are ready.
type serverConn struct {
	srv            *Server
	raw            net.Conn
	ctx            context.Context // of its operations
	cancel         context.CancelFunc
	idle           chan struct{} // closed when no operation runs any more, and none will
	muted          chan struct{} // closed when everything is answered
	once, muteOnce sync.Once
	leave          func()      // the registry; may be nil
	over           atomic.Bool // superseded, or the server stops: read nothing more

	// Set by the handshake.
	link       *link
	export     Export
	flags      Flags
	structured bool
	contexts   []string // metadata contexts that were selected; an ID is 1 more than the place here
	block      int64

	window  chan struct{}  // a place per request, from its header until its reply is sent
	running sync.WaitGroup // operations
	workers sync.WaitGroup
	work    chan *operation // to idle workers; closed at the end
	spare   atomic.Int32    // workers that wait, less what was sent to them
	out     outbox

	carrier  Carrier              // nil: every request blocks a worker
	batch    []*protocol.Transfer // the reader's
	outbatch []*operation         // the Carrier's
}

func newServerConn(s *Server, c net.Conn) *serverConn {
	n := s.opts.Limits.Window
	sc := &serverConn{srv: s, raw: c, idle: make(chan struct{}), muted: make(chan struct{}), window: make(chan struct{}, n), work: make(chan *operation, n)}
	sc.ctx, sc.cancel = context.WithCancel(s.ctx)
	return sc
}

// serve does all of a connection's life.
func (c *serverConn) serve() {
	defer c.close()
	tune(c.raw)
	peer := Peer{Address: c.raw.RemoteAddr().String()}
	h := &handshake{serverConn: c, wire: c.raw, peer: peer}
	err := h.run()
	c.srv.grown(c)
	if err == nil {
		err = c.transmit()
	}
	if err != nil && !quiet(err) {
		c.srv.opts.Log.Warn("nbd: connection ended", "peer", peer.Address, "name", h.peer.Name, "error", err)
	}
}

// quiet tells what happens every day.
func quiet(err error) bool {
	return errors.Is(err, errDone) || errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed)
}

func (c *serverConn) close() {
	c.cancel()
	if c.link != nil {
		_ = c.link.Close()
	}
	_ = c.raw.Close()
	c.rest()
	c.mute()
	if c.leave != nil {
		c.leave()
	}
}

// rest says that no operation runs any more.
func (c *serverConn) rest() { c.once.Do(func() { close(c.idle) }) }

// mute says that nothing more will be answered.
func (c *serverConn) mute() { c.muteOnce.Do(func() { close(c.muted) }) }

// transmit serves requests until the client or an error ends it; then no operation runs any more.
func (c *serverConn) transmit() error {
	c.out.c = c
	if x, ok := c.export.(Carrying); ok {
		c.carrier = x.Carrier(c.carried)
	}
	if c.carrier != nil {
		c.out.start()
	}
	err := c.read()
	if !errors.Is(err, errDone) && !c.over.Load() {
		c.cancel() // nobody waits for the answers
	}
	c.running.Wait()
	c.rest()
	close(c.work)
	c.workers.Wait()
	c.out.stop()
	c.mute()
	if c.srv.isStopped() { // one connection's end ends its set, which may wait for answers on another
		select {
		case <-c.srv.quiet:
		case <-c.ctx.Done():
		}
	}
	return errors.Join(err, c.export.Close())
}

// supersede ends a connection whose client has gone on to another one: its operations are cancelled.
func (c *serverConn) supersede() {
	c.cancel()
	c.finish()
	_ = c.raw.SetWriteDeadline(time.Now().Add(lastWords))
}

// lastWords is how long a superseded connection may take for the answers to what it had under way.
const lastWords = 100 * time.Millisecond

// finish reads nothing more; what is under way is answered.
func (c *serverConn) finish() {
	c.over.Store(true)
	_ = c.raw.SetReadDeadline(time.Unix(1, 0))
}

// read takes requests in.
func (c *serverConn) read() error {
	var head [requestSize]byte
	defer c.depart()
	for {
		c.reads(requestSize)
		if _, err := io.ReadFull(c.link.r, head[:]); err != nil {
			return c.readError(err)
		}
		r, err := parseRequest(head[:])
		if err != nil {
			return err
		}
		if r.command == cmdDisc {
			return errDone
		}
		op, err := c.take(r)
		if err != nil {
			return c.readError(err)
		}
		if c.carrier != nil && op.buf != nil && op.errno == 0 {
			c.collect(op)
			continue
		}
		c.running.Add(1)
		c.srv.crowd.under.Add(1)
		c.delegate(op)
	}
}

// reads says that the reader wants n more bytes: it may have to wait for them.
func (c *serverConn) reads(n int) {
	if c.link.r.Buffered() < n {
		c.depart()
	}
}

func (c *serverConn) readError(err error) error {
	if c.over.Load() {
		return errDone
	}
	return err
}

// take waits for a place and a buffer for a request, and reads its payload.
func (c *serverConn) take(r request) (*operation, error) {
	if r.command == cmdWrite && r.length > MaxPayload {
		return nil, violation("a write of %d bytes", r.length)
	}
	if err := c.place(); err != nil {
		return nil, err
	}
	op := newOperation(r)
	if op.errno, op.why = c.check(r); op.errno != 0 && r.command != cmdWrite {
		return op, nil
	}
	if r.command == cmdRead || r.command == cmdWrite {
		var err error
		if op.buf, err = c.buffer(int(r.length)); err != nil {
			return nil, err
		}
	}
	if r.command == cmdWrite {
		if err := c.payload(op.data()); err != nil {
			c.srv.pool.put(op.buf)
			return nil, fmt.Errorf("nbd: in the payload of a write: %w", err)
		}
	}
	return op, nil
}

// place waits for a place in the window.
func (c *serverConn) place() error {
	select {
	case c.window <- struct{}{}:
		return nil
	default:
	}
	c.depart()
	select {
	case c.window <- struct{}{}:
		return nil
	case <-c.ctx.Done():
		return c.ctx.Err()
	}
}

// buffer waits for a buffer of n bytes.
func (c *serverConn) buffer(n int) (*buffer, error) {
	if b := c.srv.pool.try(n); b != nil {
		return b, nil
	}
	c.depart()
	return c.srv.pool.get(c.ctx, n)
}

// payload reads what follows a WRITE; a client that stops in the middle is dropped.
func (c *serverConn) payload(p []byte) error {
	if c.link.r.Buffered() >= len(p) {
		_, err := io.ReadFull(c.link.r, p)
		return err
	}
	c.depart()
	_ = c.raw.SetReadDeadline(time.Now().Add(c.srv.opts.Limits.Stall))
	_, err := io.ReadFull(c.link.r, p)
	_ = c.raw.SetReadDeadline(time.Time{})
	if c.over.Load() { // finish may have come in between
		_ = c.raw.SetReadDeadline(time.Unix(1, 0))
	}
	return err
}

// delegate gives an operation, counted in running, to a worker that waits, or to a new one: there are at
// most as many as the window has places. It does not block.
func (c *serverConn) delegate(op *operation) {
	if c.spare.Add(-1) >= 0 {
		c.work <- op
		return
	}
	c.spare.Add(1)
	c.workers.Add(1)
	go func() {
		defer c.workers.Done()
		for ok := true; ok; op, ok = <-c.work {
			c.handle(op)
			c.spare.Add(1)
		}
	}()
}

// handle executes and answers.
func (c *serverConn) handle(op *operation) {
	if op.errno == 0 {
		c.execute(op)
	}
	c.srv.crowd.under.Add(-1)
	c.running.Done()
	c.out.send(op)
}

func tune(nc net.Conn) {
	if t, ok := nc.(*net.TCPConn); ok {
		_ = t.SetNoDelay(true)
		_ = t.SetKeepAliveConfig(keepAlive)
		setUserTimeout(t, deadPeer)
	}
}
