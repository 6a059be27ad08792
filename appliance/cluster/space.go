package cluster

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sys/unix"
)

// etcd dies when its disk is full. So the last of the disk is kept for what keeps the cluster alive
// (elections, members, reservations), and what a user adds, and the event log, are refused before.
const (
	spaceKept  = 64 << 20
	spaceCheck = time.Second
	alarmCheck = 2 * time.Second
)

// watchSpace looks at the disk, and clears the database's own alarm.
func (db *DB) watchSpace(ctx context.Context) {
	tick := time.NewTicker(spaceCheck)
	defer tick.Stop()
	db.checkDisk()
	for beats := 1; ; beats++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		db.checkDisk()
		if beats%int(alarmCheck/spaceCheck) != 0 {
			continue
		}
		if err := db.clearAlarm(ctx); err != nil && ctx.Err() == nil {
			db.log.Warn("the cluster database's space was not cleared", "err", err)
		}
	}
}

func (db *DB) checkDisk() {
	var st unix.Statfs_t
	if unix.Statfs(db.options.Dir, &st) != nil {
		return
	}
	low := st.Bavail*uint64(st.Bsize) < db.options.spaceKept()
	if db.low.Swap(low) == low {
		return
	}
	if low {
		db.log.Error("the disk of the state directory is nearly full: changes are refused until there is room", "dir", db.options.Dir)
		return
	}
	db.log.Info("the disk of the state directory has room again", "dir", db.options.Dir)
}

// spaceKept is less on a disk that is small itself, as in tests.
func (o *Options) spaceKept() uint64 {
	var st unix.Statfs_t
	if unix.Statfs(o.Dir, &st) != nil {
		return spaceKept
	}
	return min(spaceKept, st.Blocks*uint64(st.Bsize)/4)
}

// refuseGrowth is ErrFull when the disk is nearly full and ops add what a user could do without.
func (db *DB) refuseGrowth(ops []clientv3.Op) error {
	if !db.low.Load() {
		return nil
	}
	for _, op := range ops {
		if op.IsPut() && grows(string(op.KeyBytes())) {
			return fmt.Errorf("%w: the disk of %s is nearly full; free some space there", ErrFull, db.options.Dir)
		}
	}
	return nil
}

func grows(key string) bool {
	for _, prefix := range []string{nameKeys, targetKeys, eventKeys, tokenKeys} {
		if strings.HasPrefix(key, prefix) {
			return true
		}
	}
	return false
}

// clearAlarm makes room in a database that reached its quota, and lets it take changes again. On a
// node that runs no member there is nothing to do.
func (db *DB) clearAlarm(ctx context.Context) error {
	m, _ := db.running()
	if m == nil || !m.alive() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	alarms, err := m.client.AlarmList(ctx)
	if err != nil {
		return err
	}
	for _, a := range alarms.Alarms {
		if a.Alarm == etcdserverpb.AlarmType_NOSPACE && a.MemberID == m.id() {
			return errors.Join(db.makeRoom(ctx, m), disarm(ctx, m, (*clientv3.AlarmMember)(a)))
		}
	}
	return nil
}

func (db *DB) makeRoom(ctx context.Context, m *member) error {
	db.log.Error("the cluster database has used up its space; old revisions are cleared", "quota", db.options.quota)
	resp, err := m.client.Get(ctx, root, clientv3.WithCountOnly())
	if err != nil {
		return err
	}
	if _, err := m.client.Compact(ctx, resp.Header.Revision, clientv3.WithCompactPhysical()); err != nil &&
		!strings.Contains(err.Error(), "compacted") {
		return err
	}
	return m.etcd.Server.Backend().Defrag() // the in-process client's own call has no health server to tell
}

// disarm takes the alarm back if there is room now.
func disarm(ctx context.Context, m *member, a *clientv3.AlarmMember) error {
	if m.etcd.Server.Backend().Size() >= m.etcd.Config().QuotaBackendBytes {
		return fmt.Errorf("%w: the cluster database holds too much", ErrFull)
	}
	_, err := m.client.AlarmDisarm(ctx, a)
	return err
}
