package scsi

// diagnosticCommands are SEND DIAGNOSTIC and RECEIVE DIAGNOSTIC RESULTS (SPC-4 §6.42, §6.28). The
// one diagnostic page is the list of supported pages; the default self-test finds nothing to test.
var diagnosticCommands = []row{
	{
		opcode: 0x1D, action: noServiceAction, name: "SEND DIAGNOSTIC",
		usage: []byte{0x1D, 0xF7, 0, 0xFF, 0xFF, 0x00},
		dir:   DataOut, length: func(cdb *[16]byte) int { return be16(cdb[3:]) },
		class: classWrite, run: sendDiagnostic,
	},
	{
		opcode: 0x1C, action: noServiceAction, name: "RECEIVE DIAGNOSTIC RESULTS",
		usage: []byte{0x1C, 0x01, 0xFF, 0xFF, 0xFF, 0x00},
		dir:   DataIn, length: func(cdb *[16]byte) int { return be16(cdb[3:]) },
		class: classRead, run: receiveDiagnostic,
	},
}

// sendDiagnostic takes the default self-test, and page 00h, which asks for the list of pages.
func sendDiagnostic(c *Command) {
	selfTestCode, selfTest := c.CDB[1]>>5, c.CDB[1]&4 != 0
	switch {
	case selfTestCode != 0:
		c.reject(senseInvalidField.atBit(1, 7))
	case selfTest && c.Length > 0:
		c.reject(senseInvalidField.at(3))
	case c.Length == 0:
		c.good()
	case len(c.Data) < 4 || len(c.Data) < c.Length:
		c.reject(senseParameterLength)
	case c.Data[0] != 0 || be16(c.Data[2:]) != 0:
		c.reject(senseInvalidParameter.inList(0))
	default:
		c.good()
	}
}

func receiveDiagnostic(c *Command) {
	if c.CDB[1]&1 != 0 && c.CDB[2] != 0 {
		c.reject(senseInvalidField.at(2))
		return
	}
	c.reply([]byte{0, 0, 0, 1, 0})
}
