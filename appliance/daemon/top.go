package daemon

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"time"

	"lunar/appliance/api"
	"lunar/appliance/cluster"
	"lunar/datapath/trace"
)

const pathTop = "/node/v1/top"

// shareFactor is how many pairs of an initiator and a LUN a node tells another one, for each that is asked for. What is
// beyond is in the node's and the volumes' numbers only.
const shareFactor = 4

// opTimes are the commands of one kind in a window.
type opTimes struct {
	Bytes uint64        `json:"bytes"`
	Times api.Histogram `json:"times"`
}

type opsTimes [trace.NumOps]opTimes

func (o *opsTimes) add(more *opsTimes) {
	for i := range o {
		o[i].Bytes += more[i].Bytes
		o[i].Times.Add(&more[i].Times)
	}
}

func (o *opsTimes) count() (n uint64) {
	for i := range o {
		n += o[i].Times.Count
	}
	return n
}

// topPair is an initiator on a LUN.
type topPair struct {
	Initiator string   `json:"initiator"`
	Target    string   `json:"target"`
	LUN       uint16   `json:"lun"`
	Image     string   `json:"image"`
	Volume    string   `json:"volume"`
	Ops       opsTimes `json:"ops"`
}

// topShare is one node's part of a Top.
type topShare struct {
	Node     string                   `json:"node"`
	Window   time.Duration            `json:"windowNs"`
	Sessions int                      `json:"sessions"`
	Trace    string                   `json:"trace"`
	Ops      opsTimes                 `json:"ops"` // of all
	Volumes  map[string]*topVolume    `json:"volumes"`
	Pairs    []topPair                `json:"pairs"` // the busiest first
	Left     int                      `json:"left"`  // pairs that are not among them
	RTT      map[string]api.Histogram `json:"rtt"`   // by initiator
	Notes    []string                 `json:"notes"`
}

type topVolume struct {
	Ops   opsTimes  `json:"ops"`
	Split api.Split `json:"split"`
}

// Top implements server.Traces: all nodes look at the same time.
func (n *Node) Top(ctx context.Context, q api.TopQuery) (api.Top, error) {
	own := make(chan heard[topShare], 1)
	go func() {
		share, err := n.topShare(ctx, q)
		own <- heard[topShare]{value: share, err: err}
	}()
	path := pathTop + "?" + q.Values().Encode()
	others := askPeers[topShare](ctx, n, n.peers(), q.Window+peerLimit, http.MethodGet, path, nil)
	mine := <-own
	if mine.err != nil {
		return api.Top{}, refusal(mine.err)
	}
	out := api.Top{Node: n.name, Time: time.Now(), Window: q.Window}
	shares := []topShare{mine.value}
	for i := range others {
		switch h := &others[i]; {
		case h.err == nil:
			shares = append(shares, h.value)
		case n.hasSession(h.peer.Name):
			n.log.Debug("a node does not tell its I/O", "node", h.peer.Name, "error", h.err)
			out.Silent = append(out.Silent, h.peer.Name)
		}
	}
	n.joinShares(ctx, &out, shares, q)
	return out, nil
}

// answerTop tells another node this one's share.
func (n *Node) answerTop(mux *http.ServeMux) {
	mux.HandleFunc("GET "+pathTop, func(w http.ResponseWriter, r *http.Request) {
		q, err := api.ParseTopQuery(r.URL.Query())
		if err == nil {
			var share topShare
			if share, err = n.topShare(r.Context(), q); err == nil {
				n.tell(w, share, nil)
				return
			}
		}
		n.tell(w, nil, api.Errorf(api.Unavailable, "node %s: %v", n.name, err))
	})
}

// topShare looks for the query's window.
func (n *Node) topShare(ctx context.Context, q api.TopQuery) (topShare, error) {
	w, err := n.tracing.commands.Watch(ctx)
	if err != nil {
		return topShare{}, err
	}
	defer w.Close()
	began, split, peers := time.Now(), n.splits(), n.roundTrips()
	timer := time.NewTimer(q.Window)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
		return topShare{}, ctx.Err()
	}
	seen, err := w.Take(ctx)
	if err != nil {
		return topShare{}, err
	}
	out := topShare{Node: n.name, Window: time.Since(began), Sessions: len(n.front.Sessions()), Trace: n.tracing.about(), Notes: n.traceNotes(),
		Volumes: map[string]*topVolume{}, RTT: n.rttSince(peers)}
	for name, now := range n.splits() {
		out.Volumes[name] = &topVolume{Split: now.since(split[name], out.Window)}
	}
	out.fill(&seen, n.exports(), q)
	return out, nil
}

