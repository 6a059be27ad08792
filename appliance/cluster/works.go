package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// works is what runs beside the database on a node in a cluster. stop ends it and waits.
type works struct {
	cancel context.CancelFunc
	done   sync.WaitGroup
	kick   chan struct{} // asks the steward to look at once
}

// begin starts the works of a node in a cluster, and the watch over the disk of any.
func (db *DB) begin(ctx context.Context, s *self) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	w := &works{cancel: cancel, kick: make(chan struct{}, 1)}
	w.done.Go(func() { db.watchSpace(ctx) })
	if db.ledger != nil {
		w.done.Go(func() { db.ledger.keep(ctx) })
	}
	db.engine.Lock()
	db.works = w
	db.engine.Unlock()
	if s == nil {
		return
	}
	api, err := db.serveNodes(s)
	if err != nil {
		db.log.Error("the node API does not run: no node can join through this one, and it counts as dead for the voters' rule",
			"address", s.identity().Address, "err", err)
	}
	if api != nil {
		w.done.Go(func() { api.run(ctx) })
	}
	w.done.Go(func() { db.followRevocations(ctx, s) })
	w.done.Go(func() { newSteward(db, s, w.kick).run(ctx) })
}

func (db *DB) stopWorks() {
	db.engine.Lock()
	w := db.works
	db.works = nil
	db.engine.Unlock()
	if w == nil {
		return
	}
	w.cancel()
	w.done.Wait()
}

func (db *DB) kick() {
	db.engine.Lock()
	defer db.engine.Unlock()
	if db.works == nil {
		return
	}
	select {
	case db.works.kick <- struct{}{}:
	default:
	}
}

// openMember starts the database of a node in a cluster: through its own voter, if it is one.
func (db *DB) openMember(ctx context.Context, s *self) error {
	id := s.identity()
	db.revoked.set(id.Revoked)
	if err := db.networkUp(ctx, s); err != nil {
		return err
	}
	last := newLastWord()
	log := zapLogger(db.log, last)
	if id.External {
		db.self.Store(s)
		remote, err := db.external(ctx, last)
		if err != nil {
			return err
		}
		last.running.Store(true)
		db.setEngine(nil, remote)
		db.x.set(remote, false)
		return nil
	}
	remote, err := db.dialVoters(s, log)
	if err != nil {
		return err
	}
	db.self.Store(s)
	db.setEngine(nil, remote)
	if !id.Voter || !wal.Exist(db.walDir()) {
		last.running.Store(true)
		db.x.set(remote, false)
		return s.update(func(id *membership) { id.Voter = false })
	}
	return db.openVoter(ctx, s)
}

func (db *DB) etcdDir() string { return filepath.Join(db.options.Dir, "etcd") }
func (db *DB) walDir() string  { return filepath.Join(db.etcdDir(), "member", "wal") }

// openVoter starts the etcd member whose files are here. If the cluster has removed it, the node goes
// on as a client of the others.
func (db *DB) openVoter(ctx context.Context, s *self) error {
	m, err := db.launch(s, "")
	if err != nil {
		return err
	}
	switch err := m.ready(ctx); {
	case err != nil && db.wasRemoved(ctx, m):
		db.log.Info("the cluster has given this node's vote to another")
		return errors.Join(m.stop(), db.withoutVoter(s))
	case err != nil:
		return errors.Join(err, m.stop())
	}
	_, remote := db.running()
	db.setEngine(m, remote)
	if !m.votes() {
		db.x.set(remote, false)
		return nil
	}
	db.x.set(m.client, false)
	return nil
}

// wasRemoved tells whether a member has ended because the cluster goes on without it.
func (db *DB) wasRemoved(ctx context.Context, m *member) bool {
	if !m.over() {
		return false
	}
	_, remote := db.running()
	if m.removed() || remote == nil {
		return m.removed()
	}
	ctx, cancel := context.WithTimeout(ctx, stewardCall)
	defer cancel()
	list, err := remote.MemberList(ctx)
	return err == nil && !slices.ContainsFunc(list.Members, func(e *etcdserverpb.Member) bool { return e.ID == m.id() })
}

// launch starts an etcd member with listeners.
func (db *DB) launch(s *self, peers string) (*member, error) {
	last := newLastWord()
	calls := newCallGuard(db.revoked.has)
	cfg := clusterConfig(db.etcdDir(), db.options, s, calls, peers, zapLogger(db.log, last))
	m, err := runMember(db.etcdDir(), cfg, calls, last.died)
	if err != nil {
		calls.end()
		return nil, addressError(err, s.identity().Address)
	}
	last.running.Store(true)
	return m, nil
}

// withoutVoter makes the node a client of the others and forgets its voter's files.
func (db *DB) withoutVoter(s *self) error {
	_, remote := db.running()
	db.setEngine(nil, remote)
	db.x.set(remote, false)
	if err := s.update(func(id *membership) { id.Voter = false }); err != nil {
		return err
	}
	return os.RemoveAll(db.etcdDir())
}

// retryPause is between attempts at what runs for ever.
const retryPause = time.Second

// forEver repeats fn until ctx ends.
func forEver(ctx context.Context, fn func() error) {
	for ctx.Err() == nil {
		_ = fn()
		select {
		case <-ctx.Done():
		case <-time.After(retryPause):
		}
	}
}

// followRevocations keeps the list of revoked certificates, in memory, on disk, and for etcd's ports.
func (db *DB) followRevocations(ctx context.Context, s *self) {
	forEver(ctx, func() error {
		return db.watchPrefix(ctx, revokedKeys, func() error {
			err := db.readRevocations(ctx, s)
			if err != nil && ctx.Err() == nil && status.Code(err) != codes.PermissionDenied {
				db.log.Warn("the list of revoked certificates is not current", "err", err)
			}
			return err
		})
	})
}

func (db *DB) readRevocations(ctx context.Context, s *self) error {
	records, _, err := list[revocation](ctx, db, revokedKeys)
	if err != nil {
		return err
	}
	serials := make([]string, len(records))
	for i := range records {
		serials[i] = records[i].key[len(revokedKeys):]
	}
	if slices.Equal(serials, db.revoked.list()) {
		return nil
	}
	db.revoked.set(serials)
	r, err := db.clusterRecord(ctx)
	if err != nil {
		return err
	}
	ca, err := db.authority(&r.value)
	if err != nil {
		return err
	}
	crl, err := ca.revocations(serials, time.Now())
	if err != nil {
		return err
	}
	if err := replaceFile(s.path(crlFile), crl); err != nil {
		return err
	}
	return s.update(func(id *membership) { id.Revoked = serials })
}

func addressError(err error, address string) error {
	text := err.Error()
	for _, sign := range []string{"cannot assign requested address", "address already in use"} {
		if strings.Contains(text, sign) {
			return fmt.Errorf("%w: %s: %s; check cluster.address and what else uses ports %d to %d", ErrAddress, address, sign, clientPort, nodePort)
		}
	}
	return err
}
