package cluster

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// leavePause is between looks at whether this node's vote has gone to another.
const leavePause = 100 * time.Millisecond

// Leave takes this node out of its cluster: its vote goes to another node first, its certificate is
// revoked, and it starts anew with an empty database of its own. The caller has handed over what the
// node coordinates. The last node refuses, since the cluster's database would be lost, and so does a
// node that cannot reach the others, unless forced: then it only forgets the cluster, and must be evicted
// there. ErrAlone: it is in none.
func (db *DB) Leave(ctx context.Context, force bool) error {
	db.change.Lock()
	defer db.change.Unlock()
	s := db.self.Load()
	if s == nil || db.shut {
		return fmt.Errorf("cluster: leave: %w", ErrAlone)
	}
	db.leaving.Store(true)
	defer db.leaving.Store(false)
	wait := startTimeout
	if force {
		wait = stewardCall
	}
	if err := db.sayGoodbye(ctx, s, wait); err != nil {
		if !force {
			return fmt.Errorf("cluster: leave: %w", err)
		}
		db.log.Warn("the node leaves by force; evict it on another node", "err", err)
	}
	if err := db.forget(ctx); err != nil {
		return fmt.Errorf("cluster: leave: %w", err)
	}
	return nil
}

func (db *DB) sayGoodbye(ctx context.Context, s *self, wait time.Duration) error {
	select {
	case <-db.Evicted():
		return nil // the others have forgotten it already
	default:
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	if err := db.setLeaving(ctx, true); err != nil {
		return err
	}
	if !s.identity().External {
		if err := db.handVoteOver(ctx); err != nil {
			back, cancel := context.WithTimeout(context.WithoutCancel(ctx), stewardCall)
			defer cancel()
			return errors.Join(err, db.setLeaving(back, false))
		}
	}
	return db.removeMember(ctx, db.node)
}

func (db *DB) setLeaving(ctx context.Context, leaving bool) error {
	err := retry(func() (bool, error) {
		members, err := db.Members(ctx)
		if err != nil {
			return false, err
		}
		if leaving && len(members) < 2 {
			return false, fmt.Errorf("%w: this is the last node: leaving ends the cluster and its database; "+
				"save it with `lunarctl cluster save` and use --force", ErrInUse)
		}
		_, err = update(ctx, db, memberKeys+db.node, func(m *Member) ([]clientv3.Cmp, error) {
			m.Leaving = leaving
			return nil, nil
		})
		return true, err
	})
	db.kick()
	return err
}

// handVoteOver waits until this node has no vote.
func (db *DB) handVoteOver(ctx context.Context) error {
	for {
		own, err := db.Member(ctx, db.node) // fails for a moment when the vote goes
		if m, _ := db.running(); err == nil && own.EtcdID == 0 && m == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: no other node could take this node's vote in the cluster database; see `lunarctl cluster status`", ErrUnavailable)
		case <-time.After(leavePause):
		}
	}
}

// removeMember takes a node's record away and revokes its certificates.
func (db *DB) removeMember(ctx context.Context, name string) error {
	return retry(func() (bool, error) {
		r, err := db.clusterRecord(ctx)
		if err != nil {
			return false, err
		}
		m, err := get[Member](ctx, db, memberKeys+name)
		if err != nil {
			return false, fmt.Errorf("node %q: %w", name, err)
		}
		ops := []clientv3.Op{clientv3.OpDelete(m.key), clientv3.OpDelete(interfaceKeys + name)}
		for _, serial := range m.value.Serials {
			op, err := put(revokedKeys+serial, &revocation{name, time.Now().UTC()})
			if err != nil {
				return false, err
			}
			ops = append(ops, op)
		}
		return db.changeMembership(ctx, &r, []clientv3.Cmp{m.unchanged()}, ops...)
	})
}

// forget makes this a node without a cluster. What the cluster knew stays with the other nodes. The
// key of sealed secrets is the cluster's and goes too.
func (db *DB) forget(ctx context.Context) error {
	if err := db.halt(true); err != nil {
		db.log.Warn("the database did not stop in order", "err", err)
	}
	if err := dropIdentity(db.options.Dir); err != nil {
		return err
	}
	db.self.Store(nil)
	db.revoked.set(nil)
	db.engine.Lock()
	db.evicted, db.out = make(chan struct{}), false
	db.engine.Unlock()
	return db.open(ctx)
}

