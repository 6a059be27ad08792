package scsi

// unitSanitize is the state of a SANITIZE operation of a logical unit.
type unitSanitize struct{}

var sanitizeCommands []row

// ready tells whether no SANITIZE is under way; if one is, s says so.
func (s *unitSanitize) ready() (sense, bool) { return senseNone, true }
