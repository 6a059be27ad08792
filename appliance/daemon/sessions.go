package daemon

import (
	"context"
	"encoding/hex"

	"lunar/appliance/api"
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
