package scsi

// ReservationOptions are the properties of the persistent reservations of a Target's units.
type ReservationOptions struct{}

// unitReservations is the reservation state of a logical unit.
type unitReservations struct{}

// nexusReservation is the reservation state of an I_T_L nexus.
type nexusReservation struct{}

var reservationCommands []row

// conflicts tells whether another I_T nexus's reservation refuses c, by c.row.class.
func (r *unitReservations) conflicts(*Command) bool { return false }

// nexusLost is called when an I_T_L nexus ends: a RESERVE(6) reservation of it is released.
func (lu *LogicalUnit) nexusLost(*itl) {}

// reservationReset is called at a logical unit reset: a RESERVE(6) reservation is released.
func (lu *LogicalUnit) reservationReset() {}
