package scsi

import "encoding/binary"

// The encoders below make the parameter data of PERSISTENT RESERVE IN (SPC-4 §6.15), whole; the
// allocation length cuts it later and never changes ADDITIONAL LENGTH.

// readKeys is READ KEYS: the key of every registered I_T nexus.
func (r *reservations) readKeys() []byte {
	p := r.inHeader(8 * len(r.registrants))
	for _, g := range r.registrants {
		p = binary.BigEndian.AppendUint64(p, g.key)
	}
	return p
}

// readReservation is READ RESERVATION.
func (r *reservations) readReservation() []byte {
	if r.kind == noReservation {
		return r.inHeader(0)
	}
	p := r.inHeader(16)
	p = binary.BigEndian.AppendUint64(p, r.reservationKey())
	return append(p, 0, 0, 0, 0, 0, byte(r.kind), 0, 0)
}

func (r *reservations) inHeader(additional int) []byte {
	p := make([]byte, 8, 8+additional)
	binary.BigEndian.PutUint32(p, r.generation)
	binary.BigEndian.PutUint32(p[4:], uint32(additional))
	return p
}

// reportCapabilities is REPORT CAPABILITIES; persistent says that APTPL is supported.
// ALLOW COMMANDS 001b: TEST UNIT READY passes every reservation.
func (r *reservations) reportCapabilities(persistent bool) []byte {
	const crh, sip, atp, tmv, allowTestUnitReady = 0x10, 0x08, 0x04, 0x80, 0x10
	p := []byte{0, 8, crh | sip | atp, tmv | allowTestUnitReady, supportedTypes >> 8, supportedTypes & 0xFF, 0, 0}
	if persistent {
		p[2] |= 0x01
	}
	if r.persist {
		p[3] |= 0x01
	}
	return p
}

// readFullStatus is READ FULL STATUS: a descriptor per registered I_T nexus.
func (r *reservations) readFullStatus() []byte {
	p := r.inHeader(0)
	for _, g := range r.registrants {
		p = r.appendStatus(p, g)
	}
	binary.BigEndian.PutUint32(p[4:], uint32(len(p)-8))
	return p
}

func (r *reservations) appendStatus(p []byte, g registrant) []byte {
	id := transportID(g.nexus.initiator)
	d := make([]byte, 24, 24+len(id))
	binary.BigEndian.PutUint64(d, g.key)
	if r.holds(g.nexus) {
		d[12], d[13] = 0x01, byte(r.kind) // R_HOLDER; SCOPE and TYPE
	}
	binary.BigEndian.PutUint16(d[18:], g.nexus.port)
	binary.BigEndian.PutUint32(d[20:], uint32(len(id)))
	return append(append(p, d...), id...)
}
