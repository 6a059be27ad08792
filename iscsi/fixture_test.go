package iscsi

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"

	"lunar/iscsi/pdu"
	"lunar/iscsi/scsi"
)

func TestMain(m *testing.M) {
	// The runtime's poller opens its descriptors with the first listener and keeps them.
	if l, err := net.Listen("tcp", "127.0.0.1:0"); err == nil {
		l.Close()
	}
	goleak.VerifyTestMain(m)
}

const (
	testTarget    = "iqn.2025-01.test.lunar:disk"
	testInitiator = "iqn.2025-01.test.lunar:client"
	testBlocks    = 8192
)

var be = binary.BigEndian

// fixture is a server with one portal and one target of one disk.
type fixture struct {
	t       *testing.T
	server  *Server
	lanes   []*testLane
	buffers *testBuffers
	disk    *memory
	target  *scsi.Target
	addr    string
}

func newFixture(t *testing.T, change ...func(*Options)) *fixture {
	t.Helper()
	f := &fixture{t: t, buffers: newTestBuffers()}
	fds := openDescriptors(t)
	t.Cleanup(func() {
		if now := openDescriptors(t); now > fds {
			t.Errorf("%d descriptors are open, %d were before", now, fds)
		}
	})
	o := Options{Buffers: f.buffers, Log: testLog(t)}
	for i := range 2 {
		l := newTestLane(t, i)
		f.lanes = append(f.lanes, l)
		o.Lanes = append(o.Lanes, l)
	}
	for _, fn := range change {
		fn(&o)
	}
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	f.server = s
	f.disk = &memory{data: make([]byte, testBlocks*512), post: f.post}
	f.target = f.newTarget(testTarget, f.disk)
	f.addr = f.listen("127.0.0.1:0")
	t.Cleanup(f.close)
	return f
}

func testLog(t *testing.T) *slog.Logger {
	if !testing.Verbose() {
		return nil
	}
	return slog.New(slog.NewTextHandler(t.Output(), nil))
}

func (f *fixture) post(lane int, fn func()) error { return f.lanes[lane].Post(fn) }

func (f *fixture) newTarget(name string, b scsi.Backend) *scsi.Target {
	f.t.Helper()
	target := scsi.NewTarget(name, scsi.TargetOptions{Buffers: f.buffers, Post: f.post})
	lu, err := scsi.NewLogicalUnit(b, scsi.UnitOptions{NAA: []byte("\x61lunar-test-0001"), Serial: "1"})
	if err != nil {
		f.t.Fatal(err)
	}
	if err := target.Map(0, lu); err != nil {
		f.t.Fatal(err)
	}
	if err := f.server.AddTarget(Export{Name: name, Target: target}); err != nil {
		f.t.Fatal(err)
	}
	return target
}

func (f *fixture) listen(addr string) string {
	f.t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		f.t.Fatal(err)
	}
	if err := f.server.AddPortal(Portal{Listener: l}); err != nil {
		f.t.Fatal(err)
	}
	return l.Addr().String()
}

func (f *fixture) close() {
	f.disk.release()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for f.server.Connections() > 0 && ctx.Err() == nil {
		for _, r := range f.server.reactors {
			_ = r.lane.Post(r.cutAll)
		}
		time.Sleep(time.Millisecond)
	}
	if err := f.server.Close(ctx); err != nil && !errors.Is(err, ErrClosed) {
		f.t.Errorf("close: %v", err)
	}
	if n := f.buffers.inUse(); n > 0 {
		f.t.Errorf("%d buffers did not come back", n)
	}
}

func openDescriptors(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

// client is a raw initiator: it sends what it is told and checks nothing by itself.
type client struct {
	t     *testing.T
	conn  net.Conn
	cmdSN uint32
	itt   uint32
	exp   uint32 // ExpStatSN
	isid  [6]byte
	name  string

	headerDigest, dataDigest bool
	tsih                     uint16
}

// received is a PDU from the target.
type answer struct {
	pdu.Header
	data []byte
}

func (f *fixture) dial() *client {
	f.t.Helper()
	conn, err := net.Dial("tcp", f.addr)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { conn.Close() })
	c := &client{t: f.t, conn: conn, cmdSN: 100, name: testInitiator, isid: [6]byte{0x80, 1, 2, 3, 4, 5}}
	return c
}

