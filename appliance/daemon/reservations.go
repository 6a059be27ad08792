package daemon

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"lunar/appliance/cluster"
	"lunar/iscsi/scsi"
)

// saveQueue bounds the saves that wait. A unit has one under way at most, so this is also the
// number of units that can change their reservations at the same time.
const saveQueue = 1024

// databaseTimeout bounds one call of the cluster database, and the wait for other nodes to take a
// record over.
const databaseTimeout = 10 * time.Second

// reservationStore keeps SCSI reservations in the cluster database. It implements
// scsi.ReservationStore: goroutines of its own wait for the database in the lane's place. A record is
// saved when every other node that serves the unit has said that it governs there.
type reservationStore struct {
	node  *Node
	saves chan save
	ended sync.WaitGroup

	mu   sync.Mutex             // guards what follows
	last map[string]int64       // NAA → revision of the newest record that governs here
	turn map[string]*sync.Mutex // NAA → orders what its unit is told
}

type save struct {
	naa    string
	record []byte
	after  int64
	done   func(int64, error)
}

// savers is how many units save at the same time.
const savers = 4

func newReservationStore(n *Node) *reservationStore {
	s := &reservationStore{node: n, saves: make(chan save, saveQueue), last: map[string]int64{}, turn: map[string]*sync.Mutex{}}
	for range savers {
		s.ended.Go(s.run)
	}
	return s
}

// close waits for the saves that were taken; no lane may call Save any more.
func (s *reservationStore) close() {
	close(s.saves)
	s.ended.Wait()
}

func (s *reservationStore) run() {
	for job := range s.saves {
		ctx, cancel := context.WithTimeout(context.Background(), databaseTimeout)
		job.done(s.save(ctx, job))
		cancel()
	}
}

func (s *reservationStore) save(ctx context.Context, job save) (int64, error) {
	revision, err := s.node.db.SwapReservations(ctx, job.naa, job.after, job.record)
	if errors.Is(err, cluster.ErrConflict) {
		return 0, errors.Join(s.refresh(ctx, job.naa), scsi.ErrRecordChanged)
	}
	if err != nil {
		return 0, err
	}
	if err := s.govern(ctx, job.naa, revision); err != nil {
		return 0, err
	}
	if m := s.node.membership.Load(); m != nil && m.shared {
		err = m.session.AwaitReservations(ctx, job.naa, revision)
	}
	return revision, err
}

// govern notes, also for the other nodes, which record governs here.
func (s *reservationStore) govern(ctx context.Context, naa string, revision int64) error {
	s.mu.Lock()
	revision = max(s.last[naa], revision)
	s.last[naa] = revision
	s.mu.Unlock()
	if m := s.node.membership.Load(); m != nil && m.shared {
		return m.session.AckReservations(ctx, naa, revision)
	}
	return nil
}

// refresh takes the newest record over.
func (s *reservationStore) refresh(ctx context.Context, naa string) error {
	r, err := s.node.db.LoadReservations(ctx, naa)
	if err != nil {
		return err
	}
	return s.takeOver(ctx, naa, scsi.Saved{Record: r.Blob, Revision: r.Revision})
}

// takeOver gives a record to its unit, if one is here, and tells the other nodes when it governs.
func (s *reservationStore) takeOver(ctx context.Context, naa string, saved scsi.Saved) error {
	turn := s.turnOf(naa)
	turn.Lock()
	defer turn.Unlock()
	u := s.node.unitByNAA(naa)
	if u == nil || s.governs(naa, saved.Revision) {
		return nil
	}
	taken := make(chan struct{})
	if err := u.lu.ReservationsChanged(saved, func() { close(taken) }); err != nil {
		return err
	}
	select {
	case <-taken:
	case <-ctx.Done():
		return fmt.Errorf("reservations of %s: tasks that a preempt ended are still at work: %w", naa, ctx.Err())
	}
	return s.govern(ctx, naa, saved.Revision)
}

func (s *reservationStore) turnOf(naa string) *sync.Mutex {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.turn[naa] == nil {
		s.turn[naa] = new(sync.Mutex)
	}
	return s.turn[naa]
}

func (s *reservationStore) governs(naa string, revision int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last[naa] >= revision
}

// follow takes over what other nodes save, until ctx ends or the database cannot tell.
func (s *reservationStore) follow(ctx context.Context) error {
	return s.node.db.WatchReservations(ctx, func(naa string, blob []byte, revision int64) {
		limited, cancel := context.WithTimeout(ctx, databaseTimeout)
		defer cancel()
		if err := s.takeOver(limited, naa, scsi.Saved{Record: blob, Revision: revision}); err != nil {
			s.node.log.Error("another node's reservations were not taken over", "unit", naa, "error", err)
		}
	})
}

// Load implements scsi.ReservationStore: from now on this node is asked before a change is answered.
func (s *reservationStore) Load(unit string) (scsi.Saved, error) {
	ctx, cancel := context.WithTimeout(context.Background(), databaseTimeout)
	defer cancel()
	naa := naaOf(unit)
	if m := s.node.membership.Load(); m != nil && m.shared {
		if err := m.session.AckReservations(ctx, naa, 0); err != nil {
			return scsi.Saved{}, err
		}
	}
	r, err := s.node.db.LoadReservations(ctx, naa)
	if err == nil {
		err = s.govern(ctx, naa, r.Revision)
	}
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

// forget says that this node serves a unit no more.
func (s *reservationStore) forget(ctx context.Context, naa string) {
	s.mu.Lock()
	delete(s.last, naa)
	delete(s.turn, naa)
	s.mu.Unlock()
	if s.node.stopping.Load() {
		return // the end of the session tells
	}
	if m := s.node.membership.Load(); m != nil && m.shared {
		if err := m.session.LeaveReservations(ctx, naa); err != nil {
			s.node.log.Warn("the other nodes were not told", "error", err)
		}
	}
}

// renew says anew, after a session was lost, which records govern here.
func (s *reservationStore) renew(ctx context.Context) error {
	s.mu.Lock()
	units := make([]string, 0, len(s.last))
	for naa := range s.last {
		units = append(units, naa)
	}
	s.mu.Unlock()
	var errs []error
	for _, naa := range units {
		errs = append(errs, s.refresh(ctx, naa), s.govern(ctx, naa, 0))
	}
	return errors.Join(errs...)
}

// naaOf is the database's key of a unit that the device server names "naa.HEX".
func naaOf(unit string) string { return strings.ToLower(strings.TrimPrefix(unit, "naa.")) }
