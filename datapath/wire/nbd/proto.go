package nbd

import (
	"encoding/binary"
	"errors"
	"fmt"
)

var be = binary.BigEndian

// ErrProtocol means that the other side does not keep to the protocol; the connection is closed.
var ErrProtocol = errors.New("nbd: protocol violation")

func violation(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrProtocol, fmt.Sprintf(format, args...))
}

// Magic numbers.
const (
	magicInit       = 0x4e42444d41474943 // "NBDMAGIC"
	magicOption     = 0x49484156454f5054 // "IHAVEOPT"
	magicOptReply   = 0x0003e889045565a9
	magicRequest    = 0x25609513
	magicSimple     = 0x67446698
	magicStructured = 0x668e33ef
)

// Handshake flags; the client's have the same bits.
const (
	flagFixedNewstyle = 1 << 0
	flagNoZeroes      = 1 << 1
)

// Options.
const (
	optExportName      = 1
	optAbort           = 2
	optList            = 3
	optStartTLS        = 5
	optInfo            = 6
	optGo              = 7
	optStructuredReply = 8
	optListMeta        = 9
	optSetMeta         = 10
)

// Option replies.
const (
	repAck      = 1
	repServer   = 2
	repInfo     = 3
	repMeta     = 4
	repError    = 1 << 31
	repUnsup    = repError + 1
	repPolicy   = repError + 2
	repInvalid  = repError + 3
	repPlatform = repError + 4
	repTLSReqd  = repError + 5
	repUnknown  = repError + 6
	repShutdown = repError + 7
	repTooBig   = repError + 9
)

// Information types.
const (
	infoExport      = 0
	infoName        = 1
	infoDescription = 2
	infoBlockSize   = 3
)

// Flags are an export's transmission flags.
type Flags uint16

// Transmission flags.
const (
	HasFlags        Flags = 1 << 0
	ReadOnly        Flags = 1 << 1
	SendFlush       Flags = 1 << 2
	SendFUA         Flags = 1 << 3
	SendTrim        Flags = 1 << 5
	SendWriteZeroes Flags = 1 << 6
	SendDF          Flags = 1 << 7
	CanMultiConn    Flags = 1 << 8
	SendCache       Flags = 1 << 10
	SendFastZero    Flags = 1 << 11
)

// Commands.
const (
	cmdRead        = 0
	cmdWrite       = 1
	cmdDisc        = 2
	cmdFlush       = 3
	cmdTrim        = 4
	cmdCache       = 5
	cmdWriteZeroes = 6
	cmdBlockStatus = 7
)

// Command flags.
const (
	cmdFUA      = 1 << 0
	cmdNoHole   = 1 << 1
	cmdDF       = 1 << 2
	cmdReqOne   = 1 << 3
	cmdFastZero = 1 << 4
)

// Structured reply chunks.
const (
	chunkDone        = 1 << 0 // flag
	chunkNone        = 0
	chunkData        = 1
	chunkHole        = 2
	chunkStatus      = 5
	chunkErrorBit    = 1 << 15
	chunkError       = chunkErrorBit + 1
	chunkErrorOffset = chunkErrorBit + 2
)

// Sizes, in bytes.
const (
	requestSize    = 28
	simpleSize     = 16
	structuredSize = 20
	optionSize     = 16
	optReplySize   = 20
	maxString      = 4096
	maxOption      = 64 << 10 // of an option's data that is looked at
	maxSkip        = 1 << 20  // of an option's data that is read over
	maxReply       = 64 << 10 // of an option reply's data
	// MaxPayload is the most that one READ or WRITE moves: what the standard asks of everyone.
	MaxPayload = 32 << 20
)

// The metadata context that every export has, and its states.
const (
	metaAllocation = "base:allocation"
	stateHole      = 1 << 0
	stateZero      = 1 << 1
)

// request is the header of a request.
type request struct {
	flags, command uint16
	cookie, off    uint64
	length         uint32
}

func (r request) put(b []byte) {
	be.PutUint32(b, magicRequest)
	be.PutUint16(b[4:], r.flags)
	be.PutUint16(b[6:], r.command)
	be.PutUint64(b[8:], r.cookie)
	be.PutUint64(b[16:], r.off)
	be.PutUint32(b[24:], r.length)
}

func parseRequest(b []byte) (r request, err error) {
	if magic := be.Uint32(b); magic != magicRequest {
		return r, violation("a request begins with %#x", magic)
	}
	return request{flags: be.Uint16(b[4:]), command: be.Uint16(b[6:]), cookie: be.Uint64(b[8:]),
		off: be.Uint64(b[16:]), length: be.Uint32(b[24:])}, nil
}

func putSimple(b []byte, errno Errno, cookie uint64) {
	be.PutUint32(b, magicSimple)
	be.PutUint32(b[4:], uint32(errno))
	be.PutUint64(b[8:], cookie)
}

// chunk is the header of a structured reply's chunk.
type chunk struct {
	flags, kind uint16
	cookie      uint64
	length      uint32
}

func (c chunk) put(b []byte) {
	be.PutUint32(b, magicStructured)
	be.PutUint16(b[4:], c.flags)
	be.PutUint16(b[6:], c.kind)
	be.PutUint64(b[8:], c.cookie)
	be.PutUint32(b[16:], c.length)
}

// parseChunk reads what follows the magic number.
func parseChunk(b []byte) chunk {
	return chunk{flags: be.Uint16(b), kind: be.Uint16(b[2:]), cookie: be.Uint64(b[4:]), length: be.Uint32(b[12:])}
}

// errorChunk is a final chunk with an error and a message for people.
func errorChunk(cookie uint64, errno Errno, message string) []byte {
	message = message[:min(len(message), maxString)]
	b := make([]byte, structuredSize+6+len(message))
	chunk{chunkDone, chunkError, cookie, uint32(6 + len(message))}.put(b)
	be.PutUint32(b[structuredSize:], uint32(errno))
	be.PutUint16(b[structuredSize+4:], uint16(len(message)))
	copy(b[structuredSize+6:], message)
	return b
}

// parseError reads the payload of an error chunk of any kind.
func parseError(p []byte) (Errno, string, error) {
	if len(p) < 6 {
		return 0, "", violation("an error chunk of %d bytes", len(p))
	}
	n := int(be.Uint16(p[4:]))
	if n > len(p)-6 || n > maxString {
		return 0, "", violation("a message of %d bytes in an error chunk of %d", n, len(p))
	}
	errno := Errno(be.Uint32(p))
	if errno == 0 {
		return 0, "", violation("an error chunk without an error")
	}
	return errno, string(p[6 : 6+n]), nil
}