func (c *client) send(h *pdu.Header, data []byte) {
	c.t.Helper()
	if _, err := c.conn.Write(c.encode(h, data)); err != nil {
		c.t.Fatalf("send %v: %v", h.Opcode(), err)
	}
}

func (c *client) encode(h *pdu.Header, data []byte) []byte {
	h.SetDataLen(len(data))
	b := append([]byte(nil), h[:]...)
	if c.headerDigest {
		b = appendDigest(b, b)
	}
	if len(data) == 0 {
		return b
	}
	seg := append(append([]byte(nil), data...), make([]byte, pdu.Pad(len(data)))...)
	b = append(b, seg...)
	if c.dataDigest {
		b = appendDigest(b, seg)
	}
	return b
}

func appendDigest(b, of []byte) []byte {
	var d [4]byte
	pdu.PutDigest(d[:], pdu.Digest(of))
	return append(b, d[:]...)
}

func (c *client) recv() *answer {
	c.t.Helper()
	a, err := c.tryRecv(5 * time.Second)
	if err != nil {
		c.t.Fatalf("receive: %v", err)
	}
	return a
}

func (c *client) tryRecv(limit time.Duration) (*answer, error) {
	_ = c.conn.SetReadDeadline(time.Now().Add(limit))
	a := new(answer)
	if _, err := io.ReadFull(c.conn, a.Header[:]); err != nil {
		return nil, err
	}
	if c.headerDigest {
		c.checkDigest(a.Header[:])
	}
	n := a.DataLen()
	seg := make([]byte, n+pdu.Pad(n))
	if _, err := io.ReadFull(c.conn, seg); err != nil {
		return nil, err
	}
	if c.dataDigest && n > 0 {
		c.checkDigest(seg)
	}
	a.data = seg[:n]
	return a, nil
}

func (c *client) checkDigest(p []byte) {
	var d [4]byte
	if _, err := io.ReadFull(c.conn, d[:]); err != nil {
		c.t.Errorf("digest: %v", err)
		return
	}
	if pdu.GetDigest(d[:]) != pdu.Digest(p) {
		c.t.Errorf("the target's digest of %d bytes is wrong", len(p))
	}
}

// expect receives a PDU that has to be of one opcode.
func (c *client) expect(op pdu.Opcode) *answer {
	c.t.Helper()
	a := c.recv()
	if a.Opcode() != op {
		c.t.Fatalf("got %v, want %v: % x", a.Opcode(), op, a.Header[:])
	}
	return a
}

