package scsi

import (
	"encoding/json"
	"errors"
	"fmt"
)

// ErrReservationRecord says that a ReservationStore returned what this version cannot read.
var ErrReservationRecord = errors.New("reservation record is not readable")

// ErrRecordChanged says that another server of the unit has saved a newer record.
var ErrRecordChanged = errors.New("reservation record was changed by another server")

// Saved is a record as a ReservationStore has it. Revision rises with each save of the unit; 0: none.
type Saved struct {
	Record   []byte
	Revision int64
}

// ReservationStore keeps the persistent reservations of logical units through power loss (APTPL,
// SPC-4 §5.13.5), and for several servers that present one unit. unit is the logical unit's name,
// naa. and its NAA designator in hexadecimal. A record is opaque, a few hundred bytes plus about 150
// per registration.
type ReservationStore interface {
	// Load returns the newest record that was saved, the zero value if there is none. It may block:
	// it is called by Target.Map.
	Load(unit string) (Saved, error)
	// Save makes record durable in the place of that with the revision after, and then calls done
	// once, from any goroutine; on the lane if TargetOptions.Post is nil. Every other server of the
	// unit has taken the record over before done, by LogicalUnit.ReservationsChanged. It is called on
	// a lane and must not block. The unit's next save begins after done.
	//
	// ErrRecordChanged: there is a newer record, and ReservationsChanged was called with it before
	// done. After any other error either record may be there.
	Save(lane int, unit string, record []byte, after int64, done func(revision int64, err error))
}

// ReservationOptions are the properties of the persistent reservations of a Target's units.
type ReservationOptions struct {
	// Store keeps them through power loss; nil: APTPL is not supported.
	Store ReservationStore
}

const reservationVersion = 2

// reservationRecord is the form of a record. A unit of several servers has all of its state in it,
// with what the newest order asks of the servers; any other only what outlives power loss, after which
// PRGENERATION starts anew. RESERVE(6) is never in it.
type reservationRecord struct {
	Version       int                  `json:"version"`
	Generation    uint32               `json:"generation,omitempty"`
	Persist       bool                 `json:"persist,omitempty"` // APTPL
	Type          reservationType      `json:"type,omitempty"`
	Registrations []registrationRecord `json:"registrations,omitempty"`

	After   int64          `json:"after,omitempty"` // revision of the record before, which Notices and Aborts add to
	Notices []noticeRecord `json:"notices,omitempty"`
	Aborts  []nexusRecord  `json:"aborts,omitempty"`
}

type nexusRecord struct {
	Initiator string `json:"initiator"`
	Target    string `json:"target"`
	Port      uint16 `json:"port"`
}

type registrationRecord struct {
	nexusRecord
	Key    uint64 `json:"key"`
	Holder bool   `json:"holder,omitempty"`
}

type noticeRecord struct {
	nexusRecord
	About attention `json:"about"`
}

func (n nexusID) record() nexusRecord { return nexusRecord{n.initiator, n.target, n.port} }

func (n nexusRecord) id() nexusID {
	return nexusID{initiator: n.Initiator, target: n.Target, port: n.Port}
}

// record is what is saved of a unit that has this server alone: without APTPL nothing comes back.
func (r *reservations) record() []byte {
	if !r.persist {
		return encodeRecord(&reservationRecord{})
	}
	rec := r.wholeRecord()
	rec.Generation = 0
	return encodeRecord(rec)
}

// sharedRecord is what other servers of the unit need to know of r and of the order that led to it.
func (r *reservations) sharedRecord(fx *reservationEffects) []byte {
	rec := r.wholeRecord()
	rec.After = r.revision
	for _, n := range fx.notices {
		rec.Notices = append(rec.Notices, noticeRecord{n.nexus.record(), n.about})
	}
	for _, n := range fx.aborts {
		rec.Aborts = append(rec.Aborts, n.record())
	}
	return encodeRecord(rec)
}

func (r *reservations) wholeRecord() *reservationRecord {
	rec := &reservationRecord{Generation: r.generation, Persist: r.persist, Type: r.kind}
	for _, g := range r.registrants {
		rec.Registrations = append(rec.Registrations, registrationRecord{g.nexus.record(), g.key, r.holds(g.nexus)})
	}
	return rec
}

func encodeRecord(rec *reservationRecord) []byte {
	rec.Version = reservationVersion
	p, err := json.Marshal(rec)
	if err != nil {
		panic("scsi: reservation record: " + err.Error()) // no field of it can fail
	}
	return p
}

// restoreReservations makes the state that saved was made from; without a record it is the empty state.
func restoreReservations(saved Saved) (*reservations, error) {
	r, _, err := readReservations(saved)
	return r, err
}

func readReservations(saved Saved) (*reservations, *reservationRecord, error) {
	r, rec := &reservations{revision: saved.Revision}, &reservationRecord{}
	if saved.Record == nil {
		return r, rec, nil
	}
	if err := json.Unmarshal(saved.Record, rec); err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrReservationRecord, err)
	}
	if rec.Version != reservationVersion || len(rec.Registrations) > maxRegistrants {
		return nil, nil, fmt.Errorf("%w: version %d, %d registrations", ErrReservationRecord, rec.Version, len(rec.Registrations))
	}
	r.persist, r.generation = rec.Persist, rec.Generation
	for _, g := range rec.Registrations {
		r.restore(g, rec.Type)
	}
	if err := r.check(rec); err != nil {
		return nil, nil, err
	}
	return r, rec, nil
}

func (r *reservations) restore(g registrationRecord, kind reservationType) {
	n := g.id()
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
