package iscsi

import (
	"container/list"
	"errors"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"lunar/iscsi/pdu"
)

// Why a connection ended, for the log.
var (
	errPeerClosed   = errors.New("iscsi: closed by the initiator")
	errHeaderDigest = errors.New("iscsi: header digest error")
	errProtocol     = errors.New("iscsi: protocol error")
	errLoginTime    = errors.New("iscsi: login took too long")
	errSilent       = errors.New("iscsi: no answer to a NOP-In")
	errNoData       = errors.New("iscsi: data that was asked for did not come")
	errStalled      = errors.New("iscsi: the initiator does not take its answers")
	errReinstated   = errors.New("iscsi: the initiator logged in anew")
	errDropped      = errors.New("iscsi: dropped by order")
	errCrowded      = errors.New("iscsi: pushed out by later connections before it had logged in")
	errCut          = errors.New("iscsi: cut at shutdown")
	errLeft         = errors.New("iscsi: drained")
	errLoggedOut    = errors.New("iscsi: logged out")
	errTargetReset  = errors.New("iscsi: target cold reset")
)

// conn is one connection. All of it belongs to its lane's thread; what says otherwise is constant
// or atomic.
type conn struct {
	reactor  *reactor
	portal   *portal
	remote   string       // constant
	origin   netip.Prefix // constant
	local    net.Addr     // constant
	counters connCounters // atomic
	sock     Socket
	waits    *list.Element // of the lobby, which guards it
	pushed   atomic.Bool   // out of the lobby

	rx      receiver
	tx      sender
	opcodes *[64]*handler // of the phase: login, then full feature
	opening opening
	params  params
	session *session // nil before the full feature phase
	cid     uint16
	at      int // in reactor.conns
	recvMax int // the DataSegmentLength that was declared to the initiator
	win     window
	tasks   taskTable
	text    textExchange
	lending lending
	timed   timed

	bytes     int    // of command buffers
	running   int    // commands in the device server
	expecting int    // commands that wait for Data-Out
	managing  int    // task management functions under way
	nopTag    uint32 // target transfer tag of the last NOP-In
	burstTag  uint32 // target transfer tag of the last R2T
	starved   *task  // the receiver waits until it has a buffer

	started time.Time
	heard   time.Time // when bytes last came
	dataAt  time.Time // when Data-Out last came or was asked for
	leaveBy time.Time // not zero: the initiator was asked to log out

	refused  bool // over the limit: the login is told "out of resources"
	replaced bool // an older session of the nexus was ended for this one
	probing  bool // a NOP-In is unanswered
	draining bool // commands under way finish, nothing else comes in
	closing  bool
	gone     bool // the socket is closed
	finished bool // nothing is left in the device server either
	ended    []func()
}

// handler is one opcode's part of the connection's state machine.
type handler struct {
	// begin sees the header and says where the data segment goes (rx.dst); nil puts it into the
	// control buffer.
	begin func(c *conn)
	// end sees the whole PDU; intact is false on a data digest error. nil hands it to run in
	// CmdSN order.
	end func(c *conn, intact bool)
	// run does the work of a PDU that is not a SCSI command. h and data are valid until it returns.
	run func(c *conn, h *pdu.Header, data []byte)
}

// fullFeature is the opcode table of the full feature phase.
var fullFeature [64]*handler

// loginPhase is the opcode table until then.
var loginPhase [64]*handler

func init() {
	loginPhase[pdu.OpLoginRequest] = &handler{end: endLogin}
	fullFeature = [64]*handler{
		pdu.OpNopOut:        {run: runNopOut},
		pdu.OpSCSICommand:   {begin: beginCommand, end: endCommand},
		pdu.OpTaskRequest:   {run: runTaskRequest},
		pdu.OpTextRequest:   {run: runText},
		pdu.OpDataOut:       {begin: beginDataOut, end: endDataOut},
		pdu.OpLogoutRequest: {run: runLogout},
		pdu.OpSNACK:         {end: endSNACK},
	}
}

func newConn(r *reactor, p *portal, remote, local net.Addr) *conn {
	c := &conn{reactor: r, portal: p, remote: remote.String(), origin: origin(remote), local: local}
	c.rx.buf = make([]byte, loginBuffer)
	c.rx.done, c.rx.direct = c.received, c.receivedDirect
	c.tx.done = c.sent
	c.opcodes = &loginPhase
	c.recvMax = pdu.DefaultMaxData
	c.params = defaultParams()
	return c
}

func (c *conn) opts() *Options { return &c.reactor.server.opts }

