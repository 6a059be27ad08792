package pdu

// NopIn is the view of a NOP-In, RFC 7143 §11.19.
type NopIn struct{ *Header }

// Residual flags of SCSI Response and SCSI Data-In, RFC 7143 §11.4.1 and §11.7.
const (
	FlagOverflow  = 0x04
	FlagUnderflow = 0x02
)

// FlagStatus is the S bit of a Data-In: the PDU carries the command's status.
const FlagStatus = 0x01

// SCSIResponse is the view of a SCSI Response, RFC 7143 §11.4.
type SCSIResponse struct{ *Header }

// Response is 0 when the command completed at the target, 1 on a target failure.
func (r SCSIResponse) Response() uint8 { return r.Header[2] }

// SetResponse sets the response code.
func (r SCSIResponse) SetResponse(v uint8) { r.Header[2] = v }

// Status is the SCSI status.
func (r SCSIResponse) Status() uint8 { return r.Header[3] }

// SetStatus sets the SCSI status.
func (r SCSIResponse) SetStatus(v uint8) { r.Header[3] = v }

// ExpDataSN is the number of Data-In and R2T PDUs that the target sent for the command.
func (r SCSIResponse) ExpDataSN() uint32 { return be.Uint32(r.Header[36:]) }

// SetExpDataSN sets ExpDataSN.
func (r SCSIResponse) SetExpDataSN(sn uint32) { be.PutUint32(r.Header[36:], sn) }

// Residual is the residual count in bytes; the flags say of which kind.
func (r SCSIResponse) Residual() uint32 { return be.Uint32(r.Header[44:]) }

// SetResidual sets the residual count.
func (r SCSIResponse) SetResidual(n uint32) { be.PutUint32(r.Header[44:], n) }

// TaskResult is the response to a task management function, RFC 7143 §11.6.1.
type TaskResult uint8

// The responses to task management functions.
const (
	TaskComplete      TaskResult = 0
	TaskNoTask        TaskResult = 1
	TaskNoLUN         TaskResult = 2
	TaskAllegiant     TaskResult = 3
	TaskNoReassign    TaskResult = 4
	TaskNotSupported  TaskResult = 5
	TaskNotAuthorized TaskResult = 6
	TaskRejected      TaskResult = 255
)

// TaskResponse is the view of a Task Management Function Response, RFC 7143 §11.6.
type TaskResponse struct{ *Header }

// Result is the function's outcome.
func (t TaskResponse) Result() TaskResult { return TaskResult(t.Header[2]) }

// SetResult sets the function's outcome.
func (t TaskResponse) SetResult(r TaskResult) { t.Header[2] = byte(r) }

// LoginStatus is Status-Class and Status-Detail of a Login Response, RFC 7143 §11.13.5.
type LoginStatus uint16

// The login statuses.
const (
	LoginSuccess            LoginStatus = 0x0000
	LoginInitiatorError     LoginStatus = 0x0200
	LoginAuthFailure        LoginStatus = 0x0201
	LoginForbidden          LoginStatus = 0x0202
	LoginNotFound           LoginStatus = 0x0203
	LoginTargetRemoved      LoginStatus = 0x0204
	LoginUnsupportedVersion LoginStatus = 0x0205
	LoginTooManyConnections LoginStatus = 0x0206
	LoginMissingParameter   LoginStatus = 0x0207
	LoginCannotInclude      LoginStatus = 0x0208
	LoginSessionType        LoginStatus = 0x0209
	LoginNoSession          LoginStatus = 0x020a
	LoginInvalidRequest     LoginStatus = 0x020b
	LoginTargetError        LoginStatus = 0x0300
	LoginUnavailable        LoginStatus = 0x0301
	LoginOutOfResources     LoginStatus = 0x0302
)

// LoginResponse is the view of a Login Response, RFC 7143 §11.13.
type LoginResponse struct{ *Header }

// SetVersions sets the highest and the active version.
func (l LoginResponse) SetVersions(highest, active uint8) { l.Header[2], l.Header[3] = highest, active }

// ISID is the initiator's part of the session identifier; it aliases the header.
func (l LoginResponse) ISID() *[6]byte { return (*[6]byte)(l.Header[8:14]) }

// TSIH is the target session identifying handle.
func (l LoginResponse) TSIH() uint16 { return be.Uint16(l.Header[14:]) }

// SetTSIH sets the target session identifying handle.
func (l LoginResponse) SetTSIH(v uint16) { be.PutUint16(l.Header[14:], v) }

// Status is the login's status so far.
func (l LoginResponse) Status() LoginStatus { return LoginStatus(be.Uint16(l.Header[36:])) }

// SetStatus sets the login's status.
func (l LoginResponse) SetStatus(s LoginStatus) { be.PutUint16(l.Header[36:], uint16(s)) }

// TextResponse is the view of a Text Response, RFC 7143 §11.11.
type TextResponse struct{ *Header }

// DataIn is the view of a SCSI Data-In, RFC 7143 §11.7.
type DataIn struct{ *Header }

// HasStatus is the S bit.
func (d DataIn) HasStatus() bool { return d.Header[1]&FlagStatus != 0 }

// Status is the SCSI status; it counts only with the S bit.
func (d DataIn) Status() uint8 { return d.Header[3] }

