package iscsi

import (
	"bytes"
	"encoding/binary"
	"slices"

	"lunar/iscsi/pdu"
	"lunar/iscsi/scsi"
)

// simCommand is a SCSI command as its initiator sees it.
type simCommand struct {
	conn      *simConn
	id        uint32
	itt, sn   uint32
	lun       int
	lba       int
	immediate bool
	cdb       []byte
	flags     byte // R and W
	attr      byte
	length    int // bytes that the CDB asks to move, or one of the values below
	edtl      int
	want      int    // bytes of Data-Out that the target may ask for
	media     bool   // reads or writes blocks
	data      []byte // Data-Out, edtl bytes
	verdicts  []verdict
	flawed    bool // the transport itself has to refuse it, with one of verdicts

	order   int // of sending, over all connections
	issued  int // the world's clock when it was sent
	settled int // and when its fate was known, 0 until then
	good    bool
	sent    int  // bytes of want that went out
	vanish  bool // a task management function may end it in silence
	claimed bool // its write has reached the disk

	got     []byte // Data-In
	dataSN  uint32
	r2tSN   uint32
	asked   int // up to where Data-Out was sent unasked or asked for
	burst   int // Data-In bytes of the sequence
	waiting int // outstanding R2Ts
}

const (
	lengthOpen    = -1 // the target decides
	lengthCrossed = -2 // the CDB and the PDU are at odds
)

// verdict is a status, with key, ASC and ASCQ where it has sense data.
type verdict struct {
	status scsi.Status
	sense  [3]byte
}

func check(key, asc, ascq byte) verdict { return verdict{scsi.CheckCondition, [3]byte{key, asc, ascq}} }

// What RFC 7143 §11.4.7.2 answers broken Data-Out with, and the device server bad CDBs.
var (
	verdictUnsolicited = check(0xb, 0x0c, 0x0c)
	verdictAmount      = check(0xb, 0x0c, 0x0d)
	verdictCRC         = check(0xb, 0x47, 0x05)
	verdictOpcode      = check(5, 0x20, 0)
	verdictRange       = check(5, 0x21, 0)
	verdictPartBlock   = check(5, 0x0e, 0x03)
	verdictNoUnit      = check(5, 0x25, 0)
)

const simBlocks = 96 // of a LUN

// simKinds makes commands; more than one entry makes a kind more frequent.
var simKinds = []func(*simCommand){
	makeRead, makeRead, makeRead, makeRead, makeWrite, makeWrite, makeWrite, makeWrite, makeWrite, makeWrite,
	makeReady, makeInquiry, makeFlush, makeBeyond, makeUnknown, makeAbortedStatus, makeCrossed,
}

func (cmd *simCommand) rnd(n int) int { return cmd.conn.world.rnd.IntN(n) }

// pickRange takes mostly few blocks, so that commands meet on them.
func (cmd *simCommand) pickRange() (blocks int) {
	blocks = 1 + cmd.rnd(6)
	if cmd.rnd(5) == 0 {
		blocks = 1 + cmd.rnd(simBlocks)
	}
	cmd.lba = cmd.rnd(simBlocks - blocks + 1)
	cmd.length, cmd.media = blocks*512, true
	return blocks
}

// pickEDTL is mostly the CDB's length.
func (cmd *simCommand) pickEDTL() {
	cmd.edtl = cmd.length
	switch cmd.rnd(12) {
	case 0:
		cmd.edtl += 512 * (1 + cmd.rnd(8))
	case 1:
		cmd.edtl = 512 * cmd.rnd(cmd.length/512+1)
	case 2:
		cmd.edtl = cmd.rnd(cmd.length + 1)
	}
}

func makeRead(cmd *simCommand) {
	cmd.cdb, cmd.flags = read10(0, cmd.pickRange()), pdu.FlagRead
	be.PutUint32(cmd.cdb[2:], uint32(cmd.lba))
	cmd.pickEDTL()
}

func makeWrite(cmd *simCommand) {
	cmd.cdb, cmd.flags = write10(0, cmd.pickRange()), pdu.FlagWrite
	be.PutUint32(cmd.cdb[2:], uint32(cmd.lba))
	cmd.pickEDTL()
	cmd.want = min(cmd.length, cmd.edtl)
	cmd.data = simContent(cmd.id, cmd.lba, cmd.edtl)
	if cmd.want%512 != 0 {
		cmd.verdicts = []verdict{verdictPartBlock}
	}
}

func makeReady(cmd *simCommand)   { cmd.cdb = cdb(0) }
func makeFlush(cmd *simCommand)   { cmd.cdb = cdb(0x35) }
func makeUnknown(cmd *simCommand) { cmd.cdb, cmd.verdicts = cdb(0xff), []verdict{verdictOpcode} }

func makeInquiry(cmd *simCommand) {
	cmd.cdb, cmd.flags, cmd.length, cmd.edtl = cdb(0x12, 0, 0, 0, 96), pdu.FlagRead, lengthOpen, 96
}

func makeBeyond(cmd *simCommand) {
	cmd.cdb, cmd.flags, cmd.length, cmd.edtl = read10(simBlocks-1, 2), pdu.FlagRead, 1024, 1024
	cmd.verdicts = []verdict{verdictRange}
}

