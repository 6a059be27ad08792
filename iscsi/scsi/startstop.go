package scsi

var startStopCommands []row

// powerState is the power condition of a unit.
type powerState = uint32

const (
	powerActive powerState = iota
	powerStopped
)

func (lu *LogicalUnit) startUnit() { lu.power.Store(powerActive) }

// ready tells whether the unit executes media commands; if not, s says why.
func (lu *LogicalUnit) ready() (s sense, ok bool) {
	if lu.power.Load() != powerActive {
		return senseNotReadyStopped, false
	}
	return lu.sanitize.ready()
}
