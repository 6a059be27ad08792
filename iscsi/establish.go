package iscsi

import (
	"fmt"
	"time"

	"lunar/iscsi/pdu"
)

// maxLoginRequests bounds one login phase.
const maxLoginRequests = 64

// opening is the login phase of a connection: what login.go does not know of.
type opening struct {
	login    *login
	requests int
	text     pdu.Assembler
	isid     [6]byte
	tsih     uint16     // that the initiator asked for
	head     pdu.Header // of the last request
}

// endLogin takes a Login Request, RFC 7143 §11.12.
func endLogin(c *conn, _ bool) {
	h := pdu.LoginRequest{Header: &c.rx.head}
	if c.opening.requests == 0 {
		c.beginLogin(h)
	}
	c.opening.head = c.rx.head
	c.opening.requests++
	if status := c.checkLogin(h); status != pdu.LoginSuccess {
		c.refuseLogin(status)
		return
	}
	text, err := c.opening.text.Add(c.rx.dst, h.Continue())
	if err != nil {
		c.refuseLogin(pdu.LoginInitiatorError)
		return
	}
	if h.Continue() {
		c.sendLogin(loginStep{current: h.CurrentStage()}, 0)
		return
	}
	c.stepLogin(h, text)
}

func (c *conn) beginLogin(h pdu.LoginRequest) {
	o := &c.opening
	o.isid, o.tsih = *h.ISID(), h.TSIH()
	o.login = newLogin(c.reactor.server, c.opts(), c.portal.group())
	c.cid = h.CID()
	c.win = window{expected: h.CmdSN(), depth: c.opts().QueueDepth}
	c.tx.statSN = h.ExpStatSN()
}

func (c *conn) checkLogin(h pdu.LoginRequest) pdu.LoginStatus {
	switch {
	case c.refused:
		return pdu.LoginOutOfResources
	case h.VersionMin() > 0:
		return pdu.LoginUnsupportedVersion
	case h.Transit() && h.Continue(), *h.ISID() != c.opening.isid, h.TSIH() != c.opening.tsih, h.CID() != c.cid,
		c.opening.requests > maxLoginRequests:
		return pdu.LoginInvalidRequest
	}
	return pdu.LoginSuccess
}

func (c *conn) stepLogin(h pdu.LoginRequest, text []byte) {
	pairs, err := pdu.ParseText(text)
	if err != nil {
		c.refuseLogin(pdu.LoginInitiatorError)
		return
	}
	reply := c.opening.login.step(loginStep{
		transit: h.Transit(), current: h.CurrentStage(), next: h.NextStage(), pairs: pairs,
	})
	switch {
	case reply.status != pdu.LoginSuccess:
		c.refuseLogin(reply.status)
	case reply.transit && reply.next == pdu.StageFull:
		c.rx.paused = true
		c.establish(reply)
	default:
		c.sendLogin(reply, c.opening.tsih)
	}
}

// sendLogin answers the last request.
func (c *conn) sendLogin(reply loginStep, tsih uint16) { c.send(c.loginFrame(reply, tsih)) }

func (c *conn) loginFrame(reply loginStep, tsih uint16) *frame {
	req := pdu.LoginRequest{Header: &c.opening.head}
	f := c.frame(pdu.OpLoginResponse, pdu.LoginFlags(reply.transit, false, reply.current, reply.next), req.ITT())
	h := pdu.LoginResponse{Header: f.head()}
	*h.ISID() = *req.ISID()
	h.SetTSIH(tsih)
	h.SetStatus(reply.status)
	f.data, f.stat, f.plain = reply.text, statTake, true
	return f
}

