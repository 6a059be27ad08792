package scsi

import (
	"bytes"
	"errors"
	"syscall"
)

// copyChunk bounds one read or write of a copy that is not offloaded.
const copyChunk = MaxData

// copyPhase is what a copy's backend call in flight does.
type copyPhase uint8

const (
	copyNext    copyPhase = iota // nothing in flight
	copyOffload                  // Copier.CopyFrom of the rest of the segment
	copyRead
	copyWrite
	copyUnmap // the source has a hole
)

// copyJob is one EXTENDED COPY under way: its segments one after the other, in bounded steps.
type copyJob struct {
	list   *copyList
	units  []*LogicalUnit // by CSCD descriptor; nil: not reachable
	result *copyResult
	buffer []byte

	segment  int // index of the present one
	started  bool
	source   *LogicalUnit
	target   *LogicalUnit
	from, to int64 // present place
	left     int64
	chunk    int64
	phase    copyPhase
}

// begin prepares the present segment; v is not GOOD if it cannot be copied.
func (j *copyJob) begin(c *Command) verdict {
	s := &j.list.segments[j.segment]
	j.source, j.target = j.unit(s.source), j.unit(s.destination)
	if j.source == nil || j.target == nil {
		return refusal(senseCopyUnreachable)
	}
	if v := j.admit(c, s); v.status != Good {
		return v
	}
	j.left, j.chunk = s.bytes, 0
	var ok, fits bool
	j.from, ok = j.source.place(s.sourceLBA, s.sourceByte, s.bytes)
	j.to, fits = j.target.place(s.targetLBA, s.destByte, s.bytes)
	switch {
	case s.bytes%blockSize != 0 || s.sourceByte%blockSize != 0 || s.destByte%blockSize != 0:
		return refusal(senseCopyInexact)
	case !ok || !fits || s.bytes > maxCopySegmentBytes:
		return refusal(senseCopyAborted)
	}
	return verdict{}
}

func (j *copyJob) unit(index int) *LogicalUnit {
	if index >= len(j.units) {
		return nil
	}
	return j.units[index]
}

// admit checks what a READ of the source and a WRITE of the destination by the same initiator
// would meet.
func (j *copyJob) admit(c *Command, s *copySegment) verdict {
	initiator := c.Nexus.initiator
	switch {
	case !j.list.targets[s.source].disk || !j.list.targets[s.destination].disk:
		return refusal(senseCopyDeviceType)
	case !j.source.open(c, initiator, classRead) || !j.target.open(c, initiator, classWrite):
		return refusal(senseCopyThirdParty)
	case j.target.opts.ReadOnly || j.target.modes.Load().softwareProtect:
		return refusal(senseCopyWriteProtect)
	}
	return verdict{}
}

// open tells that the copy manager may use the unit for the initiator port. The unit that got the
// command was checked by the I_T nexus that sent it.
func (lu *LogicalUnit) open(c *Command, initiator string, class reservationClass) bool {
	if _, ready := lu.ready(); !ready {
		return false
	}
	if lu == c.lu {
		return !lu.reservations.load().conflicts(c.it.id(), class, false)
	}
	return !lu.reservations.load().conflictsPort(initiator, class)
}

// place is the byte offset of n bytes at an LBA and a byte behind it; ok if they lie in the unit.
func (lu *LogicalUnit) place(lba uint64, within uint16, n int64) (offset int64, ok bool) {
	blocks := lu.blocks()
	if lba > blocks {
		return 0, false
	}
	offset = int64(lba)*blockSize + int64(within)
	return offset, n <= int64(blocks)*blockSize-offset
}

// step issues the next backend call, or returns false when the copy has ended.
func (j *copyJob) step(c *Command) bool {
	for !j.started || j.left == 0 {
		if j.started {
			j.segment++
			j.result.segments = j.segment
		}
		if j.segment == len(j.list.segments) {
			return false
		}
		j.started = true
		if v := j.begin(c); v.status != Good {
			c.fail(v.sense.with(uint64(j.segment)))
			return false
		}
		if j.offload(c) {
			return true
		}
	}
	return j.move(c)
}

