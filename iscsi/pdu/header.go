package pdu

import "encoding/binary"

// Sizes of RFC 7143 §11.2, in bytes.
const (
	HeaderLen             = 48
	DigestLen             = 4
	MaxAHSLen             = 255 * 4
	MaxDataLen            = 1<<24 - 1
	DefaultMaxData        = 8192 // MaxRecvDataSegmentLength before it is declared, §13.12
	NoTag          uint32 = 0xffffffff
)

// Bits of byte 1 that most opcodes share.
const (
	FlagFinal    = 0x80
	FlagContinue = 0x40
)

const immediateBit = 0x40

var be = binary.BigEndian

// Header is a basic header segment as it lies on the wire, RFC 7143 §11.2.1. The views
// (SCSICommand, LoginRequest, …) name the fields that depend on the opcode.
type Header [HeaderLen]byte

// Reset clears the header and sets the opcode and byte 1.
func (h *Header) Reset(op Opcode, flags byte) {
	*h = Header{}
	h[0], h[1] = byte(op), flags
}

// Opcode is the operation code without the immediate bit.
func (h *Header) Opcode() Opcode { return Opcode(h[0] & 0x3f) }

// Immediate tells whether the PDU is marked for immediate delivery.
func (h *Header) Immediate() bool { return h[0]&immediateBit != 0 }

// SetImmediate marks the PDU for immediate delivery.
func (h *Header) SetImmediate() { h[0] |= immediateBit }

// Flags is byte 1.
func (h *Header) Flags() byte { return h[1] }

// SetFlags replaces byte 1.
func (h *Header) SetFlags(f byte) { h[1] = f }

// Final is the F bit; in a Login Request the T bit has its place.
func (h *Header) Final() bool { return h[1]&FlagFinal != 0 }

// Continue is the C bit of Login and Text PDUs.
func (h *Header) Continue() bool { return h[1]&FlagContinue != 0 }

// AHSLen is TotalAHSLength in bytes, 0 to 1,020.
func (h *Header) AHSLen() int { return int(h[4]) * 4 }

// SetAHSLen sets TotalAHSLength from n bytes, a multiple of 4.
func (h *Header) SetAHSLen(n int) { h[4] = byte(n / 4) }

// DataLen is DataSegmentLength in bytes, padding not counted.
func (h *Header) DataLen() int { return int(h[5])<<16 | int(h[6])<<8 | int(h[7]) }

// SetDataLen sets DataSegmentLength.
func (h *Header) SetDataLen(n int) { h[5], h[6], h[7] = byte(n>>16), byte(n>>8), byte(n) }

// LUN is the eight bytes of the logical unit number, or of the field that an opcode has in its place.
func (h *Header) LUN() uint64 { return be.Uint64(h[8:]) }

// SetLUN sets the logical unit number.
func (h *Header) SetLUN(lun uint64) { be.PutUint64(h[8:], lun) }

// ITT is the initiator task tag.
func (h *Header) ITT() uint32 { return be.Uint32(h[16:]) }

// SetITT sets the initiator task tag.
func (h *Header) SetITT(tag uint32) { be.PutUint32(h[16:], tag) }

// TTT is the target transfer tag of the opcodes that have one.
func (h *Header) TTT() uint32 { return be.Uint32(h[20:]) }

// SetTTT sets the target transfer tag.
func (h *Header) SetTTT(tag uint32) { be.PutUint32(h[20:], tag) }

// CmdSN is a request's command sequence number.
func (h *Header) CmdSN() uint32 { return be.Uint32(h[24:]) }

// SetCmdSN sets a request's command sequence number.
func (h *Header) SetCmdSN(sn uint32) { be.PutUint32(h[24:], sn) }

// ExpStatSN is a request's acknowledgement of the target's status sequence.
func (h *Header) ExpStatSN() uint32 { return be.Uint32(h[28:]) }

// SetExpStatSN sets a request's ExpStatSN.
func (h *Header) SetExpStatSN(sn uint32) { be.PutUint32(h[28:], sn) }

// StatSN is a response's status sequence number.
func (h *Header) StatSN() uint32 { return be.Uint32(h[24:]) }

// SetStatSN sets a response's status sequence number.
func (h *Header) SetStatSN(sn uint32) { be.PutUint32(h[24:], sn) }

// ExpCmdSN is a response's next expected command sequence number.
func (h *Header) ExpCmdSN() uint32 { return be.Uint32(h[28:]) }

// MaxCmdSN is the last command sequence number that the target takes now.
func (h *Header) MaxCmdSN() uint32 { return be.Uint32(h[32:]) }

// SetWindow sets a response's ExpCmdSN and MaxCmdSN.
func (h *Header) SetWindow(exp, last uint32) {
	be.PutUint32(h[28:], exp)
	be.PutUint32(h[32:], last)
}

// Pad is the number of bytes from n to the next multiple of 4.
func Pad(n int) int { return -n & 3 }
