package scsi

var modeCommands []row

// modeState is the mode parameters of a unit, immutable.
type modeState struct {
	writeCache        bool // WCE, caching page
	descriptorSense   bool // D_SENSE, control page
	softwareProtect   bool // SWP, control page
	taskAbortedStatus bool // TAS, control page
}

func defaultModes(o *UnitOptions) *modeState { return &modeState{writeCache: !o.NoWriteCache} }
