package iscsi

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"lunar/iscsi/pdu"
	"lunar/iscsi/scsi"
)

// TestHandles: TSIH is never 0 and never one that is in use, over more logins than there are handles.
func TestHandles(t *testing.T) {
	r := newRegistry()
	keep := &session{key: sessionKey{initiator: "keep"}}
	if _, status := r.claim(keep, 0); status != 0 {
		t.Fatal(status)
	}
	for i := range 200_000 {
		s := &session{key: sessionKey{initiator: "x"}}
		old, status := r.claim(s, 0)
		if old != nil || status != 0 || s.tsih == 0 || s.tsih == keep.tsih {
			t.Fatalf("login %d: handle %d, status %d", i, s.tsih, status)
		}
		r.release(s)
	}
}

func TestHandlesRunOut(t *testing.T) {
	r := newRegistry()
	for i := range 1<<16 - 1 {
		s := &session{discovery: true}
		if _, status := r.claim(s, 0); status != 0 || s.tsih == 0 {
			t.Fatalf("login %d: status %#x", i, status)
		}
	}
	if _, status := r.claim(&session{discovery: true}, 0); status != pdu.LoginOutOfResources {
		t.Errorf("status %#x", status)
	}
}

func (c *client) tryLogin(pairs ...string) pdu.LoginStatus {
	c.t.Helper()
	keys := append([]string{"InitiatorName", c.name, "TargetName", testTarget, "SessionType", "Normal"}, pairs...)
	return c.loginPDU(pdu.LoginFlags(true, false, pdu.StageOperational, pdu.StageFull), text(keys...)).loginStatus()
}

// §11.12.6: TSIH in the final response; one that no session has is refused, and so is a second
// connection for one that exists.
func TestTSIH(t *testing.T) {
	f := newFixture(t)
	c := f.dial()
	c.login()
	tsih := f.server.Sessions()[0].TSIH
	if tsih == 0 {
		t.Fatal("TSIH 0")
	}
	c = f.dial()
	c.tsih = tsih + 77
	if s := c.tryLogin(); s != pdu.LoginNoSession {
		t.Errorf("unknown TSIH: status %#x", s)
	}
	c.expectClosed()
}

// §6.3.5: the same initiator port logs in anew: the old session ends, its tasks with it.
func TestReinstatement(t *testing.T) {
	f := newFixture(t)
	old := f.ready()
	f.heldReads(old, 3)
	fresh := f.dial()
	fresh.send(fresh.loginHeader(pdu.LoginFlags(true, false, pdu.StageOperational, pdu.StageFull)), text(hello...))
	fresh.silence() // the old session's tasks are in the backend still
	f.disk.release()
	if s := fresh.expect(pdu.OpLoginResponse).loginStatus(); s != 0 {
		t.Fatalf("status %#x", s)
	}
	old.expectClosed()
	fresh.send(fresh.command(cdb(0), 0, 0), nil)
	fresh.bad(6, 0x29, 0x07)
	fresh.read(0, 1)
	if n := len(f.server.Sessions()); n != 1 {
		t.Errorf("%d sessions", n)
	}
}

// §6.3.4: the session's own connection logs in anew with its TSIH, and keeps it.
func TestConnectionReinstatement(t *testing.T) {
	f := newFixture(t)
	f.ready()
	tsih := f.server.Sessions()[0].TSIH
	c := f.dial()
	c.tsih = tsih
	if s := c.tryLogin(); s != 0 {
		t.Fatalf("status %#x", s)
	}
	if got := f.server.Sessions(); len(got) != 1 || got[0].TSIH != tsih {
		t.Errorf("%+v", got)
	}
}

func TestTwoSessionsOfOneInitiator(t *testing.T) {
	f := newFixture(t)
	a := f.ready()
	b := f.dial()
	b.isid[3]++
	b.login()
	b.clearAttention()
	a.read(0, 1)
	b.read(0, 1)
	if n := len(f.server.Sessions()); n != 2 {
		t.Errorf("%d sessions", n)
	}
}

