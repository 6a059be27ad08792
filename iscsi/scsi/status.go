package scsi

import "fmt"

// Status is the status byte of SAM-5 §5.3.
type Status uint8

// The status codes that this device server returns.
const (
	Good                Status = 0x00
	CheckCondition      Status = 0x02
	ConditionMet        Status = 0x04
	Busy                Status = 0x08
	ReservationConflict Status = 0x18
	TaskSetFull         Status = 0x28
	TaskAborted         Status = 0x40
)

var statusNames = map[Status]string{
	Good:                "GOOD",
	CheckCondition:      "CHECK CONDITION",
	ConditionMet:        "CONDITION MET",
	Busy:                "BUSY",
	ReservationConflict: "RESERVATION CONFLICT",
	TaskSetFull:         "TASK SET FULL",
	TaskAborted:         "TASK ABORTED",
}

// String is the status as SAM-5 writes it.
func (s Status) String() string {
	if name, ok := statusNames[s]; ok {
		return name
	}
	return fmt.Sprintf("STATUS %02Xh", uint8(s))
}

// TaskAttribute is the task attribute of SAM-5 §8.9, numbered as in the iSCSI command PDU
// (RFC 7143 §11.3.1).
type TaskAttribute uint8

// The task attributes; Untagged is treated as Simple.
const (
	Untagged TaskAttribute = iota
	Simple
	Ordered
	HeadOfQueue
	ACA
)
