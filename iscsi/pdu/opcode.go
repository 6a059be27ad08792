package pdu

import "fmt"

// Opcode is the six-bit operation code of a PDU, RFC 7143 §11.2.1.2.
type Opcode uint8

// The opcodes that an initiator sends.
const (
	OpNopOut        Opcode = 0x00
	OpSCSICommand   Opcode = 0x01
	OpTaskRequest   Opcode = 0x02
	OpLoginRequest  Opcode = 0x03
	OpTextRequest   Opcode = 0x04
	OpDataOut       Opcode = 0x05
	OpLogoutRequest Opcode = 0x06
	OpSNACK         Opcode = 0x10
)

// The opcodes that a target sends.
const (
	OpNopIn          Opcode = 0x20
	OpSCSIResponse   Opcode = 0x21
	OpTaskResponse   Opcode = 0x22
	OpLoginResponse  Opcode = 0x23
	OpTextResponse   Opcode = 0x24
	OpDataIn         Opcode = 0x25
	OpLogoutResponse Opcode = 0x26
	OpR2T            Opcode = 0x31
	OpAsync          Opcode = 0x32
	OpReject         Opcode = 0x3f
)

var opcodeNames = map[Opcode]string{
	OpNopOut: "NOP-Out", OpSCSICommand: "SCSI Command", OpTaskRequest: "Task Management Function Request",
	OpLoginRequest: "Login Request", OpTextRequest: "Text Request", OpDataOut: "SCSI Data-Out",
	OpLogoutRequest: "Logout Request", OpSNACK: "SNACK Request",
	OpNopIn: "NOP-In", OpSCSIResponse: "SCSI Response", OpTaskResponse: "Task Management Function Response",
	OpLoginResponse: "Login Response", OpTextResponse: "Text Response", OpDataIn: "SCSI Data-In",
	OpLogoutResponse: "Logout Response", OpR2T: "R2T", OpAsync: "Asynchronous Message", OpReject: "Reject",
}

// String is the name that RFC 7143 gives the opcode.
func (o Opcode) String() string {
	if name, ok := opcodeNames[o]; ok {
		return name
	}
	return fmt.Sprintf("opcode 0x%02x", uint8(o))
}
