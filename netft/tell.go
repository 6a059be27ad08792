package netft

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"strings"
	"time"

	kernel "lunar/bpf/heartbeat"
	"lunar/netft/detector"
	"lunar/netft/heartbeat"
)

// tell logs the verdicts and hands them on.
func (f *Fabric) tell(ctx context.Context, verdicts []detector.Verdict) {
	if len(verdicts) == 0 {
		return
	}
	f.mu.Lock()
	names, peers := f.plan.names, f.peers
	f.mu.Unlock()
	now, clock := time.Now(), heartbeat.Now()
	method, _, _ := strings.Cut(f.method, ":")
	for _, d := range verdicts {
		v := Verdict{Verdict: d, Time: now.Add(d.At - clock), Network: names[d.Path.Network], Method: method, Networks: names}
		if i := slices.IndexFunc(peers, func(p Peer) bool { return p.Number == d.Path.Peer }); i >= 0 {
			v.Peer = peers[i].Name
		}
		f.logVerdict(ctx, &v)
		if f.o.Verdict != nil {
			f.o.Verdict(v)
		}
	}
}

func (f *Fabric) logVerdict(ctx context.Context, v *Verdict) {
	level := slog.LevelInfo
	switch v.Kind {
	case detector.NodeLost, detector.DaemonStalled, detector.NetworkDown:
		level = slog.LevelWarn
	case detector.PathSuspect, detector.PathUp, detector.PathLost:
		level = slog.LevelDebug
	}
	args := []any{"node", v.Peer, "method", v.Method}
	if v.Network != "" {
		args = append(args, "network", v.Network)
	}
	if v.Family != 0 {
		args = append(args, "family", v.Family.String())
	}
	if v.Threshold != 0 {
		args = append(args, "silence", v.Silence.Round(time.Millisecond), "threshold", v.Threshold)
	}
	if v.Reason != "" {
		args = append(args, "reason", v.Reason)
	}
	f.log.Log(ctx, level, v.Kind.String(), args...)
}

// Paths tells of every path, sorted by peer, network and family.
func (f *Fabric) Paths() []PathStats {
	f.mu.Lock()
	p, peers, chosen := f.plan, f.peers, f.chosen
	f.mu.Unlock()
	names := map[uint16]string{}
	for _, peer := range peers {
		names[peer.Number] = peer.Name
	}
	now := heartbeat.Now()
	var out []PathStats
	for _, s := range f.heart.Stamps(nil) {
		path := detector.Path{Peer: s.Peer, Network: s.Network, Family: detector.Family(s.Family)}
		if p.names[s.Network] == "" || names[s.Peer] == "" {
			continue // gone since
		}
		stats := statsOf(&s, now)
		stats.Peer, stats.Network = names[s.Peer], p.names[s.Network]
		stats.Local, stats.Remote = p.locals[path], f.remote(path)
		stats.Route = chosen[s.Peer].Cluster.Network == stats.Network
		out = append(out, stats)
	}
	f.addStates(out, p)
	slices.SortFunc(out, func(a, b PathStats) int {
		return cmp.Or(cmp.Compare(a.Number, b.Number), cmp.Compare(a.Network, b.Network), cmp.Compare(a.Family, b.Family))
	})
	return out
}

func (f *Fabric) addStates(stats []PathStats, p plan) {
	down := map[detector.Path]string{}
	for _, w := range p.watched {
		down[w.Path] = w.Down
	}
	f.judging.Lock()
	defer f.judging.Unlock()
	for i := range stats {
		s := &stats[i]
		path := detector.Path{Peer: s.Number, Network: p.numbers[s.Network], Family: s.Family}
		s.State, s.Health, s.Down = f.detector.Path(path), f.detector.Peer(s.Number), down[path]
	}
}

func statsOf(s *kernel.Stamp, now time.Duration) PathStats {
	judged := heartbeat.Judged(s)
	return PathStats{
		Number: s.Peer, Family: detector.Family(s.Family), Last: since(now, judged.Seen), Daemon: since(now, judged.Daemon),
		Sent: s.Sent, Beats: s.Beats, Answers: s.Answers, Gaps: s.Gaps, Reordered: s.Reordered, Duplicates: s.Duplicates,
		Replayed: s.Replayed, Forged: s.Forged, Unsolicited: s.Unsolicited, Restarts: s.Restarts,
		Jitter: s.Jitter, LastRTT: s.LastRTT, MinRTT: s.MinRTT, RTT: s.RTT,
	}
}

// since is negative for never.
func since(now, at time.Duration) time.Duration {
	if at == 0 {
		return -1
	}
	return max(now-at, 0)
}

// Counters counts what belongs to no path.
func (f *Fabric) Counters() Counters {
	c := f.heart.Counters()
	return Counters{
		Forged: c.Forged, Foreign: c.Foreign, Malformed: c.Malformed, Misplaced: c.Misplaced, Unknown: c.Unknown,
		Unsent: c.Unsent, LateTicks: c.LateTicks,
	}
}
