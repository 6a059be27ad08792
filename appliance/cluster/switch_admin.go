package cluster

import (
	"context"
	"io"

	clientv3 "go.etcd.io/etcd/client/v3"
)

type switchedCluster struct{ x *exchange }

// MemberList implements clientv3.Cluster.
func (s switchedCluster) MemberList(ctx context.Context, opts ...clientv3.OpOption) (*clientv3.MemberListResponse, error) {
	return through(ctx, s.x, func(c *clientv3.Client) (*clientv3.MemberListResponse, error) { return c.MemberList(ctx, opts...) })
}

// MemberAdd implements clientv3.Cluster.
func (s switchedCluster) MemberAdd(ctx context.Context, urls []string) (*clientv3.MemberAddResponse, error) {
	return through(ctx, s.x, func(c *clientv3.Client) (*clientv3.MemberAddResponse, error) { return c.MemberAdd(ctx, urls) })
}

// MemberAddAsLearner implements clientv3.Cluster.
func (s switchedCluster) MemberAddAsLearner(ctx context.Context, urls []string) (*clientv3.MemberAddResponse, error) {
	return through(ctx, s.x, func(c *clientv3.Client) (*clientv3.MemberAddResponse, error) { return c.MemberAddAsLearner(ctx, urls) })
}

// MemberRemove implements clientv3.Cluster.
func (s switchedCluster) MemberRemove(ctx context.Context, id uint64) (*clientv3.MemberRemoveResponse, error) {
	return through(ctx, s.x, func(c *clientv3.Client) (*clientv3.MemberRemoveResponse, error) { return c.MemberRemove(ctx, id) })
}

// MemberUpdate implements clientv3.Cluster.
func (s switchedCluster) MemberUpdate(ctx context.Context, id uint64, urls []string) (*clientv3.MemberUpdateResponse, error) {
	return through(ctx, s.x, func(c *clientv3.Client) (*clientv3.MemberUpdateResponse, error) { return c.MemberUpdate(ctx, id, urls) })
}

// MemberPromote implements clientv3.Cluster.
func (s switchedCluster) MemberPromote(ctx context.Context, id uint64) (*clientv3.MemberPromoteResponse, error) {
	return through(ctx, s.x, func(c *clientv3.Client) (*clientv3.MemberPromoteResponse, error) { return c.MemberPromote(ctx, id) })
}

type switchedMaintenance struct{ x *exchange }

// AlarmList implements clientv3.Maintenance.
func (s switchedMaintenance) AlarmList(ctx context.Context) (*clientv3.AlarmResponse, error) {
	return through(ctx, s.x, func(c *clientv3.Client) (*clientv3.AlarmResponse, error) { return c.AlarmList(ctx) })
}

// AlarmDisarm implements clientv3.Maintenance.
func (s switchedMaintenance) AlarmDisarm(ctx context.Context, m *clientv3.AlarmMember) (*clientv3.AlarmResponse, error) {
	return through(ctx, s.x, func(c *clientv3.Client) (*clientv3.AlarmResponse, error) { return c.AlarmDisarm(ctx, m) })
}

// Defragment implements clientv3.Maintenance.
func (s switchedMaintenance) Defragment(ctx context.Context, endpoint string) (*clientv3.DefragmentResponse, error) {
	return through(ctx, s.x, func(c *clientv3.Client) (*clientv3.DefragmentResponse, error) { return c.Defragment(ctx, endpoint) })
}

// Status implements clientv3.Maintenance.
func (s switchedMaintenance) Status(ctx context.Context, endpoint string) (*clientv3.StatusResponse, error) {
	return through(ctx, s.x, func(c *clientv3.Client) (*clientv3.StatusResponse, error) { return c.Status(ctx, endpoint) })
}

// HashKV implements clientv3.Maintenance.
func (s switchedMaintenance) HashKV(ctx context.Context, endpoint string, rev int64) (*clientv3.HashKVResponse, error) {
	return through(ctx, s.x, func(c *clientv3.Client) (*clientv3.HashKVResponse, error) { return c.HashKV(ctx, endpoint, rev) })
}

// SnapshotWithVersion implements clientv3.Maintenance.
func (s switchedMaintenance) SnapshotWithVersion(ctx context.Context) (*clientv3.SnapshotResponse, error) {
	return through(ctx, s.x, func(c *clientv3.Client) (*clientv3.SnapshotResponse, error) { return c.SnapshotWithVersion(ctx) })
}

// Snapshot implements clientv3.Maintenance.
func (s switchedMaintenance) Snapshot(ctx context.Context) (io.ReadCloser, error) {
	r, err := s.SnapshotWithVersion(ctx)
	if err != nil {
		return nil, err
	}
	return r.Snapshot, nil
}

// MoveLeader implements clientv3.Maintenance.
func (s switchedMaintenance) MoveLeader(ctx context.Context, id uint64) (*clientv3.MoveLeaderResponse, error) {
	return through(ctx, s.x, func(c *clientv3.Client) (*clientv3.MoveLeaderResponse, error) { return c.MoveLeader(ctx, id) })
}

// Downgrade implements clientv3.Maintenance.
func (s switchedMaintenance) Downgrade(ctx context.Context, action clientv3.DowngradeAction, version string) (*clientv3.DowngradeResponse, error) {
	return through(ctx, s.x, func(c *clientv3.Client) (*clientv3.DowngradeResponse, error) {
		return c.Downgrade(ctx, action, version)
	})
}
