package pdu

// NopOut is the view of a NOP-Out, RFC 7143 §11.18.
type NopOut struct{ *Header }

// SCSICommand is the view of a SCSI Command, RFC 7143 §11.3.
type SCSICommand struct{ *Header }

// The flags of a SCSI Command beside FlagFinal.
const (
	FlagRead  = 0x40
	FlagWrite = 0x20
)

// Read is the R bit: the initiator expects data.
func (c SCSICommand) Read() bool { return c.Header[1]&FlagRead != 0 }

// Write is the W bit: the initiator has data to send.
func (c SCSICommand) Write() bool { return c.Header[1]&FlagWrite != 0 }

// Attr is the task attribute, 0 (untagged) to 4 (ACA); 5 to 7 are reserved.
func (c SCSICommand) Attr() uint8 { return c.Header[1] & 7 }

// EDTL is the expected data transfer length in bytes.
func (c SCSICommand) EDTL() uint32 { return be.Uint32(c.Header[20:]) }

// SetEDTL sets the expected data transfer length.
func (c SCSICommand) SetEDTL(n uint32) { be.PutUint32(c.Header[20:], n) }

// CDB is the first 16 bytes of the command descriptor block; it aliases the header.
func (c SCSICommand) CDB() []byte { return c.Header[32:48] }

// TaskFunction is the function of a Task Management Function Request, RFC 7143 §11.5.1.
type TaskFunction uint8

// The task management functions.
const (
	AbortTask       TaskFunction = 1
	AbortTaskSet    TaskFunction = 2
	ClearACA        TaskFunction = 3
	ClearTaskSet    TaskFunction = 4
	LUNReset        TaskFunction = 5
	TargetWarmReset TaskFunction = 6
	TargetColdReset TaskFunction = 7
	TaskReassign    TaskFunction = 8
)

// TaskRequest is the view of a Task Management Function Request, RFC 7143 §11.5.
type TaskRequest struct{ *Header }

// Function is the function asked for.
func (t TaskRequest) Function() TaskFunction { return TaskFunction(t.Header[1] & 0x7f) }

// RefTag is the initiator task tag of the task that the function is about.
func (t TaskRequest) RefTag() uint32 { return be.Uint32(t.Header[20:]) }

// SetRefTag sets the referenced task tag.
func (t TaskRequest) SetRefTag(tag uint32) { be.PutUint32(t.Header[20:], tag) }

// RefCmdSN is the CmdSN of the task that the function is about.
func (t TaskRequest) RefCmdSN() uint32 { return be.Uint32(t.Header[32:]) }

// SetRefCmdSN sets RefCmdSN.
func (t TaskRequest) SetRefCmdSN(sn uint32) { be.PutUint32(t.Header[32:], sn) }

// Stage is a stage of the login phase, RFC 7143 §11.12.3.
type Stage uint8

// The stages of the login phase.
const (
	StageSecurity    Stage = 0
	StageOperational Stage = 1
	StageFull        Stage = 3
)

// LoginRequest is the view of a Login Request, RFC 7143 §11.12.
type LoginRequest struct{ *Header }

// Transit is the T bit.
func (l LoginRequest) Transit() bool { return l.Header[1]&FlagFinal != 0 }

// CurrentStage is CSG.
func (l LoginRequest) CurrentStage() Stage { return Stage(l.Header[1] >> 2 & 3) }

// NextStage is NSG; it counts only with the T bit.
func (l LoginRequest) NextStage() Stage { return Stage(l.Header[1] & 3) }

// LoginFlags makes byte 1 of a Login Request or Response.
func LoginFlags(transit, more bool, current, next Stage) byte {
	f := byte(current)<<2 | byte(next)
	if transit {
		f |= FlagFinal
	}
	if more {
		f |= FlagContinue
	}
	return f
}

// VersionMin is the lowest version that the initiator speaks.
func (l LoginRequest) VersionMin() uint8 { return l.Header[3] }

// SetVersionMin sets the lowest version.
func (l LoginRequest) SetVersionMin(v uint8) { l.Header[3] = v }

// ISID is the initiator's part of the session identifier; it aliases the header.
func (l LoginRequest) ISID() *[6]byte { return (*[6]byte)(l.Header[8:14]) }

// TSIH is the target session identifying handle.
func (l LoginRequest) TSIH() uint16 { return be.Uint16(l.Header[14:]) }

// SetTSIH sets the target session identifying handle.
func (l LoginRequest) SetTSIH(v uint16) { be.PutUint16(l.Header[14:], v) }

// CID is the connection identifier.
func (l LoginRequest) CID() uint16 { return be.Uint16(l.Header[20:]) }

// SetCID sets the connection identifier.
func (l LoginRequest) SetCID(v uint16) { be.PutUint16(l.Header[20:], v) }

// TextRequest is the view of a Text Request, RFC 7143 §11.10.
type TextRequest struct{ *Header }

// DataOut is the view of a SCSI Data-Out, RFC 7143 §11.7.
type DataOut struct{ *Header }

// DataSN is the PDU's number in its sequence.
func (d DataOut) DataSN() uint32 { return be.Uint32(d.Header[36:]) }

// SetDataSN sets DataSN.
func (d DataOut) SetDataSN(sn uint32) { be.PutUint32(d.Header[36:], sn) }

// Offset is the place of the data in the command's buffer, in bytes.
func (d DataOut) Offset() uint32 { return be.Uint32(d.Header[40:]) }

// SetOffset sets the buffer offset.
func (d DataOut) SetOffset(n uint32) { be.PutUint32(d.Header[40:], n) }

// LogoutReason says what a Logout Request ends, RFC 7143 §11.14.1.
type LogoutReason uint8

// The reasons of a logout.
const (
	LogoutSession    LogoutReason = 0
	LogoutConnection LogoutReason = 1
	LogoutRecovery   LogoutReason = 2
)

// LogoutRequest is the view of a Logout Request, RFC 7143 §11.14.
type LogoutRequest struct{ *Header }

// Reason is what the request ends.
func (l LogoutRequest) Reason() LogoutReason { return LogoutReason(l.Header[1] & 0x7f) }

// CID is the connection to end; it counts for LogoutConnection and LogoutRecovery.
func (l LogoutRequest) CID() uint16 { return be.Uint16(l.Header[20:]) }

// SetCID sets the connection to end.
func (l LogoutRequest) SetCID(v uint16) { be.PutUint16(l.Header[20:], v) }

// SNACK is the view of a SNACK Request, RFC 7143 §11.16.
type SNACK struct{ *Header }

// Type is what the initiator asks to have again.
func (s SNACK) Type() uint8 { return s.Header[1] & 0x0f }