func (c *client) discover(name string) map[string][]string {
	c.t.Helper()
	a := c.loginPDU(pdu.LoginFlags(true, false, pdu.StageOperational, pdu.StageFull),
		text("InitiatorName", c.name, "SessionType", "Discovery", "MaxRecvDataSegmentLength", "512"))
	if s := a.loginStatus(); s != 0 {
		c.t.Fatalf("discovery login: %#x", s)
	}
	return c.sendTargets(name)
}

func (c *client) sendTargets(value string) map[string][]string {
	c.t.Helper()
	h := c.request(pdu.OpTextRequest, pdu.FlagFinal)
	h.SetTTT(pdu.NoTag)
	data := text("SendTargets", value)
	var all []byte
	for {
		c.send(h, data)
		a := c.expect(pdu.OpTextResponse)
		if all = append(all, a.data...); !a.Continue() {
			break
		}
		h = c.request(pdu.OpTextRequest, pdu.FlagFinal)
		h.SetTTT(a.TTT())
		data = nil
	}
	pairs, err := pdu.ParseText(all)
	if err != nil {
		c.t.Fatal(err)
	}
	found := map[string][]string{}
	last := ""
	for _, p := range pairs {
		if p.Key == "TargetName" {
			last = p.Value
			found[last] = nil
		} else {
			found[last] = append(found[last], p.Key+"="+p.Value)
		}
	}
	return found
}

// Appendix C: SendTargets=All lists every target and portal, over several PDUs if need be; an
// initiator that is not allowed sees no target and cannot log in.
func TestDiscovery(t *testing.T) {
	f := newFixture(t)
	second := f.listen("[::1]:0")
	for i := range 20 {
		f.newTarget("iqn.2025-01.test.lunar:more-"+strings.Repeat("x", i), f.disk)
	}
	if err := f.server.SetAccess("iqn.2025-01.test.lunar:more-", &Policy{Initiators: []string{"iqn.2025-01.else:where"}}); err != nil {
		t.Fatal(err)
	}
	found := f.dial().discover("All")
	want := "TargetAddress=" + f.addr + ",1 TargetAddress=" + second + ",1"
	if len(found) != 20 || strings.Join(found[testTarget], " ") != want {
		t.Errorf("%d targets; %s: %v, want %s", len(found), testTarget, found[testTarget], want)
	}
	if _, there := found["iqn.2025-01.test.lunar:more-"]; there {
		t.Error("a target is seen that is not allowed")
	}
	if found := f.dial().discover(testTarget); len(found) != 1 || len(found[testTarget]) != 2 {
		t.Errorf("by name: %v", found)
	}
	if found := f.dial().discover("iqn.2025-01.test.lunar:more-"); len(found) != 0 {
		t.Errorf("by a name that is not allowed: %v", found)
	}
}

// Servers that offer the same targets tell each other's portals, each under its own group tag.
func TestDiscoveryOfPeers(t *testing.T) {
	f := newFixture(t)
	f.server.SetGroup(3)
	f.server.SetPeers([]Peer{{Address: "192.0.2.1:3260", Group: 1}, {Address: "[2001:db8::2]:3260", Group: 2}})
	want := "TargetAddress=" + f.addr + ",3 TargetAddress=192.0.2.1:3260,1 TargetAddress=[2001:db8::2]:3260,2"
	if found := f.dial().discover("All"); strings.Join(found[testTarget], " ") != want {
		t.Errorf("%v, want %s", found[testTarget], want)
	}
	f.ready()
	for _, s := range f.server.Sessions() {
		if s.Target != "" && s.Group != 3 {
			t.Errorf("session of group %d", s.Group)
		}
	}
}

func TestSendTargetsInNormalSession(t *testing.T) {
	f := newFixture(t)
	c := f.ready()
	if found := c.sendTargets(""); len(found) != 1 || len(found[testTarget]) != 1 {
		t.Errorf("%v", found)
	}
	if found := c.sendTargets("All"); len(found) != 1 || found[""][0] != "SendTargets=Reject" {
		t.Errorf("%v", found)
	}
}

// A discovery session carries no SCSI command, §4.3.
func TestDiscoveryHasNoCommands(t *testing.T) {
	f := newFixture(t)
	c := f.dial()
	c.discover("All")
	c.send(c.command(cdb(0), 0, 0), nil)
	c.rejected(pdu.RejectNotSupported)
}

