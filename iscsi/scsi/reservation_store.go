package scsi

import (
	"encoding/json"
	"errors"
	"fmt"
)

// ErrReservationRecord says that a ReservationStore returned what this version cannot read.
var ErrReservationRecord = errors.New("reservation record is not readable")

// ReservationStore keeps the persistent reservations of logical units through power loss (APTPL,
// SPC-4 §5.13.5). unit is the logical unit's name, naa. and its NAA designator in hexadecimal.
// A record is opaque, a few hundred bytes plus about 150 per registration.
type ReservationStore interface {
	// Load returns the newest record that was saved, nil if there is none. It may block: it is
	// called by Target.Map.
	Load(unit string) ([]byte, error)
	// Save makes record durable in the place of older ones and then calls done once, from any
	// goroutine; on the lane if TargetOptions.Post is nil. It is called on a lane and must not
	// block. The unit's next save begins after done. After an error either record may be there.
	Save(lane int, unit string, record []byte, done func(error))
}

// ReservationOptions are the properties of the persistent reservations of a Target's units.
type ReservationOptions struct {
	// Store keeps them through power loss; nil: APTPL is not supported.
	Store ReservationStore
}

const reservationVersion = 1

// reservationRecord is the form of a record; PRGENERATION starts anew after power loss, and
// RESERVE(6) does not survive it.
type reservationRecord struct {
	Version       int                  `json:"version"`
	Type          reservationType      `json:"type,omitempty"`
	Registrations []registrationRecord `json:"registrations,omitempty"`
}

type registrationRecord struct {
	Initiator string `json:"initiator"`
	Target    string `json:"target"`
	Port      uint16 `json:"port"`
	Key       uint64 `json:"key"`
	Holder    bool   `json:"holder,omitempty"`
}

// record is what is saved: without APTPL there is nothing to come back.
func (r *reservations) record() []byte {
	rec := reservationRecord{Version: reservationVersion}
	if r.persist {
		rec.Type = r.kind
		for _, g := range r.registrants {
			n := g.nexus
			rec.Registrations = append(rec.Registrations, registrationRecord{n.initiator, n.target, n.port, g.key, r.holds(n)})
		}
	}
	p, err := json.Marshal(&rec)
	if err != nil {
		panic("scsi: reservation record: " + err.Error()) // no field of it can fail
	}
	return p
}

// restoreReservations makes the state that record was saved from; nil is the empty state.
func restoreReservations(record []byte) (*reservations, error) {
	r := &reservations{}
	if record == nil {
		return r, nil
	}
	var rec reservationRecord
	if err := json.Unmarshal(record, &rec); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrReservationRecord, err)
	}
	if rec.Version != reservationVersion || len(rec.Registrations) > maxRegistrants {
		return nil, fmt.Errorf("%w: version %d, %d registrations", ErrReservationRecord, rec.Version, len(rec.Registrations))
	}
	r.persist = len(rec.Registrations) > 0
	for _, g := range rec.Registrations {
		r.restore(g, rec.Type)
	}
	if err := r.check(&rec); err != nil {
		return nil, err
	}
	return r, nil
}

func (r *reservations) restore(g registrationRecord, kind reservationType) {
	n := nexusID{initiator: g.Initiator, target: g.Target, port: g.Port}
	r.set(n, g.Key)
	if g.Holder {
		r.hold(n, kind)
	}
}

// check refuses a record that no sequence of commands leads to.
func (r *reservations) check(rec *reservationRecord) error {
	holders := 0
	for _, g := range rec.Registrations {
		if g.Key == 0 || g.Initiator == "" {
			return fmt.Errorf("%w: a registration without key or initiator", ErrReservationRecord)
		}
		if g.Holder {
			holders++
		}
	}
	want := 1
	switch {
	case rec.Type == noReservation:
		want = 0
	case !rec.Type.valid():
		return fmt.Errorf("%w: reservation type %d", ErrReservationRecord, rec.Type)
	case rec.Type.all():
		want = max(1, len(rec.Registrations))
	}
	if holders != want || len(r.registrants) != len(rec.Registrations) {
		return fmt.Errorf("%w: %d holders of type %d", ErrReservationRecord, holders, rec.Type)
	}
	return nil
}
