package daemon

import (
	"context"

	"lunar/appliance/api"
	"lunar/appliance/server"
)

// Stats is the snapshot for the metrics.
func (n *Node) Stats() server.Stats {
	t := n.front.Totals()
	s := server.Stats{
		Sessions: len(n.front.Sessions()), Connections: n.front.Connections(),
		ConnectionsTotal: t.Connections, RefusedTotal: t.Refused,
		LoginsTotal: t.Logins, LoginFailuresTotal: t.LoginFailures, RejectsTotal: t.Rejects,
		CommandsTotal: t.Commands, ReadBytesTotal: t.BytesOut, WriteBytesTotal: t.BytesIn,
		PoolBuffers: n.engine.Pool().InUse(), PoolBytes: n.poolBytes, Lanes: n.engine.Rings(),
		Jobs: len(n.jobs.list()), DatabaseUp: n.database.why() == "", Heartbeats: n.heartbeatStats(),
	}
	for _, v := range n.sortedVolumes() {
		s.Volumes = append(s.Volumes, n.volumeStats(v))
	}
	n.countLUNs(&s)
	n.stateStats(&s)
	return s
}

func (n *Node) volumeStats(v *volumeState) server.VolumeStats {
	out := server.VolumeStats{Name: n.record(v).Name, State: api.StateAbsent}
	p, release := v.tryBorrow()
	if p == nil {
		return out
	}
	defer release()
	if seat := v.seat.Load(); seat != nil {
		out.Coordinates, out.Epoch = seat.coordinator(0) != nil, seat.knownEpoch()
	}
	status := p.vol.Status()
	out.State, _ = p.state()
	out.Counters = p.counters()
	out.Images, out.Waiting = status.Images, status.Waiting
	space := p.lastSpace()
	if space.Size == 0 {
		space = p.askSpace(context.Background(), lookInterval)
	}
	out.Size, out.Free = space.Size, space.Free
	return out
}

func (n *Node) countLUNs(s *server.Stats) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	s.Targets = len(n.targets)
	for _, t := range n.targets {
		s.LUNs += len(t.luns)
		for _, l := range t.luns {
			if l.unit == nil {
				s.LUNsUnavailable++
			}
		}
	}
}
