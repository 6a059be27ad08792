package scsi

import "encoding/binary"

const (
	opThirdPartyCopyOut = 0x83
	opThirdPartyCopyIn  = 0x84

	actionExtendedCopy        = 0x00 // LID1
	actionCopyStatus          = 0x00 // LID1
	actionOperatingParameters = 0x03
	actionFailedSegment       = 0x04
)

var xcopyCommands = []row{
	{
		opcode: opThirdPartyCopyOut, action: actionExtendedCopy, name: "EXTENDED COPY(LID1)",
		usage: []byte{opThirdPartyCopyOut, actionExtendedCopy, 0, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0x00},
		dir:   DataOut, length: copyLength, class: classWrite, run: extendedCopy,
	},
	copyResultsRow(actionCopyStatus, 0xFF, "RECEIVE COPY STATUS(LID1)", copyStatus),
	copyResultsRow(actionOperatingParameters, 0, "RECEIVE COPY OPERATING PARAMETERS", copyParameters),
	copyResultsRow(actionFailedSegment, 0xFF, "RECEIVE COPY FAILURE DETAILS(LID1)", copyFailure),
}

func copyLength(cdb *[16]byte) int { return int(be32(cdb[10:])) }

func copyResultsRow(action, identifier byte, name string, run handler) row {
	return row{
		opcode: opThirdPartyCopyIn, action: int(action), name: name,
		usage: []byte{opThirdPartyCopyIn, action, identifier, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0x00},
		dir:   DataIn, length: copyLength, class: classWrite, run: run,
	}
}

// copyResult is the state of one copy, for RECEIVE COPY RESULTS.
type copyResult struct {
	ended    bool
	told     bool // RECEIVE COPY STATUS gave its end
	discard  bool
	status   Status
	sense    []byte // of a copy that failed
	segments int    // completed
	bytes    int64
}

// end records how the command is about to end.
func (r *copyResult) end(c *Command) {
	r.ended, r.status, r.sense = true, c.Status, append([]byte(nil), c.Sense...)
	if c.aborted {
		r.status, r.sense = TaskAborted, nil
	}
}

// copyResults are the copies of one I_T_L nexus by list identifier; used on its lane only.
type copyResults struct {
	byID    map[byte]*copyResult
	running int
}

// admit makes the result of a new copy; it refuses an identifier whose copy is under way.
func (r *copyResults) admit(l *copyList) (*copyResult, verdict) {
	old := r.byID[l.id]
	switch {
	case l.usage != listNone && old != nil && !old.ended:
		return nil, refusal(senseCopyInProgress)
	case r.running >= maxConcurrentCopies:
		return nil, verdict{status: TaskSetFull}
	}
	fresh := &copyResult{discard: l.usage == listDiscard}
	if l.usage == listNone {
		return fresh, verdict{}
	}
	if r.byID == nil {
		r.byID = map[byte]*copyResult{}
	}
	r.byID[l.id] = fresh
	return fresh, verdict{}
}

// find is the copy that an identifier stands for, unless it is to be forgotten.
func (r *copyResults) find(id byte) *copyResult {
	result := r.byID[id]
	if result != nil && result.ended && result.discard {
		delete(r.byID, id)
		return nil
	}
	return result
}

// extendedCopy is EXTENDED COPY(LID1) (SPC-4 §6.4); no parameter list is no error.
func extendedCopy(c *Command) {
	if copyLength(&c.CDB) == 0 {
		c.good()
		return
	}
	list, v := parseCopyList(c.Data, be32(c.CDB[10:]))
	if v.status != Good {
		c.conclude(v)
		return
	}
	c.startCopy(list)
}

func (c *Command) startCopy(list *copyList) {
	result, v := c.it.copies.admit(list)
	if v.status != Good {
		c.conclude(v)
		return
	}
	job := &copyJob{list: list, units: c.target.resolve(list, c.Nexus.initiator), result: result}
	c.then = job.run
	c.it.copies.running++
	if job.buffer = c.borrow(0, copyChunk); job.buffer == nil {
		c.Status = Busy
		job.end(c)
		return
	}
	job.run(c, nil)
}

// copyStatus is RECEIVE COPY STATUS(LID1) (SPC-4 §6.24); the end of a copy is told once.
func copyStatus(c *Command) {
	r := c.it.copies.find(c.CDB[2])
	if r == nil || r.told {
		c.reject(senseInvalidField.at(2))
		return
	}
	r.told = r.ended
	c.reply(r.encodeStatus())
}