// refuseLogin answers with a status and ends the connection.
func (c *conn) refuseLogin(status pdu.LoginStatus) {
	c.reactor.server.totals.loginFailures.Add(1)
	if missed, ok := c.reactor.complaints.allow(time.Now()); ok {
		c.opts().Log.Warn("iscsi: login refused", "remote", c.remote, "status", fmt.Sprintf("0x%04x", uint16(status)),
			"login", c.opening.login, "not_logged", missed)
	}
	if c.opening.requests == 0 {
		c.opening.head = c.rx.head
	}
	req := pdu.LoginRequest{Header: &c.opening.head}
	f := c.loginFrame(loginStep{current: req.CurrentStage(), status: status}, req.TSIH())
	f.last = true
	c.rx.paused = true
	c.send(f)
}

// establish enters the session; one of the same nexus has to end first.
func (c *conn) establish(reply loginStep) {
	if c.closing {
		return
	}
	s, status := c.newSession()
	if status == pdu.LoginSuccess {
		var old *session
		if old, status = c.reactor.server.sessions.claim(s, c.opening.tsih); old != nil {
			c.reinstate(old, reply)
			return
		}
	}
	if status != pdu.LoginSuccess {
		c.refuseLogin(status)
		return
	}
	c.enter(s, reply)
}

func (c *conn) newSession() (*session, pdu.LoginStatus) {
	l := c.opening.login
	s := &session{
		key:       sessionKey{initiator: l.initiator, isid: c.opening.isid, target: l.target, group: l.group},
		discovery: l.discovery, alias: l.neg.alias, export: l.exported, conn: c, since: time.Now(),
		headerDigest: l.neg.params.HeaderDigest, dataDigest: l.neg.params.DataDigest,
	}
	if !s.discovery && c.reactor.server.export(l.target) == nil {
		return nil, pdu.LoginTargetRemoved
	}
	if c.opening.tsih == 0 {
		return s, pdu.LoginSuccess
	}
	return s, c.checkTSIH(s)
}

// checkTSIH judges a login that names a session: only its own connection, logging in anew, may go
// on with it (RFC 7143 §6.3.4); a second connection is one too many.
func (c *conn) checkTSIH(s *session) pdu.LoginStatus {
	old := c.reactor.server.sessions.get(c.opening.tsih)
	switch {
	case c.replaced:
		return pdu.LoginSuccess
	case old == nil || old.key != s.key || old.discovery:
		return pdu.LoginNoSession
	case old.conn.cid != c.cid:
		return pdu.LoginTooManyConnections
	}
	return pdu.LoginSuccess
}

// reinstate ends the older session of the nexus, RFC 7143 §6.3.5, and goes on when it is gone.
// LoginTime bounds the wait.
func (c *conn) reinstate(old *session, reply loginStep) {
	c.replaced = true
	end := func() {
		old.conn.close(errReinstated)
		old.conn.whenEnded(func() { c.post(func() { c.establish(reply) }) })
	}
	if err := old.conn.reactor.lane.Post(end); err != nil {
		c.refuseLogin(pdu.LoginTargetError)
	}
}

// enter begins the full feature phase.
func (c *conn) enter(s *session, reply loginStep) {
	l := c.opening.login
	c.params = l.neg.finish()
	if l.declared {
		c.recvMax = c.opts().MaxRecvData
	}
	if s.export != nil {
		s.nexus = s.export.Target.NewNexus(s.key.portName(), s.key.group)
		if c.replaced {
			s.nexus.Reinstated()
		}
		c.rx.enlarge(c.opts().ReceiveBuffer)
	}
	c.session = s
	c.reactor.server.lobby.leave(c)
	c.reactor.server.totals.logins.Add(1)
	c.opts().Log.Info("iscsi: logged in", "remote", c.remote, "tsih", s.tsih, "lane", c.reactor.lane.Index(), "login", l)
	c.sendLogin(reply, s.tsih)
	c.rx.headerDigest, c.rx.dataDigest = c.params.HeaderDigest, c.params.DataDigest
	c.tx.headerDigest, c.tx.dataDigest = c.params.HeaderDigest, c.params.DataDigest
	c.opcodes = &fullFeature
	c.opening = opening{}
	c.resume()
}