func TestLoginRefusedOnTheWire(t *testing.T) {
	f := newFixture(t)
	if err := f.server.SetAccess(testTarget, &Policy{Initiators: []string{"iqn.2025-01.else:where"}}); err != nil {
		t.Fatal(err)
	}
	c := f.dial()
	if s := c.tryLogin(); s != pdu.LoginForbidden {
		t.Errorf("status %#x", s)
	}
	c.expectClosed()
	c = f.dial()
	h := c.command(cdb(0), 0, 0)
	c.send(h, nil)
	if a := c.expect(pdu.OpLoginResponse); a.loginStatus() != pdu.LoginInvalidRequest {
		t.Errorf("a command before the login: status %#x", a.loginStatus())
	}
	c.expectClosed()
}

// §6.1: a login text that the C bit continues.
func TestLoginContinued(t *testing.T) {
	f := newFixture(t)
	c := f.dial()
	whole := text("InitiatorName", c.name, "TargetName", testTarget, "HeaderDigest", "None")
	a := c.loginPDU(pdu.LoginFlags(false, true, pdu.StageOperational, 0), whole[:20])
	if a.loginStatus() != 0 || len(a.data) != 0 || a.Final() {
		t.Fatalf("% x", a.Header[:])
	}
	a = c.loginPDU(pdu.LoginFlags(true, false, pdu.StageOperational, pdu.StageFull), whole[20:])
	if a.loginStatus() != 0 || !a.Final() || answers(t, a.data)["HeaderDigest"] != "None" {
		t.Fatalf("% x %q", a.Header[:], a.data)
	}
	c.clearAttention()
}

// §11.14: logout of the session and of the connection; another connection's and recovery are refused.
func TestLogout(t *testing.T) {
	f := newFixture(t)
	for _, x := range []struct {
		reason pdu.LogoutReason
		cid    uint16
		want   pdu.LogoutResult
	}{{pdu.LogoutRecovery, 0, pdu.LogoutNoRecovery}, {pdu.LogoutConnection, 9, pdu.LogoutNoCID}, {pdu.LogoutConnection, 0, pdu.LogoutDone}, {pdu.LogoutSession, 0, pdu.LogoutDone}} {
		c := f.ready()
		h := c.request(pdu.OpLogoutRequest, pdu.FlagFinal|byte(x.reason))
		pdu.LogoutRequest{Header: h}.SetCID(x.cid)
		c.send(h, nil)
		a := c.expect(pdu.OpLogoutResponse)
		if got := (pdu.LogoutResponse{Header: &a.Header}).Result(); got != x.want {
			t.Errorf("reason %d: result %d, want %d", x.reason, got, x.want)
		}
		if x.want == pdu.LogoutDone {
			c.expectClosed()
			eventually(t, "the session is gone", func() bool { return len(f.server.Sessions()) == 0 })
		}
	}
}

// §11.15: the Logout Response is the connection's last PDU, whatever ran in the same batch.
func TestNothingFollowsTheLogoutResponse(t *testing.T) {
	f := newFixture(t)
	c := f.ready()
	logout := c.request(pdu.OpLogoutRequest, pdu.FlagFinal)
	c.send(c.command(cdb(0), 0, 0), nil) // before its turn
	c.send(logout, nil)
	c.expect(pdu.OpLogoutResponse)
	if a, err := c.tryRecv(5 * time.Second); err == nil {
		t.Errorf("%v followed", a.Opcode())
	}
}

// §11.13.5: beyond the limit a login is told "out of resources"; room made is used again.
func TestConnectionLimit(t *testing.T) {
	f := newFixture(t, func(o *Options) { o.MaxConnections = 2 })
	a := f.ready()
	f.another()
	c := f.dial()
	if s := c.tryLogin(); s != pdu.LoginOutOfResources {
		t.Errorf("status %#x", s)
	}
	c.expectClosed()
	a.conn.Close()
	eventually(t, "a place comes free", func() bool { return f.server.Connections() == 1 })
	f.ready()
}