// expectClosed checks that the target ends the connection, whatever it sends before.
func (c *client) expectClosed() {
	c.t.Helper()
	_ = c.conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.Copy(io.Discard, c.conn); err != nil && isTimeout(err) {
		c.t.Fatal("the connection is still open")
	}
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

func (c *client) nextTag() uint32 {
	c.itt++
	return c.itt
}

// request makes a non-immediate request's header; CmdSN goes on by one.
func (c *client) request(op pdu.Opcode, flags byte) *pdu.Header {
	h := new(pdu.Header)
	h.Reset(op, flags)
	h.SetITT(c.nextTag())
	h.SetCmdSN(c.cmdSN)
	h.SetTTT(0)
	c.cmdSN++
	return h
}

func text(pairs ...string) []byte {
	var b []byte
	for i := 0; i < len(pairs); i += 2 {
		b = pdu.AppendPair(b, pairs[i], pairs[i+1])
	}
	return b
}

func answers(t *testing.T, b []byte) map[string]string {
	t.Helper()
	pairs, err := pdu.ParseText(b)
	if err != nil {
		t.Fatal(err)
	}
	m := map[string]string{}
	for _, p := range pairs {
		m[p.Key] = p.Value
	}
	return m
}

// loginHeader makes a Login Request's header.
func (c *client) loginHeader(flags byte) *pdu.Header {
	h := new(pdu.Header)
	h.Reset(pdu.OpLoginRequest, flags)
	h.SetImmediate()
	req := pdu.LoginRequest{Header: h}
	*req.ISID() = c.isid
	req.SetTSIH(c.tsih)
	h.SetITT(0x7777)
	h.SetCmdSN(c.cmdSN)
	h.SetExpStatSN(c.exp)
	return h
}

// loginPDU sends one Login Request and returns the response.
func (c *client) loginPDU(flags byte, data []byte) *answer {
	c.t.Helper()
	c.send(c.loginHeader(flags), data)
	a := c.expect(pdu.OpLoginResponse)
	c.exp = a.StatSN() + 1
	return a
}

func (a *answer) loginStatus() pdu.LoginStatus { return pdu.LoginResponse{Header: &a.Header}.Status() }

// login goes straight to the full feature phase with the given operational keys.
func (c *client) login(pairs ...string) map[string]string {
	c.t.Helper()
	keys := append([]string{"InitiatorName", c.name, "TargetName", testTarget, "SessionType", "Normal"}, pairs...)
	a := c.loginPDU(pdu.LoginFlags(true, false, pdu.StageOperational, pdu.StageFull), text(keys...))
	if s := a.loginStatus(); s != pdu.LoginSuccess {
		c.t.Fatalf("login status 0x%04x", uint16(s))
	}
	m := answers(c.t, a.data)
	c.headerDigest, c.dataDigest = m["HeaderDigest"] == "CRC32C", m["DataDigest"] == "CRC32C"
	return m
}

// ready logs in and takes the unit attention away.
func (f *fixture) ready(pairs ...string) *client {
	f.t.Helper()
	c := f.dial()
	c.login(pairs...)
	c.clearAttention()
	return c
}

func (c *client) clearAttention() {
	c.t.Helper()
	for range 5 {
		h := c.command(cdb(0x00), 0, 0)
		c.send(h, nil)
		a := c.expect(pdu.OpSCSIResponse)
		if a.scsiStatus() == scsi.Good {
			return
		}
	}
	c.t.Fatal("the unit stays unready")
}

func (a *answer) scsiStatus() scsi.Status {
	return scsi.Status(pdu.SCSIResponse{Header: &a.Header}.Status())
}

// senseCode is key, ASC and ASCQ.
func (a *answer) senseCode() [3]byte {
	if len(a.data) < 2+14 {
		return [3]byte{}
	}
	s := a.data[2:]
	return [3]byte{s[2] & 0xf, s[12], s[13]}
}

func cdb(b ...byte) []byte { return append(b, make([]byte, 16-len(b))...) }

func read10(lba, n int) []byte {
	c := cdb(0x28)
	be.PutUint32(c[2:], uint32(lba))
	be.PutUint16(c[7:], uint16(n))
	return c
}

func write10(lba, n int) []byte {
	c := read10(lba, n)
	c[0] = 0x2a
	return c
}

// command makes a SCSI Command with the F bit.
func (c *client) command(cdb []byte, flags byte, edtl int) *pdu.Header {
	h := c.request(pdu.OpSCSICommand, flags|pdu.FlagFinal|1)
	v := pdu.SCSICommand{Header: h}
	v.SetEDTL(uint32(edtl))
	copy(v.CDB(), cdb)
	return h
}

// read reads through as many Data-In as come and checks their numbers and offsets.
func (c *client) read(lba, n int) []byte {
	c.t.Helper()
	h := c.command(read10(lba, n), pdu.FlagRead, n*512)
	c.send(h, nil)
	return c.collect(h.ITT(), n*512)
}

func (c *client) collect(itt uint32, n int) []byte {
	c.t.Helper()
	var got []byte
	for sn := uint32(0); ; sn++ {
		a := c.expect(pdu.OpDataIn)
		d := pdu.DataIn{Header: &a.Header}
		if a.ITT() != itt || d.DataSN() != sn || int(d.Offset()) != len(got) {
			c.t.Fatalf("Data-In tag %x DataSN %d offset %d, want %x %d %d", a.ITT(), d.DataSN(), d.Offset(), itt, sn, len(got))
		}
		got = append(got, a.data...)
		if d.HasStatus() {
			if len(got) != n || d.Status() != 0 {
				c.t.Fatalf("%d bytes with status %d, want %d", len(got), d.Status(), n)
			}
			return got
		}
	}
}

func pattern(n int, seed byte) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i*7) ^ byte(i>>8) ^ seed
	}
	return p
}

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if cond() {
			return
		}
	}
	t.Fatalf("did not come true: %s", what)
}