// dropIdentity removes what a state directory has of its cluster, the part that makes it a member first.
func dropIdentity(dir string) error {
	gone := filepath.Join(dir, identityDir+".left")
	err := errors.Join(os.RemoveAll(gone), os.Rename(filepath.Join(dir, identityDir), gone), syncDir(dir))
	if err != nil {
		return err
	}
	return errors.Join(os.RemoveAll(gone), os.RemoveAll(filepath.Join(dir, "etcd")), os.RemoveAll(filepath.Join(dir, secretFile)))
}

// Forget makes the node of a state directory one without a cluster, as a forced Leave does, where no lunard can
// run any more: the others have evicted it while it was off. Its copy of the cluster's database is lost. It gives
// the cluster's id. ErrLocked: a lunard runs. ErrAlone: it is in none.
func Forget(dir string) (id string, err error) {
	lock, err := lockDir(dir)
	if err != nil {
		return "", fmt.Errorf("cluster: leave: %w", err)
	}
	defer lock.release()
	s, err := loadSelf(dir)
	if err == nil && s == nil {
		err = ErrAlone
	}
	if err == nil {
		id = s.identity().ID
		err = dropIdentity(dir)
	}
	if err != nil {
		return "", fmt.Errorf("cluster: leave: %w", err)
	}
	return id, nil
}

// Evict takes another node out of the cluster: its record goes, its certificates are revoked, and its
// vote goes to another node. It must have been fenced before, or be known to be off: this cuts it off
// the cluster, not off the disks. Refused for this node itself, and while the voters left would be no
// living majority.
func (db *DB) Evict(ctx context.Context, node string) error {
	if err := db.expel(ctx, node); err != nil {
		return fmt.Errorf("cluster: evict %s: %w", node, err)
	}
	return nil
}

func (db *DB) expel(ctx context.Context, node string) error {
	s := db.self.Load()
	switch {
	case s == nil:
		return ErrAlone
	case node == db.node:
		return fmt.Errorf("%w: this is the node itself; use `lunarctl cluster leave`", ErrInUse)
	}
	m, err := db.Member(ctx, node)
	if err != nil {
		return err
	}
	if m.EtcdID != 0 {
		if err := db.mayLose(ctx, s, m.EtcdID); err != nil {
			return err
		}
	}
	if err := db.removeMember(ctx, node); err != nil {
		return err
	}
	db.kick()
	if m.EtcdID == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if _, err := db.client.MemberRemove(ctx, m.EtcdID); err != nil {
		db.log.Warn("the evicted node's vote is still to be removed; the leader repeats it", "node", node, "err", err)
	}
	return nil
}

// mayLose refuses the removal of a voter that the others could not outlive.
func (db *DB) mayLose(ctx context.Context, s *self, id uint64) error {
	list, err := db.client.MemberList(ctx)
	if err != nil {
		return unavailable(err)
	}
	members, err := db.Members(ctx)
	if err != nil {
		return err
	}
	voters, living := 0, 0
	transport := &http.Transport{TLSClientConfig: db.clientTLS(s, ""), DisableKeepAlives: true}
	pings := &http.Client{Transport: transport, Timeout: pingTimeout}
	for i := range members {
		m := &members[i]
		e := byAddress(list.Members, m.Address)
		if e == nil || e.IsLearner || e.ID == id {
			continue
		}
		voters++
		p, err := askPing(ctx, pings, m.Address)
		living += asInt(err == nil && p.Voter)
	}
	if living < majority(voters) || voters == 0 {
		return fmt.Errorf("%w: of the other %d voters %d live, and the database needs %d; start the others first",
			ErrInUse, voters, living, max(1, majority(voters)))
	}
	return nil
}

// wasEvicted notes that this node's record is gone.
func (db *DB) wasEvicted() {
	db.engine.Lock()
	defer db.engine.Unlock()
	if db.out || db.leaving.Load() {
		return
	}
	db.out = true
	db.log.Error("this node was evicted from its cluster; `lunarctl cluster leave --force` makes it a node of its own")
	close(db.evicted)
}

// Evicted is closed when this node learns that the others have evicted it. A node that cannot reach
// them may not learn it. After Leave it is another channel.
func (db *DB) Evicted() <-chan struct{} {
	db.engine.Lock()
	defer db.engine.Unlock()
	return db.evicted
}