func (j *copyJob) offload(c *Command) bool {
	copier, ok := j.target.backend.(Copier)
	if !ok || j.left == 0 {
		return false
	}
	j.phase, j.chunk = copyOffload, j.left
	copier.CopyFrom(c.Lane, j.source.backend, j.from, j.to, j.left, c.ioDone)
	return true
}

// move copies a chunk by reading and writing; a hole of the source becomes one of a thin unit.
func (j *copyJob) move(c *Command) bool {
	if j.phase == copyRead {
		j.phase = copyWrite
		fua := !j.target.modes.Load().writeCache
		j.target.backend.Write(c.Lane, j.buffer[:j.chunk], j.to, fua, c.ioDone)
		return true
	}
	mapped, n := j.source.backend.Mapped(j.from)
	j.chunk = min(n&^(blockSize-1), j.left)
	if !mapped && j.target.opts.Thin && j.chunk > 0 {
		j.phase = copyUnmap
		j.target.backend.Unmap(c.Lane, j.to, j.chunk, c.ioDone)
		return true
	}
	if j.chunk == 0 || j.chunk > copyChunk || !mapped {
		j.chunk = min(copyChunk, j.left)
	}
	j.phase = copyRead
	j.source.backend.Read(c.Lane, j.buffer[:j.chunk], j.from, c.ioDone)
	return true
}

// done takes the result of the backend call in flight; false: the copy failed.
func (j *copyJob) done(c *Command, err error) bool {
	if j.phase == copyOffload && notOffloaded(err) {
		j.phase = copyNext
		return true
	}
	if err != nil {
		j.failed(c, err)
		return false
	}
	if j.phase == copyRead || j.phase == copyNext {
		return true
	}
	j.phase = copyNext
	j.from, j.to, j.left = j.from+j.chunk, j.to+j.chunk, j.left-j.chunk
	j.result.bytes += j.chunk
	return true
}

func notOffloaded(err error) bool {
	return errors.Is(err, syscall.EOPNOTSUPP) || errors.Is(err, syscall.EXDEV) || errors.Is(err, syscall.EINVAL)
}

// failed tells a full volume as a WRITE would, so that the hypervisor pauses the guest; every
// other error is COPY ABORTED, THIRD PARTY DEVICE FAILURE with the segment's number.
func (j *copyJob) failed(c *Command, err error) {
	status, s := backendFailure(err, j.phase != copyRead)
	switch {
	case status != CheckCondition:
		c.Status = status
	case s == senseSpaceExhausted && j.phase != copyRead:
		c.fail(s)
	default:
		c.fail(senseCopyThirdParty.with(uint64(j.segment)))
	}
}

// run drives the job; err is the result of the call before. Backends that complete at once do
// not deepen the stack.
func (j *copyJob) run(c *Command, err error) {
	for j.done(c, err) {
		c.stepping, c.stepped = true, false
		more := !c.aborted && j.step(c)
		c.stepping = false
		if !more {
			break
		}
		if !c.stepped {
			return
		}
		err = c.stepErr
	}
	j.end(c)
}

func (j *copyJob) end(c *Command) {
	j.result.end(c)
	c.it.copies.running--
	c.complete()
}

// resolve finds the units of the CSCD descriptors: of this target first, then by the resolver.
func (t *Target) resolve(l *copyList, initiator string) []*LogicalUnit {
	units := make([]*LogicalUnit, len(l.targets))
	for i, e := range l.targets {
		if e.naa != nil {
			units[i] = t.unitByNAA(initiator, e.naa)
		}
	}
	return units
}

func (t *Target) unitByNAA(initiator string, naa []byte) *LogicalUnit {
	for _, m := range t.luns.Load().mappings() {
		if bytes.Equal(m.lu.opts.NAA, naa) {
			return m.lu
		}
	}
	if t.opts.Units == nil {
		return nil
	}
	return t.opts.Units.UnitByNAA(initiator, naa)
}