func TestLoginTimeLimit(t *testing.T) {
	f := newFixture(t, func(o *Options) { o.LoginTime = 30 * time.Millisecond })
	c := f.dial()
	c.expectClosed()
}

// An initiator that says nothing is asked with a NOP-In and dropped when it does not answer.
func TestKeepalive(t *testing.T) {
	f := newFixture(t, func(o *Options) { o.IdleTime, o.StallTime = 40*time.Millisecond, 60*time.Millisecond })
	c := f.ready()
	for range 3 {
		a := c.expect(pdu.OpNopIn)
		h := new(pdu.Header)
		h.Reset(pdu.OpNopOut, pdu.FlagFinal)
		h.SetImmediate()
		h.SetITT(pdu.NoTag)
		h.SetTTT(a.TTT())
		h.SetCmdSN(c.cmdSN)
		c.send(h, nil)
	}
	c.expect(pdu.OpNopIn)
	c.expectClosed()
}

// A server that was stopped for longer than any time limit blames no initiator: their answers wait to be seen.
func TestHeldUpServerSparesInitiators(t *testing.T) {
	f := newFixture(t)
	c := f.ready()
	f.server.onReactors(func(r *reactor) {
		r.each(func(c *conn) { c.async(pdu.AsyncLogout, 0, 0, 1) })
		r.batch() // it is under way
		r.tick(r.now.Add(time.Hour))
	})
	c.expect(pdu.OpAsync)
	c.send(c.command(write10(0, 1), pdu.FlagWrite, 512), pattern(512, 1))
	c.good()
}

// An initiator that answers every NOP-In but never sends its data holds no buffer for ever.
func TestDataThatNeverComes(t *testing.T) {
	f := newFixture(t, func(o *Options) { o.StallTime = 50 * time.Millisecond })
	c := f.ready("ImmediateData", "No")
	h := c.command(write10(0, 8), pdu.FlagWrite, 4096)
	c.send(h, nil)
	c.r2t(h.ITT(), 0, 0, 4096)
	c.expectClosed()
	eventually(t, "the buffer is back", func() bool { return f.buffers.inUse() == 0 })
}

// When buffers run out commands wait and go on, one whose data comes with it too.
func TestBuffersRunOut(t *testing.T) {
	f := newFixture(t)
	c := f.ready()
	f.buffers.setLimit(1)
	h := c.command(read10(0, 1), pdu.FlagRead, 512)
	c.send(h, nil)
	c.silence()
	c.send(c.command(write10(8, 1), pdu.FlagWrite, 512), pattern(512, 1))
	c.send(c.command(write10(9, 1), pdu.FlagWrite, 512), pattern(512, 2))
	c.silence()
	f.buffers.setLimit(0)
	c.collect(h.ITT(), 512)
	for range 2 {
		if a := c.expect(pdu.OpSCSIResponse); a.scsiStatus() != scsi.Good {
			t.Errorf("status %v", a.scsiStatus())
		}
	}
	f.holds(8, pattern(512, 1))
	f.holds(9, pattern(512, 2))
}

// starved sends a WRITE with unsolicited data, for which there is no buffer.
func (f *fixture) starved(c *client) (data []byte) {
	f.t.Helper()
	f.buffers.setLimit(1)
	data = pattern(1024, 3)
	h := c.command(write10(8, 2), pdu.FlagWrite, 1024)
	h.SetFlags(h.Flags() &^ pdu.FlagFinal)
	c.send(h, nil)
	if _, err := c.conn.Write(dataOutPDU(h.ITT(), pdu.NoTag, 0, 0, data)); err != nil {
		f.t.Fatal(err)
	}
	c.silence()
	return data
}

func TestUnsolicitedDataWaitsForABuffer(t *testing.T) {
	f := newFixture(t)
	c := f.ready("InitialR2T", "No")
	data := f.starved(c)
	f.buffers.setLimit(0)
	if a := c.expect(pdu.OpSCSIResponse); a.scsiStatus() != scsi.Good {
		t.Errorf("status %v", a.scsiStatus())
	}
	f.holds(8, data)
}