// fill sums up what was seen.
func (s *topShare) fill(seen *trace.Seen, exports exports, q api.TopQuery) {
	for key, counts := range seen.Counts {
		e := exports.of(key)
		p := topPair{Initiator: key.Initiator, Target: key.Target, LUN: key.LUN, Image: e.image, Volume: e.volume}
		for i := range p.Ops {
			p.Ops[i] = opTimes{Bytes: counts.Ops[i].Bytes, Times: histogram(&counts.Ops[i].Times)}
		}
		s.Ops.add(&p.Ops)
		if v := s.Volumes[e.volume]; v != nil {
			v.Ops.add(&p.Ops)
		}
		if key == (trace.Key{}) {
			s.Notes = append(s.Notes, fmt.Sprintf("node %s counts initiators and LUNs beyond %d together: they are in its own numbers only", s.Node, trace.MaxSeries))
			continue
		}
		s.Pairs = append(s.Pairs, p)
	}
	if seen.Missed > 0 {
		s.Notes = append(s.Notes, fmt.Sprintf("node %s did not time %d commands: too many at a time", s.Node, seen.Missed))
	}
	slices.SortFunc(s.Pairs, func(a, b topPair) int { return busier(&a.Ops, &b.Ops, q.Order) })
	if most := q.Limit * shareFactor; len(s.Pairs) > most {
		s.Left = len(s.Pairs) - most
		s.Pairs = s.Pairs[:most]
		s.Notes = append(s.Notes, fmt.Sprintf("%d more pairs of initiator and LUN are in the numbers of node %s and its volumes only: see --limit", s.Left, s.Node))
	}
}

// busier orders by what the query wants most of, the most first.
func busier(a, b *opsTimes, by api.TopOrder) int {
	switch by {
	case api.ByBandwidth:
		return cmp.Compare(b.bytes(), a.bytes())
	case api.ByLatency:
		return cmp.Compare(b.all().Quantile(0.99), a.all().Quantile(0.99))
	}
	return cmp.Compare(b.count(), a.count())
}

func (o *opsTimes) bytes() (n uint64) {
	for i := range o {
		n += o[i].Bytes
	}
	return n
}

func (o *opsTimes) all() *api.Histogram {
	h := &api.Histogram{}
	for i := range o {
		h.Add(&o[i].Times)
	}
	return h
}

// rates are per second of a window.
func (o *opsTimes) rates(window time.Duration) api.Rates {
	return api.Rates{
		Read: flow(o[trace.Read].Bytes, &o[trace.Read].Times, window), Write: flow(o[trace.Write].Bytes, &o[trace.Write].Times, window),
		Other: flow(o[trace.Other].Bytes, &o[trace.Other].Times, window), All: flow(o.bytes(), o.all(), window),
	}
}

func flow(bytes uint64, h *api.Histogram, window time.Duration) api.Flow {
	seconds := window.Seconds()
	f := api.Flow{IOPS: float64(h.Count) / seconds, Bandwidth: float64(bytes) / seconds, P50: h.Quantile(0.5), P99: h.Quantile(0.99)}
	for i, n := range h.Buckets {
		if n > 0 {
			f.Max = api.BucketEnd(i)
		}
	}
	return f
}

// splits are the volumes' I/Os, by name.
func (n *Node) splits() map[string]splitCount {
	out := map[string]splitCount{}
	for _, v := range n.sortedVolumes() {
		c := splitCount{}
		if p, release := v.tryBorrow(); p != nil {
			k := p.counters()
			c = splitCount{k.DirectRead.IOs, k.DirectWrite.IOs, k.RedirectedRead.IOs, k.RedirectedWrite.IOs}
			release()
		}
		out[n.record(v).Name] = c
	}
	return out
}

// splitCount is direct reads and writes, then redirected ones.
type splitCount [4]uint64

// since is what came in a window; a volume that came on line in it counts from zero.
func (c splitCount) since(before splitCount, window time.Duration) api.Split {
	var rate [4]float64
	for i := range c {
		if c[i] >= before[i] {
			rate[i] = float64(c[i]-before[i]) / window.Seconds()
		}
	}
	return api.Split{DirectRead: rate[0], DirectWrite: rate[1], RedirectedRead: rate[2], RedirectedWrite: rate[3]}
}

// roundTrips are those of the connections, by initiator.
func (n *Node) roundTrips() map[string]api.Histogram {
	out := map[string]api.Histogram{}
	names := n.initiators()
	all, err := n.tracing.kernel.Peers()
	if err != nil {
		n.log.Debug("round trips of connections", "error", err)
	}
	for i := range all {
		if name := names[all[i].Peer.String()]; name != "" {
			h := out[name]
			more := kernelHistogram(&all[i].Times, none)
			h.Add(&more)
			out[name] = h
		}
	}
	return out
}