// open takes the descriptor over, on the lane.
func (c *conn) open(fd int) {
	s := c.reactor.server
	sock, err := c.reactor.lane.Attach(fd)
	if err != nil {
		s.opts.Log.Warn("iscsi: connection not attached", "remote", c.remote, "error", err)
		_ = unix.Close(fd)
		c.leaveServer()
		return
	}
	s.totals.connections.Add(1)
	if c.refused {
		s.totals.refused.Add(1)
	}
	c.sock = sock
	c.started = time.Now()
	c.heard = c.started
	c.reactor.enter(c)
	if c.pushed.Load() {
		c.close(errCrowded)
		return
	}
	c.receive()
}

// pushOut ends a connection that has left the lobby without a login. Called on any goroutine.
func (c *conn) pushOut() {
	c.pushed.Store(true)
	c.post(func() {
		if c.sock != nil && c.session == nil { // else open finds it, or it has logged in meanwhile
			c.close(errCrowded)
		}
	})
}

// post runs fn on the connection's lane; a closed lane has no connections left to care for.
func (c *conn) post(fn func()) { _ = c.reactor.lane.Post(fn) }

// dispatch finds the opcode's handler and lets it place the data segment.
func (c *conn) dispatch() bool {
	rx := &c.rx
	rx.handler = c.opcodes[rx.head.Opcode()]
	c.acknowledge(rx.head.ExpStatSN())
	switch {
	case rx.size > c.recvMax:
		c.fail(pdu.RejectProtocol)
		return false
	case rx.handler == nil && c.session == nil:
		c.refuseLogin(pdu.LoginInvalidRequest)
		return false
	case rx.handler == nil:
		rx.handler = &unsupported
	case rx.handler.begin != nil:
		rx.handler.begin(c)
	default:
		rx.toControl()
	}
	if rx.stage = stageData; rx.size == 0 {
		c.complete(true)
	}
	return true
}

func (c *conn) complete(intact bool) {
	h := c.rx.handler
	c.rx.stage = stageHeader
	if h.end != nil {
		h.end(c, intact)
		return
	}
	c.endControl(intact)
}

// endControl puts a PDU that is no SCSI command into its place in the order.
func (c *conn) endControl(intact bool) {
	h := &c.rx.head
	switch {
	case !intact:
		c.reject(pdu.RejectDataDigest)
	case h.Immediate():
		c.rx.handler.run(c, h, c.rx.dst)
	default:
		c.order(h, nil)
	}
}

var unsupported = handler{end: func(c *conn, _ bool) { c.reject(pdu.RejectNotSupported) }}

func endSNACK(c *conn, _ bool) { c.reject(pdu.RejectSNACK) }

// close ends the connection; what the device server still works on is waited for.
func (c *conn) close(why error) {
	if c.closing {
		return
	}
	c.closing = true
	c.logEnd(why)
	c.sock.Close(c.socketClosed)
}

// logEnd tells of sessions; a connection that never had one is of interest in debugging alone.
func (c *conn) logEnd(why error) {
	if c.session == nil {
		c.opts().Log.Debug("iscsi: connection ended", "remote", c.remote, "reason", why)
		return
	}
	k := &c.session.key
	c.opts().Log.Info("iscsi: session ended", "remote", c.remote, "reason", why,
		"initiator", k.initiator, "target", k.target, "tsih", c.session.tsih)
}

// socketClosed frees what only the socket could still touch.
func (c *conn) socketClosed() {
	c.gone = true
	c.dropFrames()
	c.win.early = nil // the task table frees their tasks
	c.dropGathering()
	if c.running > 0 { // long commands end at their next step
		c.session.export.Target.AbortNexus(c.session.nexus, c.reactor.lane.Index(), func() {})
	}
	c.finish()
}

// finish ends the session once nothing of it is in the device server.
func (c *conn) finish() {
	if !c.gone || c.running > 0 || c.finished {
		return
	}
	c.finished = true
	c.closePages()
	c.endTimed()
	if c.session != nil {
		c.endSession()
	}
	c.reactor.leave(c)
	c.leaveServer()
	for _, fn := range c.ended {
		fn()
	}
}

func (c *conn) endSession() {
	s := c.reactor.server
	if c.session.nexus != nil {
		c.session.nexus.Close()
	}
	s.totals.commands.Add(c.counters.commands.Load())
	s.totals.bytesIn.Add(c.counters.bytesIn.Load())
	s.totals.bytesOut.Add(c.counters.bytesOut.Load())
	s.sessions.release(c.session)
}

func (c *conn) leaveServer() {
	c.reactor.server.lobby.leave(c)
	c.reactor.load.Add(-1)
	c.reactor.server.open.Add(-1)
}

// whenEnded calls fn on the lane once the connection and its session are gone.
func (c *conn) whenEnded(fn func()) {
	if c.finished {
		fn()
		return
	}
	c.ended = append(c.ended, fn)
}
