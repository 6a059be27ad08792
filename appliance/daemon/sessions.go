package daemon

import (
	"encoding/hex"

	"lunar/appliance/api"
)

// localSessions are this node's.
func (n *Node) localSessions() []api.Session {
	all := n.front.Sessions()
	out := make([]api.Session, len(all))
	for i := range all {
		s := &all[i]
		out[i] = api.Session{
			Node: n.name, Initiator: s.Initiator, Alias: s.Alias, Target: s.Target, Remote: s.Remote, Local: s.Local,
			ISID: hex.EncodeToString(s.ISID[:]), TSIH: s.TSIH, Lane: s.Lane, InFlight: s.InFlight,
			Commands: s.Commands, Read: s.BytesOut, Written: s.BytesIn, Since: s.Since,
		}
	}
	return out
}