// rttSince is what came since before.
func (n *Node) rttSince(before map[string]api.Histogram) map[string]api.Histogram {
	now := n.roundTrips()
	for name, h := range now {
		was := before[name]
		if h.Count < was.Count { // other connections are there now
			continue
		}
		h.Count -= was.Count
		h.Sum -= was.Sum
		for i := range h.Buckets {
			h.Buckets[i] -= min(was.Buckets[i], h.Buckets[i])
		}
		now[name] = h
	}
	return now
}

// joined gathers what nodes tell of one thing.
type joined struct {
	ops   opsTimes
	nodes []string
	pair  topPair
}

// joinShares makes the cluster's view of the nodes' shares.
func (n *Node) joinShares(ctx context.Context, out *api.Top, shares []topShare, q api.TopQuery) {
	luns, initiators, volumes := map[exportKey]*joined{}, map[string]*joined{}, map[string]*topVolume{}
	rtt := map[string]*api.Histogram{}
	for i := range shares {
		s := &shares[i]
		out.Notes = append(out.Notes, s.Notes...)
		row := api.TopNode{Node: s.Node, Sessions: s.Sessions, Rates: s.Ops.rates(s.Window), Trace: s.Trace}
		for name, v := range s.Volumes {
			addSplit(&row.Split, &v.Split)
			all := at(volumes, name)
			all.Ops.add(&v.Ops)
			addSplit(&all.Split, &v.Split)
		}
		for name, h := range s.RTT {
			at(rtt, name).Add(&h)
		}
		for j := range s.Pairs {
			p := &s.Pairs[j]
			at(luns, exportKey{p.Target, p.LUN}).add(p, s.Node)
			at(initiators, p.Initiator).add(p, s.Node)
		}
		out.Nodes = append(out.Nodes, row)
	}
	slices.SortFunc(out.Nodes, func(a, b api.TopNode) int { return cmp.Compare(a.Node, b.Node) })
	n.listVolumes(ctx, out, volumes)
	out.LUNsActive, out.InitiatorsActive = len(luns), len(initiators)
	out.LUNs, out.Initiators = []api.TopLUN{}, []api.TopInitiator{}
	for _, j := range busiest(luns, q) {
		out.LUNs = append(out.LUNs, api.TopLUN{Target: j.pair.Target, LUN: j.pair.LUN, Image: j.pair.Image, Volume: j.pair.Volume, Nodes: j.nodes, Rates: j.ops.rates(out.Window)})
	}
	for _, j := range busiest(initiators, q) {
		row := api.TopInitiator{Initiator: j.pair.Initiator, Nodes: j.nodes, Rates: j.ops.rates(out.Window)}
		if h := rtt[j.pair.Initiator]; h != nil {
			row.RTT = h.Quantile(0.5)
		}
		out.Initiators = append(out.Initiators, row)
	}
}

func (n *Node) listVolumes(ctx context.Context, out *api.Top, volumes map[string]*topVolume) {
	out.Volumes = []api.TopVolume{}
	view := n.lastView(ctx)
	for _, name := range slices.Sorted(maps.Keys(volumes)) {
		v := volumes[name]
		row := api.TopVolume{Volume: name, Rates: v.Ops.rates(out.Window), Split: v.Split}
		if state, err := n.volume(name); err == nil {
			row.Coordinator = coordinatorOf(view, state.id)
		}
		out.Volumes = append(out.Volumes, row)
	}
}

// at is the value of a key, made when it is missing.
func at[K comparable, V any](m map[K]*V, key K) *V {
	if m[key] == nil {
		m[key] = new(V)
	}
	return m[key]
}

func (j *joined) add(p *topPair, node string) {
	j.ops.add(&p.Ops)
	j.pair = *p
	if !slices.Contains(j.nodes, node) {
		j.nodes = append(j.nodes, node)
	}
}

// busiest are the first by the query's order, as many as its limit.
func busiest[K comparable](m map[K]*joined, q api.TopQuery) []*joined {
	all := slices.Collect(maps.Values(m))
	slices.SortFunc(all, func(a, b *joined) int {
		return cmp.Or(busier(&a.ops, &b.ops, q.Order), cmp.Compare(a.pair.Target, b.pair.Target),
			cmp.Compare(a.pair.LUN, b.pair.LUN), cmp.Compare(a.pair.Initiator, b.pair.Initiator))
	})
	return all[:min(len(all), q.Limit)]
}

func addSplit(sum, s *api.Split) {
	sum.DirectRead += s.DirectRead
	sum.DirectWrite += s.DirectWrite
	sum.RedirectedRead += s.RedirectedRead
	sum.RedirectedWrite += s.RedirectedWrite
}

// coordinatorOf is "" while there is none.
func coordinatorOf(view *cluster.View, volumeID string) string {
	if c := view.Seats[volumeID].Coordinator; c != nil {
		return c.Node
	}
	return ""
}