// makeAbortedStatus is MODE SELECT of the control page: TAS on or off.
func makeAbortedStatus(cmd *simCommand) {
	cmd.cdb, cmd.flags, cmd.length, cmd.edtl, cmd.want = cdb(0x15, 0x10, 0, 0, 16), pdu.FlagWrite, 16, 16, 16
	cmd.data = []byte{0, 0, 0, 0, 0x0a, 10, 2, 0x10, 0, byte(cmd.rnd(2) << 6), 0, 0, 0xff, 0xff, 0, 0}
}

// makeCrossed says one direction in the CDB and another in the PDU: nothing may be moved.
func makeCrossed(cmd *simCommand) {
	if cmd.rnd(2) == 0 {
		makeRead(cmd)
		cmd.flags = pdu.FlagWrite
		cmd.data = bytes.Repeat([]byte{0x5c}, cmd.edtl)
	} else {
		makeWrite(cmd)
		cmd.flags, cmd.data, cmd.want, cmd.verdicts = pdu.FlagRead, nil, 0, nil
	}
	cmd.media, cmd.length = false, lengthCrossed
}

// simContent is what a write leaves in its blocks: who wrote it, where, and bytes that follow from both.
func simContent(id uint32, lba, n int) []byte {
	p := make([]byte, (n+511)&^511)
	for at := 0; at < len(p); at += 512 {
		fillBlock(p[at:at+512], id, lba+at/512)
	}
	return p[:n]
}

func fillBlock(p []byte, id uint32, lba int) {
	if id == 0 {
		clear(p)
		return
	}
	x := uint64(id)<<32 | uint64(lba)
	for at := 0; at < len(p); at += 8 {
		binary.BigEndian.PutUint64(p[at:], x)
		x = x*6364136223846793005 + 1442695040888963407
	}
}

// readable tells whether a read issued at the time since may find w's data in a block: no other write
// began after w's end and was acknowledged before the read. nil is the disk as it was at first.
func (w *world) readable(by *simCommand, lun, block, since int) bool {
	for _, o := range w.history[lun][block] {
		covered := by == nil || by.settled > 0 && by.settled < o.issued
		if o.good && o.settled < since && covered {
			return false
		}
	}
	return by == nil || slices.Contains(w.history[lun][block], by)
}

// checkContent compares data read from a LUN with what was written.
func (w *world) checkContent(p []byte, lun, lba, since int) {
	var want [512]byte
	for at := 0; at < len(p); at += 512 {
		got := p[at:min(at+512, len(p))]
		id := uint32(0)
		if len(got) >= 4 {
			id = be.Uint32(got)
		}
		by := w.writes[id]
		fillBlock(want[:], id, lba+at/512)
		switch {
		case len(got) < 4:
		case !bytes.Equal(got, want[:len(got)]):
			w.fail("DataIntact", "LUN %d block %d: torn or foreign: % x", lun, lba+at/512, got[:min(16, len(got))])
		case id != 0 && by == nil || !w.readable(by, lun, lba+at/512, since):
			w.fail("DataCurrent", "LUN %d block %d holds write %d, which is stale", lun, lba+at/512, id)
		}
	}
}

// claim finds the command whose data a backend write carries: all of it was sent, and its fate is open.
func (w *world) claim(lun int, p []byte, off int64) *simCommand {
	for _, cmd := range w.history[lun][off/512] {
		if !cmd.claimed && cmd.settled == 0 && !cmd.flawed && int64(cmd.lba)*512 == off && cmd.sent == cmd.want &&
			cmd.want == len(p) && bytes.Equal(p, cmd.data[:cmd.want]) {
			cmd.claimed = true
			return cmd
		}
	}
	w.fail("WriteAsSent", "LUN %d block %d, %d bytes: no command under way sent this", lun, off/512, len(p))
	return nil
}

// issue enters the command into the model as it goes out.
func (w *world) issue(cmd *simCommand) {
	w.clock++
	cmd.issued = w.clock
	c := cmd.conn
	c.open = append(c.open, cmd)
	if cmd.media && cmd.want > 0 {
		w.writes[cmd.id] = cmd
		for b := range (cmd.want + 511) / 512 {
			w.history[cmd.lun][cmd.lba+b] = append(w.history[cmd.lun][cmd.lba+b], cmd)
		}
	}
	for _, t := range w.tasks {
		if t.covers(cmd) {
			cmd.vanish = true
		}
	}
}

// settle ends the command in the model.
func (cmd *simCommand) settle(good bool) {
	c := cmd.conn
	c.world.clock++
	cmd.settled, cmd.good = c.world.clock, good
	c.open = slices.DeleteFunc(c.open, func(o *simCommand) bool { return o == cmd })
	if c.world.rnd.IntN(2) == 0 { // else what is left of its Data-Out still comes
		c.dropJobs(cmd)
	}
}

// allowed tells whether the target may answer the command like this.
func (cmd *simCommand) allowed(v verdict) bool {
	w := cmd.conn.world
	switch {
	case v.status == scsi.Good:
		return len(cmd.verdicts) == 0
	case slices.Contains(cmd.verdicts, v):
		return true
	case v.status == scsi.TaskAborted:
		return cmd.vanish
	case v.status == scsi.TaskSetFull:
		return w.tight
	case cmd.flawed || v.status == scsi.Busy:
		return !cmd.flawed && w.tight
	}
	return v.sense[0] == 6 || v == verdictNoUnit && w.remapped || v.sense[0] == 3 && w.wasFaulty
}
