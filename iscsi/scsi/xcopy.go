package scsi

// Copier is what a Backend may implement besides: a copy without moving the data through this
// process, as by reflink within one volume.
type Copier interface {
	// CopyFrom makes the n bytes at dstOff equal to those that src, the Backend of the other unit
	// (or this one), has at srcOff, and then calls done once, on lane. It is called on that lane
	// and does not block it. An error that is or wraps EOPNOTSUPP, EXDEV or EINVAL means that it
	// changed nothing and that the range is to be copied by reading and writing.
	CopyFrom(lane int, src any, srcOff, dstOff, n int64, done func(error))
}

// UnitResolver finds the units that EXTENDED COPY names beyond those of its own target.
type UnitResolver interface {
	// UnitByNAA is the logical unit with the NAA designator, of 8 or 16 bytes; nil if there is
	// none that this initiator port may use. It is called on the lanes and does not block.
	UnitByNAA(initiatorPort string, naa []byte) *LogicalUnit
}

// The limits of EXTENDED COPY, as RECEIVE COPY RESULTS reports them.
const (
	maxCopyTargets      = 16 // CSCD descriptors
	maxCopySegments     = 64
	maxCopyDescriptors  = maxCopyTargets*copyTargetLength + maxCopySegments*copySegmentOffsetLength
	maxCopySegmentBytes = 256 << 20
	maxConcurrentCopies = 32 // of one I_T_L nexus
)

// Descriptor types (SPC-4 tables 124 and 130) and their whole lengths.
const (
	copyTargetIdentification byte = 0xE4
	copySegmentBlocks        byte = 0x02 // block device to block device
	copySegmentOffset        byte = 0x0A // the same with byte offsets

	copyHeaderLength        = 16
	copyTargetLength        = 32
	copySegmentBlocksLength = 28
	copySegmentOffsetLength = 32
)

var (
	senseTooManyTargets   = sense{key: illegalRequest, code: 0x2606}
	senseUnknownTarget    = sense{key: illegalRequest, code: 0x2607}
	senseTooManySegments  = sense{key: illegalRequest, code: 0x2608}
	senseUnknownSegment   = sense{key: illegalRequest, code: 0x2609}
	senseInlineData       = sense{key: illegalRequest, code: 0x260B}
	senseCopyInProgress   = sense{key: illegalRequest, code: 0x0016}
	senseCopyAborted      = sense{key: copyAborted, code: 0x0000}
	senseCopyUnreachable  = sense{key: copyAborted, code: 0x0D02}
	senseCopyThirdParty   = sense{key: copyAborted, code: 0x0D01}
	senseCopyDeviceType   = sense{key: copyAborted, code: 0x0D03}
	senseCopyInexact      = sense{key: copyAborted, code: 0x260A}
	senseCopyWriteProtect = sense{key: copyAborted, code: 0x2700}
)

// copyTarget is a CSCD descriptor of type E4h: a logical unit by its NAA designator.
type copyTarget struct {
	naa  []byte // nil: a designator that names none of our units
	disk bool   // peripheral device type 00h
}

// copySegment is a segment descriptor, its range in bytes.
type copySegment struct {
	source, destination  int // index of a copyTarget
	sourceLBA, targetLBA uint64
	sourceByte, destByte uint16 // offsets into the first blocks
	bytes                int64
}

// List identifier usage (SPC-4 §6.4.3.2).
const (
	listHold    = 0 // the copy status is kept until it is read
	listDiscard = 2 // it is dropped at the end of the copy
	listNone    = 3 // the list has no identifier
)

// copyList is the parameter list of EXTENDED COPY(LID1).
type copyList struct {
	id       byte
	usage    byte
	targets  []copyTarget
	segments []copySegment
}

