package scsi

// Direction is the way in which a command's data goes, as the initiator sees it.
type Direction uint8

// The directions of SPC-4; bidirectional commands are not supported.
const (
	NoData Direction = iota
	DataIn
	DataOut
)

// MaxData bounds Command.Length: the MAXIMUM TRANSFER LENGTH of the block limits, and one buffer
// of the host's pool.
const MaxData = 1 << 20

// Command is one SCSI task between the transport and the device server. The transport owns it and
// its buffers and may use it anew once Done was called. All of it happens on one lane.
type Command struct {
	CDB   [16]byte
	LUN   uint64 // the eight bytes of SAM-5 §4.7, big endian, as received
	Nexus *Nexus
	Lane  int
	Tag   uint32 // initiator task tag, for task management and logs
	Attr  TaskAttribute
	// Expected is the expected data transfer length (EDTL) of the command PDU, which WRITE SAME and
	// COMPARE AND WRITE check; the transport sets it before Decode.
	Expected int

	// Set by Target.Decode. Length is at most MaxData; a command that asks for more than the
	// device server takes has Length 0 and is refused by Execute. Before Done the device server
	// sets Length to the bytes that the command had to move: Residual compares it.
	Direction Direction
	Length    int // bytes that the CDB asks to move

	// Data is the transport's buffer, min(Length, expected data transfer length) bytes. For
	// DataOut it is filled before Execute; for DataIn the device server fills Data[:Count].
	Data []byte

	// Set by the device server before Done.
	Count  int // bytes of DataIn that are valid
	Status Status
	Sense  []byte // fixed or descriptor format, nil if none; valid until Done returns

	// Done is called once, on Lane, possibly before Execute returns. The transport sets it once
	// per Command, so that no closure is made per task.
	Done func(*Command)

	task // the device server's own state, kept in the Command so that nothing is allocated
}

// Residual is what Done's command moved beyond the expected data transfer length edtl (positive:
// overflow) or short of it (negative: underflow), as RFC 7143 §11.4.5 counts it.
func (c *Command) Residual(edtl int) int { return c.Length - edtl }

// Silent tells that the task was aborted and that SAM-5 §5.6 wants no response to it.
func (c *Command) Silent() bool { return c.Status == TaskAborted && c.silent }