// A reset ends a command that waits for a buffer before its data; the connection goes on.
func TestResetWhileStarved(t *testing.T) {
	f := newFixture(t)
	c, other := f.ready("InitialR2T", "No"), f.another()
	f.starved(c)
	if r := other.manage(pdu.LUNReset, 0, nil); r != pdu.TaskComplete {
		t.Errorf("result %d", r)
	}
	f.buffers.setLimit(0)
	c.clearAttention()
	f.holds(8, make([]byte, 1024))
}

// A connection whose other commands wait for data would wait for itself: TASK SET FULL.
func TestTaskSetFullWhileGathering(t *testing.T) {
	f := newFixture(t)
	c := f.ready()
	w := c.command(write10(0, 2), pdu.FlagWrite, 1024)
	f.buffers.setLimit(1024)
	c.send(w, nil)
	ttt := c.r2t(w.ITT(), 0, 0, 1024)
	c.send(c.command(write10(8, 1), pdu.FlagWrite, 512), pattern(512, 1))
	if a := c.expect(pdu.OpSCSIResponse); a.scsiStatus() != scsi.TaskSetFull {
		t.Errorf("status %v", a.scsiStatus())
	}
	if _, err := c.conn.Write(dataOutPDU(w.ITT(), ttt, 0, 0, pattern(1024, 1))); err != nil {
		t.Fatal(err)
	}
	if a := c.expect(pdu.OpSCSIResponse); a.scsiStatus() != scsi.Good {
		t.Errorf("status %v", a.scsiStatus())
	}
}

// So would one whose buffers are held by a command that came before its turn.
func TestTaskSetFullBeforeTheTurn(t *testing.T) {
	f := newFixture(t)
	c := f.ready()
	f.buffers.setLimit(512)
	first := c.command(write10(0, 1), pdu.FlagWrite, 512)
	second := c.command(write10(8, 1), pdu.FlagWrite, 512)
	c.send(second, pattern(512, 2))
	c.send(first, pattern(512, 1))
	for _, want := range []scsi.Status{scsi.TaskSetFull, scsi.Good} {
		if a := c.expect(pdu.OpSCSIResponse); a.scsiStatus() != want {
			t.Errorf("status %v, want %v", a.scsiStatus(), want)
		}
	}
	f.holds(8, pattern(512, 2))
}

// The command that stops the receiver gets the first buffer: what is asked for meanwhile could not come in.
func TestStarvedCommandGoesFirst(t *testing.T) {
	f := newFixture(t)
	c := f.ready()
	f.buffers.setLimit(1)
	asked := c.command(write10(0, 1), pdu.FlagWrite, 512)
	c.send(asked, nil)
	c.send(c.command(write10(8, 1), pdu.FlagWrite, 512), pattern(512, 2))
	c.silence()
	f.buffers.setLimit(512)
	c.good()
	ttt := c.r2t(asked.ITT(), 0, 0, 512)
	c.dataOut(asked.ITT(), ttt, 0, 0, pattern(512, 1), true)
	c.good()
	f.holds(0, pattern(512, 1))
	f.holds(8, pattern(512, 2))
}

func TestDropSession(t *testing.T) {
	f := newFixture(t)
	c := f.ready()
	if err := f.server.DropSession(t.Context(), f.server.Sessions()[0].TSIH); err != nil {
		t.Fatal(err)
	}
	c.expectClosed()
	if err := f.server.DropSession(t.Context(), 999); !errors.Is(err, ErrNoSession) {
		t.Error(err)
	}
}

// §11.9: a target that goes away asks its initiators to log out first.
func TestRemoveTarget(t *testing.T) {
	f := newFixture(t, func(o *Options) { o.LogoutTime = 50 * time.Millisecond })
	c := f.ready()
	gone := make(chan error)
	go func() { gone <- f.server.RemoveTarget(context.Background(), testTarget) }()
	a := c.expect(pdu.OpAsync)
	if e := (pdu.Async{Header: &a.Header}).Event(); e != pdu.AsyncLogout {
		t.Errorf("event %d", e)
	}
	c.read(0, 1)
	if err := <-gone; err != nil {
		t.Fatal(err)
	}
	c.expectClosed()
	c = f.dial()
	if s := c.tryLogin(); s != pdu.LoginNotFound {
		t.Errorf("status %#x", s)
	}
}