// parseCopyList reads the parameter list of EXTENDED COPY(LID1) (SPC-4 §6.4.3). list is what
// arrived, length the PARAMETER LIST LENGTH.
func parseCopyList(list []byte, length uint32) (*copyList, verdict) {
	if len(list) < copyHeaderLength || uint64(length) != uint64(len(list)) {
		return nil, refusal(senseParameterLength)
	}
	targets, segments, inline := int64(be16(list[2:])), int64(be32(list[8:])), int64(be32(list[12:]))
	switch {
	case targets+segments > maxCopyDescriptors, copyHeaderLength+targets+segments+inline > int64(len(list)):
		return nil, refusal(senseParameterLength)
	case inline > 0:
		return nil, refusal(senseInlineData.inList(12))
	}
	l := &copyList{id: list[0], usage: list[1] >> 3 & 3}
	if l.usage == 1 || l.usage == listNone && l.id != 0 {
		return nil, refusal(senseInvalidParameter.inListBit(1, 4))
	}
	if v := l.parseTargets(list[copyHeaderLength:][:targets]); v.status != Good {
		return nil, v
	}
	v := l.parseSegments(list[copyHeaderLength+targets:][:segments], copyHeaderLength+int(targets))
	return l, v
}

func (l *copyList) parseTargets(p []byte) verdict {
	switch {
	case len(p)%copyTargetLength != 0:
		return refusal(senseParameterLength)
	case len(p)/copyTargetLength > maxCopyTargets:
		return refusal(senseTooManyTargets)
	}
	for at := 0; at < len(p); at += copyTargetLength {
		if p[at] != copyTargetIdentification {
			return refusal(senseUnknownTarget.inList(copyHeaderLength + at))
		}
		t, ok := parseCopyTarget(p[at : at+copyTargetLength])
		if !ok {
			return refusal(senseInvalidParameter.inList(copyHeaderLength + at))
		}
		l.targets = append(l.targets, t)
	}
	return verdict{}
}

// parseCopyTarget reads an identification CSCD descriptor (SPC-4 §6.4.5.6); the LU ID TYPE field
// is ignored there.
func parseCopyTarget(d []byte) (t copyTarget, ok bool) {
	const designatorBytes = 20
	size := int(d[7])
	block := be24(d[29:])
	if size > designatorBytes || block != 0 && block != blockSize {
		return t, false
	}
	t.disk = d[1]&0x1F == 0
	if d[4]&0x0F == codeBinary && d[5]&0x3F == designatorNAA && (size == 8 || size == 16) {
		t.naa = d[8 : 8+size]
	}
	return t, true
}

// designatorNAA is DESIGNATOR TYPE NAA with ASSOCIATION logical unit.
const designatorNAA = 0x03

// copySegmentKinds has the segment descriptors that are supported.
var copySegmentKinds = map[byte]struct {
	length int
	parse  func(d []byte) copySegment
}{
	copySegmentBlocks: {copySegmentBlocksLength, parseCopyBlocks},
	copySegmentOffset: {copySegmentOffsetLength, parseCopyOffset},
}

// parseSegments reads p, which stands at the byte base of the parameter list.
func (l *copyList) parseSegments(p []byte, base int) verdict {
	for at := 0; at < len(p); {
		kind, ok := copySegmentKinds[p[at]]
		switch {
		case len(l.segments) == maxCopySegments:
			return refusal(senseTooManySegments)
		case !ok:
			return refusal(senseUnknownSegment.inList(base + at))
		case len(p)-at < kind.length:
			return refusal(senseParameterLength)
		case be16(p[at+2:]) != kind.length-4:
			return refusal(senseInvalidParameter.inList(base + at + 2))
		}
		l.segments = append(l.segments, kind.parse(p[at:at+kind.length]))
		at += kind.length
	}
	return verdict{}
}

func parseCopyBlocks(d []byte) copySegment {
	s := parseCopyEnds(d)
	s.bytes = int64(be16(d[10:])) * blockSize
	return s
}

func parseCopyOffset(d []byte) copySegment {
	s := parseCopyEnds(d)
	s.bytes = int64(be32(d[8:]))
	s.sourceByte, s.destByte = uint16(be16(d[28:])), uint16(be16(d[30:]))
	return s
}

func parseCopyEnds(d []byte) copySegment {
	return copySegment{source: be16(d[4:]), destination: be16(d[6:]), sourceLBA: be64(d[12:]), targetLBA: be64(d[20:])}
}
