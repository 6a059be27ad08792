package daemon

import (
	"context"
	"fmt"
	"strings"
	"time"

	"lunar/appliance/cluster"
	"lunar/iscsi/scsi"
)

// saveQueue bounds the saves that wait. A unit has one under way at most, so this is also the
// number of units that can change their reservations at the same time.
const saveQueue = 1024

// databaseTimeout bounds one call of the cluster database.
const databaseTimeout = 10 * time.Second

// reservationStore keeps SCSI reservations in the cluster database. It implements
// scsi.ReservationStore: a goroutine of its own waits for the database in the lane's place.
type reservationStore struct {
	db    *cluster.DB
	saves chan save
	ended chan struct{}
}

type save struct {
	naa    string
	record []byte
	after  int64
	done   func(int64, error)
}

func newReservationStore(db *cluster.DB) *reservationStore {
	s := &reservationStore{db: db, saves: make(chan save, saveQueue), ended: make(chan struct{})}
	go s.run()
	return s
}

// close waits for the saves that were taken; no lane may call Save any more.
func (s *reservationStore) close() {
	close(s.saves)
	<-s.ended
}

func (s *reservationStore) run() {
	defer close(s.ended)
	for job := range s.saves {
		ctx, cancel := context.WithTimeout(context.Background(), databaseTimeout)
		job.done(s.db.SwapReservations(ctx, job.naa, job.after, job.record))
		cancel()
	}
}

// Load implements scsi.ReservationStore.
func (s *reservationStore) Load(unit string) (scsi.Saved, error) {
	ctx, cancel := context.WithTimeout(context.Background(), databaseTimeout)
	defer cancel()
	r, err := s.db.LoadReservations(ctx, naaOf(unit))
	return scsi.Saved{Record: r.Blob, Revision: r.Revision}, err
}

// Save implements scsi.ReservationStore.
func (s *reservationStore) Save(_ int, unit string, record []byte, after int64, done func(int64, error)) {
	select {
	case s.saves <- save{naaOf(unit), record, after, done}:
	default:
		done(0, fmt.Errorf("reservations of %s: %d saves wait already", unit, saveQueue))
	}
}

// naaOf is the database's key of a unit that the device server names "naa.HEX".
func naaOf(unit string) string { return strings.ToLower(strings.TrimPrefix(unit, "naa.")) }