// Close answers the commands that are in the backend.
func TestCloseDrains(t *testing.T) {
	f := newFixture(t, func(o *Options) { o.LogoutTime = 20 * time.Millisecond })
	c := f.ready()
	all := f.heldReads(c, 2)
	closed := make(chan error)
	go func() { closed <- f.server.Close(context.Background()) }()
	c.expect(pdu.OpAsync)
	c.expect(pdu.OpAsync)
	f.disk.release()
	c.collect(all[0].ITT(), 512)
	c.collect(all[1].ITT(), 512)
	if err := <-closed; err != nil {
		t.Fatal(err)
	}
	c.expectClosed()
	if err := f.server.AddTarget(Export{Name: "iqn.a:b", Target: f.target}); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
}

func TestCloseIsBounded(t *testing.T) {
	f := newFixture(t)
	c := f.ready()
	f.heldReads(c, 1)
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := f.server.Close(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	f.disk.release()
	eventually(t, "the connection ends", func() bool { return f.server.Connections() == 0 })
}

func TestSessionInfo(t *testing.T) {
	f := newFixture(t)
	c := f.dial()
	c.login("DataDigest", "CRC32C", "InitiatorAlias", "my host")
	c.clearAttention()
	c.send(c.command(write10(0, 8), pdu.FlagWrite, 4096), pattern(4096, 1))
	c.good()
	c.read(0, 4)
	all := f.server.Sessions()
	if len(all) != 1 {
		t.Fatalf("%d sessions", len(all))
	}
	s := all[0]
	if s.Initiator != testInitiator || s.Target != testTarget || s.Alias != "my host" || s.ISID != c.isid || s.Group != 1 ||
		!s.DataDigest || s.HeaderDigest || s.BytesIn != 4096 || s.BytesOut != 2048 || s.InFlight != 0 || s.Commands < 3 ||
		s.Remote != c.conn.LocalAddr().String() {
		t.Errorf("%+v", s)
	}
	if n := f.server.Totals(); n.Logins != 1 || n.BytesIn != 4096 {
		t.Errorf("%+v", n)
	}
}

func TestTargets(t *testing.T) {
	f := newFixture(t)
	if err := f.server.AddTarget(Export{Name: strings.ToUpper(testTarget), Target: f.target}); !errors.Is(err, ErrTargetExists) {
		t.Error(err)
	}
	if err := f.server.AddTarget(Export{Name: "disk", Target: f.target}); !errors.Is(err, ErrBadName) {
		t.Error(err)
	}
	if err := f.server.RemoveTarget(t.Context(), "iqn.no:such"); !errors.Is(err, ErrNoTarget) {
		t.Error(err)
	}
	if got := f.server.Targets(); len(got) != 1 || got[0] != testTarget {
		t.Error(got)
	}
}

func TestRemovePortal(t *testing.T) {
	f := newFixture(t)
	f.listen("127.0.0.1:0")
	addrs := f.server.Portals()
	c := f.ready()
	if err := f.server.RemovePortal(addrs[0]); err != nil {
		t.Fatal(err)
	}
	if conn, err := net.Dial("tcp", addrs[0].String()); err == nil {
		conn.Close()
		t.Error("the portal still accepts")
	}
	c.read(0, 1)
}

func TestOptionsValidate(t *testing.T) {
	lane := []Lane{&pumpLane{}}
	for _, o := range []Options{
		{}, {Lanes: lane}, {Lanes: lane, Buffers: &arena{}, QueueDepth: 5000}, {Lanes: lane, Buffers: &arena{}, MaxR2T: 9},
		{Lanes: lane, Buffers: &arena{}, ReceiveBuffer: 100}, {Lanes: lane, Buffers: &arena{}, MaxBurst: 1024, FirstBurst: 2048},
	} {
		if err := o.Validate(); !errors.Is(err, ErrOptions) {
			t.Errorf("%+v: %v", o, err)
		}
	}
	if err := (Options{Lanes: lane, Buffers: &arena{}}).Validate(); err != nil {
		t.Error(err)
	}
}
