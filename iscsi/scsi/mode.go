package scsi

import "encoding/binary"

// modeCommands are MODE SENSE and MODE SELECT (SPC-4 §6.11 to §6.14).
var modeCommands = []row{
	{
		opcode: 0x1A, action: noServiceAction, name: "MODE SENSE(6)",
		usage: []byte{0x1A, 0x08, 0xFF, 0xFF, 0xFF, 0x00},
		dir:   DataIn, length: func(cdb *[16]byte) int { return int(cdb[4]) },
		class: classRead, flags: passUnready, run: modeSense,
	},
	{
		opcode: 0x5A, action: noServiceAction, name: "MODE SENSE(10)",
		usage: []byte{0x5A, 0x18, 0xFF, 0xFF, 0, 0, 0, 0xFF, 0xFF, 0x00},
		dir:   DataIn, length: func(cdb *[16]byte) int { return be16(cdb[7:]) },
		class: classRead, flags: passUnready, run: modeSense,
	},
	{
		opcode: 0x15, action: noServiceAction, name: "MODE SELECT(6)",
		usage: []byte{0x15, 0x11, 0, 0, 0xFF, 0x00},
		dir:   DataOut, length: func(cdb *[16]byte) int { return int(cdb[4]) },
		class: classWrite, flags: passUnready, run: modeSelect,
	},
	{
		opcode: 0x55, action: noServiceAction, name: "MODE SELECT(10)",
		usage: []byte{0x55, 0x11, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0x00},
		dir:   DataOut, length: func(cdb *[16]byte) int { return be16(cdb[7:]) },
		class: classWrite, flags: passUnready, run: modeSelect,
	},
}

// modeHeader is the mode parameter header, as MODE SENSE(6) or (10) has it.
type modeHeader struct {
	long    bool // (10): eight bytes, else four
	longLBA bool // block descriptor of 16 bytes
}

func (h modeHeader) size() int {
	if h.long {
		return 8
	}
	return 4
}

// PAGE CONTROL values of MODE SENSE.
const (
	controlCurrent    = 0
	controlChangeable = 1
	controlDefault    = 2
	controlSaved      = 3
)

func modeSense(c *Command) {
	h := modeHeader{long: c.CDB[0] == 0x5A}
	h.longLBA = h.long && c.CDB[1]&0x10 != 0
	control, page, sub := c.CDB[2]>>6, c.CDB[2]&0x3F, c.CDB[3]
	if control == controlSaved {
		c.reject(senseSavingNotSupported)
		return
	}
	pages := c.lu.modePagesFor(control, page, sub)
	if pages == nil {
		c.reject(senseInvalidField.atBit(2, 5))
		return
	}
	var descriptor []byte
	if c.CDB[1]&0x08 == 0 {
		descriptor = c.lu.blockDescriptor(h.longLBA)
	}
	c.reply(c.lu.modeData(h, descriptor, pages))
}

// modeData joins the header, the block descriptor and the pages.
func (lu *LogicalUnit) modeData(h modeHeader, descriptor, pages []byte) []byte {
	data := make([]byte, h.size(), h.size()+len(descriptor)+len(pages))
	specific := byte(0x10) // DPOFUA
	if lu.opts.ReadOnly || lu.modes.Load().softwareProtect {
		specific |= 0x80 // WP
	}
	total := len(data) + len(descriptor) + len(pages)
	if h.long {
		binary.BigEndian.PutUint16(data[0:], uint16(total-2))
		data[3] = specific
		if h.longLBA {
			data[4] = 1
		}
		binary.BigEndian.PutUint16(data[6:], uint16(len(descriptor)))
	} else {
		data[0], data[2], data[3] = byte(total-1), specific, byte(len(descriptor))
	}
	return append(append(data, descriptor...), pages...)
}

// blockDescriptor is the short or the long LBA mode parameter block descriptor (SBC-3 §6.5.2).
func (lu *LogicalUnit) blockDescriptor(long bool) []byte {
	if long {
		d := make([]byte, 16)
		binary.BigEndian.PutUint64(d[0:], lu.blocks())
		binary.BigEndian.PutUint32(d[12:], blockSize)
		return d
	}
	d := make([]byte, 8)
	binary.BigEndian.PutUint32(d[0:], uint32(min(lu.blocks(), 0xFFFFFFFF)))
	binary.BigEndian.PutUint16(d[6:], blockSize)
	return d
}

// modeSelect changes the mode parameters that are changeable. Nothing is saved: SP is refused.
func modeSelect(c *Command) {
	switch {
	case c.CDB[1]&0x01 != 0:
		c.reject(senseInvalidField.atBit(1, 0))
	case c.CDB[1]&0x10 == 0:
		c.reject(senseInvalidField.atBit(1, 4)) // PF 0: vendor-specific pages
	case c.Length == 0:
		c.good()
	case len(c.Data) < c.Length:
		c.reject(senseParameterLength)
	default:
		c.modeSelect(modeHeader{long: c.CDB[0] == 0x55})
	}
}

func (c *Command) modeSelect(h modeHeader) {
	start, s, ok := c.lu.checkDescriptor(h, c.Data)
	if !ok {
		c.reject(s)
		return
	}
	change, s, ok := c.lu.parseModes(c.Data, start)
	if !ok {
		c.reject(s)
		return
	}
	if c.lu.modes.Load().writeCache && !change.state.writeCache {
		c.private = change
		c.then = modeFlushed // what is in the cache was acknowledged: it has to be durable first
		c.lu.backend.Flush(c.Lane, c.ioDone)
		return
	}
	c.setModes(change)
}

func modeFlushed(c *Command, err error) {
	if err != nil {
		flushed(c, err)
		return
	}
	change, ok := c.private.(modeChange)
	if !ok {
		c.reject(senseTargetFailure)
		return
	}
	c.setModes(change)
}

func (c *Command) setModes(change modeChange) {
	for _, k := range change.kept {
		if field, ok := k.page.apply(c.lu, k.data); !ok {
			c.reject(senseInvalidParameter.inList(k.at + field))
			return
		}
	}
	old := c.lu.modes.Swap(&change.state)
	if *old != change.state || len(change.kept) > 0 {
		c.lu.attention(attnModeChanged, except(c.it))
	}
	c.good()
}

// checkDescriptor checks the header and the block descriptor, which may only repeat what is; start
// is where the pages begin.
func (lu *LogicalUnit) checkDescriptor(h modeHeader, list []byte) (start int, s sense, ok bool) {
	if len(list) < h.size() {
		return 0, senseParameterLength, false
	}
	size, long := int(list[3]), false
	if h.long {
		size, long = be16(list[6:]), list[4]&1 != 0
	}
	start = h.size() + size
	switch {
	case size == 0:
		return start, s, true
	case long && size != 16, !long && size != 8:
		return 0, senseInvalidParameter.inList(h.size() - 1), false
	case len(list) < start:
		return 0, senseParameterLength, false
	}
	s, ok = lu.checkBlocks(list[h.size():start], h.size(), long)
	return start, s, ok
}

func (lu *LogicalUnit) checkBlocks(d []byte, at int, long bool) (sense, bool) {
	count, most, length := uint64(be32(d)), uint64(0xFFFFFFFF), be24(d[5:])
	if long {
		count, most, length = be64(d), 1<<64-1, int(be32(d[12:]))
	}
	switch {
	case length != blockSize && length != 0:
		return senseInvalidParameter.inList(at + len(d) - 3), false
	case count != 0 && count != most && count != lu.blocks():
		return senseInvalidParameter.inList(at), false
	}
	return senseNone, true
}
