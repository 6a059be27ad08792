package trace

// Stage is a part of a command's way. Each command passes some of them; the times of these add up to its own.
type Stage uint8

// The stages, in their order.
const (
	Decode   Stage = iota // from the arrival of its last header bytes until it is decoded
	Data                  // until its Data-Out and a buffer are there, and its turn has come
	Layout                // until its I/O is made by the layout; a recall or a pause is waited for here
	Queue                 // until the kernel has its I/O
	Device                // until the completion of its last I/O is reaped
	Redirect              // through the coordinator
	Execute               // what the device server did besides
	Answer                // until its answer is in the socket
	NumStages
)

var stages = [NumStages]struct{ name, about string }{
	Decode:   {"decode", "arrived until decoded"},
	Data:     {"data", "decoded until its data had come from the initiator"},
	Layout:   {"layout", "until its I/O was made by the layout; waits for recalls and pauses"},
	Queue:    {"queue", "until the kernel had its I/O"},
	Device:   {"device", "submitted until completed"},
	Redirect: {"redirect", "sent to the coordinator until answered"},
	Execute:  {"execute", "device server besides I/O"},
	Answer:   {"answer", "completed until its answer was in the socket"},
}

// String is the stage's name.
func (s Stage) String() string { return stages[s].name }

// About says in a few words from when until when the stage lasts.
func (s Stage) About() string { return stages[s].about }

// Op is a kind of command.
type Op uint8

// The kinds of commands.
const (
	Read Op = iota
	Write
	Other
	NumOps
)

// String is the kind's name.
func (o Op) String() string { return [NumOps]string{"read", "write", "other"}[o] }

// ops tells reads and writes by their operation code; simple are those with one I/O.
var ops = func() (table [256]struct {
	kind   Op
	simple bool
}) {
	for i := range table {
		table[i].kind = Other
	}
	for _, code := range [...]byte{0x08, 0x28, 0xA8, 0x88} { // READ
		table[code].kind, table[code].simple = Read, true
	}
	for _, code := range [...]byte{0x0A, 0x2A, 0xAA, 0x8A} { // WRITE
		table[code].kind, table[code].simple = Write, true
	}
	for _, code := range [...]byte{0x2E, 0xAE, 0x8E, 0x89, 0x41, 0x93} { // WRITE AND VERIFY, COMPARE AND WRITE, WRITE SAME
		table[code].kind = Write
	}
	return table
}()

// command is one that is under way. Times are in ns of the Tracer's clock; 0 is not yet.
type command struct {
	series *series
	next   uint32 // free list

	bytes  int32
	opcode byte
	status uint8
	cdb    [16]byte

	received, decoded, started, queued, entered, completed, redirected, executed int64
}

// passed is the time that a command spent in each stage; has tells which it passed.
type passed struct {
	took [NumStages]int64
	has  uint8 // bit s: stage s
	at   int64
}

// until ends stage s at time t, if t is known; time does not run backwards.
func (p *passed) until(s Stage, t int64) {
	if t == 0 {
		return
	}
	t = max(t, p.at)
	p.took[s], p.at = t-p.at, t
	p.has |= 1 << s
}

// split says how a command that was answered at now spent its time. What it did not pass is nothing.
func (c *command) split(p *passed, now int64) {
	p.at = c.received
	p.until(Decode, c.decoded)
	if c.decoded == 0 {
		p.until(Decode, c.started)
	} else {
		p.until(Data, c.started)
	}
	switch {
	case c.queued != 0:
		p.until(Layout, c.queued)
		p.until(Queue, c.entered)
		p.until(Device, c.completed)
	case c.redirected != 0:
		p.until(Layout, c.redirected)
	}
	if c.redirected != 0 {
		p.until(Redirect, c.executed)
	} else {
		p.until(Execute, c.executed)
	}
	p.until(Answer, now)
}
