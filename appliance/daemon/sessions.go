package daemon

import (
	"context"
	"encoding/hex"

	"lunar/appliance/api"
	"lunar/appliance/server"
)

// Sessions implements server.Sessions.
func (n *Node) Sessions(context.Context) ([]api.Session, error) {
	all := n.front.Sessions()
	out := make([]api.Session, len(all))
	for i := range all {
		s := &all[i]
		out[i] = api.Session{
			Initiator: s.Initiator, Alias: s.Alias, Target: s.Target, Remote: s.Remote, Local: s.Local,
			ISID: hex.EncodeToString(s.ISID[:]), TSIH: s.TSIH, Lane: s.Lane, InFlight: s.InFlight,
			Commands: s.Commands, Read: s.BytesOut, Written: s.BytesIn, Since: s.Since,
		}
	}
	return out, nil
}

// Stats is the snapshot for the metrics.
func (n *Node) Stats() server.Stats {
	s := server.Stats{
		Sessions: len(n.front.Sessions()), Lanes: n.engine.Rings(),
		DatabaseUp:  n.database.why() == "",
		PoolBuffers: n.engine.Pool().InUse(), PoolBytes: n.poolBytes,
	}
	for _, v := range n.sortedVolumes() {
		vs := server.VolumeStats{Name: n.record(v).Name, State: api.StateAbsent}
		if p, release := v.borrow(); p != nil {
			vs.State, _ = p.state()
			vs.Counters = p.counters()
			release()
		}
		s.Volumes = append(s.Volumes, vs)
	}
	n.mu.RLock()
	defer n.mu.RUnlock()
	s.Targets = len(n.targets)
	for _, t := range n.targets {
		s.LUNs += len(t.luns)
	}
	return s
}
