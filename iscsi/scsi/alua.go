package scsi

// ALUAOptions are the target port groups of a Target.
type ALUAOptions struct{}

// targetALUA is the asymmetric access state of a Target.
type targetALUA struct{}

var aluaCommands []row

func (t *Target) initALUA() {}

// checkALUA tells whether c's port may execute it in its asymmetric access state; if not, s says
// why.
func (c *Command) checkALUA() (s sense, ok bool) { return senseNone, true }

// targetPortGroup is the target port group of a relative target port, for VPD page 83h.
func (t *Target) targetPortGroup(uint16) (group uint16, ok bool) { return 0, false }