// SetStatus sets the SCSI status.
func (d DataIn) SetStatus(v uint8) { d.Header[3] = v }

// DataSN is the PDU's number in the command's Data-In PDUs.
func (d DataIn) DataSN() uint32 { return be.Uint32(d.Header[36:]) }

// SetDataSN sets DataSN.
func (d DataIn) SetDataSN(sn uint32) { be.PutUint32(d.Header[36:], sn) }

// Offset is the place of the data in the command's buffer, in bytes.
func (d DataIn) Offset() uint32 { return be.Uint32(d.Header[40:]) }

// SetOffset sets the buffer offset.
func (d DataIn) SetOffset(n uint32) { be.PutUint32(d.Header[40:], n) }

// Residual is the residual count; it counts only with the S bit.
func (d DataIn) Residual() uint32 { return be.Uint32(d.Header[44:]) }

// SetResidual sets the residual count.
func (d DataIn) SetResidual(n uint32) { be.PutUint32(d.Header[44:], n) }

// LogoutResult is the response to a logout, RFC 7143 §11.15.1.
type LogoutResult uint8

// The responses to a logout.
const (
	LogoutDone       LogoutResult = 0
	LogoutNoCID      LogoutResult = 1
	LogoutNoRecovery LogoutResult = 2
	LogoutFailed     LogoutResult = 3
)

// LogoutResponse is the view of a Logout Response, RFC 7143 §11.15.
type LogoutResponse struct{ *Header }

// Result is the logout's outcome.
func (l LogoutResponse) Result() LogoutResult { return LogoutResult(l.Header[2]) }

// SetResult sets the logout's outcome.
func (l LogoutResponse) SetResult(r LogoutResult) { l.Header[2] = byte(r) }

// SetTimes sets Time2Wait and Time2Retain, in seconds.
func (l LogoutResponse) SetTimes(wait, retain uint16) {
	be.PutUint16(l.Header[40:], wait)
	be.PutUint16(l.Header[42:], retain)
}

// R2T is the view of a Ready To Transfer, RFC 7143 §11.8.
type R2T struct{ *Header }

// R2TSN is the number of this R2T among the command's.
func (r R2T) R2TSN() uint32 { return be.Uint32(r.Header[36:]) }

// SetR2TSN sets R2TSN.
func (r R2T) SetR2TSN(sn uint32) { be.PutUint32(r.Header[36:], sn) }

// Offset is where the data asked for begins in the command's buffer, in bytes.
func (r R2T) Offset() uint32 { return be.Uint32(r.Header[40:]) }

// SetOffset sets the buffer offset.
func (r R2T) SetOffset(n uint32) { be.PutUint32(r.Header[40:], n) }

// Length is the number of bytes asked for.
func (r R2T) Length() uint32 { return be.Uint32(r.Header[44:]) }

// SetLength sets the desired data transfer length.
func (r R2T) SetLength(n uint32) { be.PutUint32(r.Header[44:], n) }

// AsyncEvent is the event of an Asynchronous Message, RFC 7143 §11.9.1.
type AsyncEvent uint8

// The asynchronous events.
const (
	AsyncSCSI           AsyncEvent = 0
	AsyncLogout         AsyncEvent = 1
	AsyncDropConnection AsyncEvent = 2
	AsyncDropSession    AsyncEvent = 3
	AsyncNegotiate      AsyncEvent = 4
	AsyncTasksEnded     AsyncEvent = 5
)

// Async is the view of an Asynchronous Message, RFC 7143 §11.9.
type Async struct{ *Header }

// Event is what happened.
func (a Async) Event() AsyncEvent { return AsyncEvent(a.Header[36]) }

// SetEvent sets the event and its three parameters.
func (a Async) SetEvent(e AsyncEvent, p1, p2, p3 uint16) {
	a.Header[36] = byte(e)
	be.PutUint16(a.Header[38:], p1)
	be.PutUint16(a.Header[40:], p2)
	be.PutUint16(a.Header[42:], p3)
}

// Parameters are the event's three parameters.
func (a Async) Parameters() (p1, p2, p3 uint16) {
	return be.Uint16(a.Header[38:]), be.Uint16(a.Header[40:]), be.Uint16(a.Header[42:])
}

// RejectReason says why a PDU was rejected, RFC 7143 §11.17.1.
type RejectReason uint8

// The reasons of a Reject.
const (
	RejectDataDigest    RejectReason = 0x02
	RejectSNACK         RejectReason = 0x03
	RejectProtocol      RejectReason = 0x04
	RejectNotSupported  RejectReason = 0x05
	RejectImmediate     RejectReason = 0x06
	RejectTaskInUse     RejectReason = 0x07
	RejectDataAck       RejectReason = 0x08
	RejectField         RejectReason = 0x09
	RejectLongOperation RejectReason = 0x0a
	RejectLogout        RejectReason = 0x0c
)

// Reject is the view of a Reject, RFC 7143 §11.17; its data segment is the rejected PDU's header.
type Reject struct{ *Header }

// Reason is why the PDU was rejected.
func (r Reject) Reason() RejectReason { return RejectReason(r.Header[2]) }

// SetReason sets why the PDU was rejected.
func (r Reject) SetReason(v RejectReason) { r.Header[2] = byte(v) }
