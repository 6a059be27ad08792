package iscsi

import "lunar/iscsi/pdu"

const (
	// loginBuffer holds the largest header and a login's data segment in pieces; a connection gets
	// Options.ReceiveBuffer once it has logged in.
	loginBuffer      = 4 << 10
	minReceiveBuffer = loginBuffer
	// directMin is the rest of a data segment, in bytes, from which on it is received straight into
	// the command's buffer instead of being copied there.
	directMin = 8 << 10
	// peek is how many bytes are received behind such a segment: the next header, and of the next
	// segment no more than is cheaply copied.
	peek = 2 << 10
)

// stage is what the receiver expects next in the stream.
type stage uint8

const (
	stageHeader stage = iota
	stageData
	stageTrailer // padding and data digest
)

// receiver takes the byte stream apart into PDUs. Bytes come in bulk.
type receiver struct {
	buf      []byte // buf[r:w] has arrived and is not yet consumed
	r, w     int
	stage    stage
	underway bool // a Recv is under way
	paused   bool // nothing is consumed until resume
	done     func(int, error)
	direct   func(int, error)

	headerDigest, dataDigest bool

	// The PDU that is being received.
	head    pdu.Header
	ahs     []byte // valid while the header is dispatched
	handler *handler
	dst     []byte // where the data segment goes; what exceeds it is dropped
	pos     int    // bytes of the data segment that have arrived
	size    int    // DataSegmentLength
	crc     uint32
	task    *task  // the command that the data belongs to, if any
	control []byte // for segments that no command owns
}

var stages = [...]func(*conn) bool{
	stageHeader:  (*conn).takeHeader,
	stageData:    (*conn).takeData,
	stageTrailer: (*conn).takeTrailer,
}

// consume takes apart what has arrived and asks for more.
func (c *conn) consume() {
	for c.receiving() && stages[c.rx.stage](c) {
	}
	c.receive()
}

func (c *conn) receiving() bool { return !c.closing && !c.draining && !c.rx.paused && !c.congested() }

// receive starts the next Recv, into the command's buffer if much of its data is missing.
func (c *conn) receive() {
	rx := &c.rx
	if rx.underway || !c.receiving() {
		return
	}
	rx.underway = true
	if dst := rx.missing(); len(dst) >= directMin {
		c.sock.Recv(dst, rx.behind(dst), rx.direct)
		return
	}
	rx.w = copy(rx.buf, rx.buf[rx.r:rx.w])
	rx.r = 0
	c.sock.Recv(rx.buf[rx.w:rx.end()], nil, rx.done)
}

// missing is where the rest of the data segment goes.
func (rx *receiver) missing() []byte {
	if rx.stage != stageData {
		return nil
	}
	return rx.dst[min(rx.pos, len(rx.dst)):min(rx.size, len(rx.dst))]
}

// behind is where bytes go that follow those for dst; buf is empty while a data segment is incomplete.
func (rx *receiver) behind(dst []byte) []byte {
	rx.r, rx.w = 0, 0
	if rx.pos+len(dst) < rx.size {
		return nil // what exceeds the buffer is dropped first
	}
	return rx.buf[:peek]
}

// end is up to where buf is filled: initiators repeat themselves, so behind a large data segment only
// the header of the next one is taken, and its data goes straight to its place.
func (rx *receiver) end() int {
	if rx.stage == stageHeader && rx.size >= directMin {
		return min(rx.w+peek, len(rx.buf))
	}
	return len(rx.buf)
}

func (c *conn) received(n int, err error) {
	c.rx.underway = false
	if c.arrived(n, err) {
		c.rx.w += n
		c.consume()
	}
}

func (c *conn) receivedDirect(n int, err error) {
	c.rx.underway = false
	if !c.arrived(n, err) {
		return
	}
	rx := &c.rx
	dst := rx.missing()
	rx.w = max(n-len(dst), 0)
	dst = dst[:n-rx.w]
	rx.sum(dst)
	if rx.pos += len(dst); rx.pos == rx.size {
		rx.stage = stageTrailer
	}
	c.consume()
}

// arrived notes the sign of life, or ends the connection.
func (c *conn) arrived(n int, err error) bool {
	switch {
	case err != nil:
		c.close(err)
	case n == 0:
		c.close(errPeerClosed)
	default:
		c.heard, c.timed.arrived = c.reactor.now, c.reactor.clock.Now()
		c.probing = false
		return !c.closing
	}
	return false
}

// resume goes on after a pause.
func (c *conn) resume() {
	c.rx.paused = false
	c.consume()
}

// enlarge replaces the login's small buffer.
func (rx *receiver) enlarge(n int) {
	buf := make([]byte, n)
	rx.w = copy(buf, rx.buf[rx.r:rx.w])
	rx.r, rx.buf = 0, buf
}

func (c *conn) takeHeader() bool {
	rx := &c.rx
	have := rx.buf[rx.r:rx.w]
	if len(have) < pdu.HeaderLen {
		return false
	}
	end := pdu.HeaderLen + int(have[4])*4
	n := end
	if rx.headerDigest {
		n += pdu.DigestLen
	}
	if len(have) < n {
		return false
	}
	if rx.headerDigest && pdu.GetDigest(have[end:]) != pdu.Digest(have[:end]) {
		c.close(errHeaderDigest) // RFC 7143 §7.7: the lengths cannot be trusted
		return false
	}
	copy(rx.head[:], have)
	rx.ahs = have[pdu.HeaderLen:end]
	rx.r += n
	rx.pos, rx.size, rx.crc = 0, rx.head.DataLen(), 0
	rx.dst, rx.task = nil, nil
	return c.dispatch()
}

func (c *conn) takeData() bool {
	rx := &c.rx
	n := min(rx.w-rx.r, rx.size-rx.pos)
	p := rx.buf[rx.r : rx.r+n]
	if rx.pos < len(rx.dst) {
		copy(rx.dst[rx.pos:], p)
	}
	rx.sum(p)
	rx.r += n
	if rx.pos += n; rx.pos < rx.size {
		return false
	}
	rx.stage = stageTrailer
	return true
}

func (rx *receiver) sum(p []byte) {
	if rx.dataDigest {
		rx.crc = pdu.DigestUpdate(rx.crc, p)
	}
}

func (c *conn) takeTrailer() bool {
	rx := &c.rx
	pad := pdu.Pad(rx.size)
	n := pad
	if rx.dataDigest {
		n += pdu.DigestLen
	}
	have := rx.buf[rx.r:rx.w]
	if len(have) < n {
		return false
	}
	rx.sum(have[:pad])
	rx.r += n
	c.complete(!rx.dataDigest || pdu.GetDigest(have[pad:]) == rx.crc)
	return true
}

// toControl lets the data segment go to the control buffer, whole.
func (rx *receiver) toControl() {
	if cap(rx.control) < rx.size {
		rx.control = make([]byte, rx.size)
	}
	rx.dst = rx.control[:rx.size]
}
