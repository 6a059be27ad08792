package iscsi

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"time"
)

type loadCount = atomic.Int32

// totals counts over all connections that there were.
type totals struct {
	connections, refused, logins, loginFailures, rejects, commands, bytesIn, bytesOut atomic.Uint64
}

// Totals are the server's counters since it was made.
type Totals struct {
	Connections   uint64 // accepted
	Refused       uint64 // beyond MaxConnections or MaxPending
	Logins        uint64 // that reached the full feature phase
	LoginFailures uint64
	Rejects       uint64 // PDUs answered with Reject
	Commands      uint64 // SCSI commands of sessions that have ended and of those that live
	BytesIn       uint64 // written by initiators
	BytesOut      uint64 // read by initiators
}

// connCounters are written by the connection's lane alone and read from anywhere.
type connCounters struct {
	commands, bytesIn, bytesOut atomic.Uint64
	inFlight                    atomic.Int32
}

// SessionInfo describes a session for people.
type SessionInfo struct {
	Initiator, Alias string // Alias is the InitiatorAlias, may be empty
	Target           string // empty in a discovery session
	Discovery        bool
	Remote, Local    string // host:port
	ISID             [6]byte
	TSIH             uint16
	Group            uint16 // target portal group tag
	Lane             int
	HeaderDigest     bool
	DataDigest       bool
	InFlight         int
	Commands         uint64 // since Since
	BytesIn          uint64 // written by the initiator
	BytesOut         uint64 // read by the initiator
	Since            time.Time
}

// Sessions lists the sessions by target, initiator and handle.
func (s *Server) Sessions() []SessionInfo {
	var all []SessionInfo
	for _, x := range s.sessions.list("") {
		all = append(all, x.info())
	}
	slices.SortFunc(all, func(a, b SessionInfo) int {
		return cmp.Or(cmp.Compare(a.Target, b.Target), cmp.Compare(a.Initiator, b.Initiator), cmp.Compare(a.TSIH, b.TSIH))
	})
	return all
}

func (x *session) info() SessionInfo {
	c := x.conn
	return SessionInfo{
		Initiator: x.key.initiator, Alias: x.alias, Target: x.key.target, Discovery: x.discovery,
		Remote: c.remote, Local: c.local.String(), ISID: x.key.isid, TSIH: x.tsih, Group: x.key.group,
		Lane: c.reactor.lane.Index(), HeaderDigest: x.headerDigest, DataDigest: x.dataDigest,
		InFlight: int(c.counters.inFlight.Load()), Commands: c.counters.commands.Load(),
		BytesIn: c.counters.bytesIn.Load(), BytesOut: c.counters.bytesOut.Load(), Since: x.since,
	}
}

// DropSession ends a session at once and returns when it is gone. The initiator may log in anew.
// The error wraps ErrNoSession.
func (s *Server) DropSession(ctx context.Context, tsih uint16) error {
	x := s.sessions.get(tsih)
	if x == nil {
		return fmt.Errorf("%w: %d", ErrNoSession, tsih)
	}
	x.conn.post(func() { x.conn.close(errDropped) })
	return s.await(ctx, func() bool { return s.sessions.get(tsih) != x })
}

// Totals reads the counters.
func (s *Server) Totals() Totals {
	t := &s.totals
	sum := Totals{
		Connections: t.connections.Load(), Refused: t.refused.Load(), Logins: t.logins.Load(),
		LoginFailures: t.loginFailures.Load(), Rejects: t.rejects.Load(),
		Commands: t.commands.Load(), BytesIn: t.bytesIn.Load(), BytesOut: t.bytesOut.Load(),
	}
	for _, x := range s.sessions.list("") {
		sum.Commands += x.conn.counters.commands.Load()
		sum.BytesIn += x.conn.counters.bytesIn.Load()
		sum.BytesOut += x.conn.counters.bytesOut.Load()
	}
	return sum
}

// Connections is the number of connections now, those that log in included.
func (s *Server) Connections() int { return int(s.open.Load()) }