func (r *copyResult) encodeStatus() []byte {
	const inProgress, completed, failed = 0, 1, 2
	p := make([]byte, 12)
	p[3] = 8
	switch {
	case !r.ended:
		p[4] = inProgress
	case r.status == Good:
		p[4] = completed
	default:
		p[4] = failed
	}
	binary.BigEndian.PutUint16(p[5:], uint16(r.segments))
	units, count := r.transferCount()
	p[7] = units
	binary.BigEndian.PutUint32(p[8:], count)
	return p
}

// transferCount is the bytes copied in the smallest unit that holds them (SPC-4 table 251).
func (r *copyResult) transferCount() (units byte, count uint32) {
	n := r.bytes
	for n > 0xFFFFFFFF {
		n >>= 10
		units++
	}
	return units, uint32(n)
}

// copyGranularity is the DATA SEGMENT GRANULARITY: log2 of a logical block's bytes.
const copyGranularity = 9

// copyParameters is RECEIVE COPY OPERATING PARAMETERS (SPC-4 §6.22).
func copyParameters(c *Command) {
	const supportsNoListIdentifier = 1
	p := make([]byte, 44, 48)
	p[4] = supportsNoListIdentifier
	binary.BigEndian.PutUint16(p[8:], maxCopyTargets)
	binary.BigEndian.PutUint16(p[10:], maxCopySegments)
	binary.BigEndian.PutUint32(p[12:], maxCopyDescriptors)
	binary.BigEndian.PutUint32(p[16:], maxCopySegmentBytes)
	binary.BigEndian.PutUint16(p[34:], maxConcurrentCopies)
	p[36] = maxConcurrentCopies
	p[37] = copyGranularity
	p = append(p, copySegmentBlocks, copySegmentOffset, copyTargetIdentification)
	p[43] = byte(len(p) - 44)
	binary.BigEndian.PutUint32(p, uint32(len(p)-4))
	c.reply(p)
}

// copyFailure is RECEIVE COPY FAILURE DETAILS(LID1) (SPC-4 §6.21); the details are told once.
func copyFailure(c *Command) {
	r := c.it.copies.find(c.CDB[2])
	if r == nil || !r.ended || r.status == Good {
		c.reject(senseInvalidField.at(2))
		return
	}
	delete(c.it.copies.byID, c.CDB[2])
	p := make([]byte, 60, 60+len(r.sense))
	p[56] = byte(r.status)
	binary.BigEndian.PutUint16(p[58:], uint16(len(r.sense)))
	p = append(p, r.sense...)
	binary.BigEndian.PutUint32(p, uint32(len(p)-4))
	c.reply(p)
}

// vpdThirdPartyCopy is the body of VPD page 8Fh (SPC-4 §7.8.17): supported commands, parameter
// data, supported descriptors, supported CSCD descriptor IDs (none beyond the list's), general
// copy operations.
func (c *Command) vpdThirdPartyCopy() []byte {
	commands := []byte{opThirdPartyCopyOut, 1, actionExtendedCopy, opThirdPartyCopyIn, 3, actionCopyStatus, actionOperatingParameters, actionFailedSegment}
	p := appendCopyDescriptor(nil, 0x0001, append([]byte{byte(len(commands))}, commands...))
	p = appendCopyDescriptor(p, 0x0004, copyParameterData())
	p = appendCopyDescriptor(p, 0x0008, []byte{3, copySegmentBlocks, copySegmentOffset, copyTargetIdentification})
	p = appendCopyDescriptor(p, 0x000C, []byte{0, 0})
	return appendCopyDescriptor(p, 0x8001, copyOperations())
}

func copyParameterData() []byte {
	d := make([]byte, 28)
	binary.BigEndian.PutUint16(d[4:], maxCopyTargets)
	binary.BigEndian.PutUint16(d[6:], maxCopySegments)
	binary.BigEndian.PutUint32(d[8:], maxCopyDescriptors)
	return d
}

func copyOperations() []byte {
	d := make([]byte, 32)
	binary.BigEndian.PutUint32(d[0:], maxConcurrentCopies)
	binary.BigEndian.PutUint32(d[4:], maxConcurrentCopies)
	binary.BigEndian.PutUint32(d[8:], maxCopySegmentBytes)
	d[12] = copyGranularity
	return d
}

// appendCopyDescriptor adds a third-party copy descriptor, padded to four bytes.
func appendCopyDescriptor(p []byte, kind uint16, body []byte) []byte {
	size := (len(body) + 3) &^ 3
	p = binary.BigEndian.AppendUint16(p, kind)
	p = binary.BigEndian.AppendUint16(p, uint16(size))
	return append(append(p, body...), make([]byte, size-len(body))...)
}
