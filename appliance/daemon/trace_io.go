package daemon

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"lunar/appliance/api"
	"lunar/appliance/cluster"
	"lunar/bpf/iotrace"
	"lunar/datapath/trace"
)

// The sources of a stage's times.
const (
	fromLunard = "lunard"
	fromKernel = "kernel"
)

var none = &iotrace.Histogram{}

// looker follows a node's I/O for one who asked.
type looker struct {
	node  *Node
	query api.TraceQuery
	watch *trace.Watch
	ring  *iotrace.Ring // nil: the kernel does not tell
	notes []string

	began   time.Time
	devices map[uint64]iotrace.DeviceTimes
	peers   map[string]api.Histogram
	rings   [3]iotrace.Histogram
}

// TraceIO implements server.Traces.
func (n *Node) TraceIO(ctx context.Context, q api.TraceQuery, fn func(api.TraceIO) error) error {
	if q.Volume != "" {
		if _, err := n.volume(q.Volume); err != nil {
			return err
		}
	}
	l, err := n.openLooker(ctx, q)
	if err != nil {
		return refusal(err)
	}
	defer l.close()
	tick := time.NewTicker(q.Interval)
	defer tick.Stop()
	var over <-chan time.Time
	if q.For > 0 {
		timer := time.NewTimer(q.For)
		defer timer.Stop()
		over = timer.C
	}
	for last := false; !last; {
		select {
		case <-ctx.Done():
			return nil
		case <-n.halt:
			return nil
		case <-over:
			last = true
		case <-tick.C:
		}
		report, err := l.report(ctx)
		if err != nil {
			return refusal(err)
		}
		if err := fn(report); err != nil {
			return err
		}
	}
	return nil
}

func (n *Node) openLooker(ctx context.Context, q api.TraceQuery) (l *looker, err error) {
	l = &looker{node: n, query: q, notes: n.traceNotes()}
	if l.ring, err = n.tracing.kernel.Ring(); err != nil && len(n.tracing.kernel.Missing()) == 0 {
		l.notes = append(l.notes, fmt.Sprintf("node %s does not know times of io_uring: %v", n.name, err))
	}
	if l.watch, err = n.tracing.commands.Watch(ctx); err != nil {
		l.close()
		return nil, err
	}
	l.began = time.Now()
	_, l.devices = l.lookAtDevices()
	l.peers = n.roundTrips()
	return l, nil
}

func (l *looker) close() {
	if l.watch != nil {
		l.watch.Close()
	}
	if l.ring != nil {
		if err := l.ring.Close(); err != nil {
			l.node.log.Warn("the programs that time io_uring were not removed", "error", err)
		}
	}
}

// report is what happened since the last one.
func (l *looker) report(ctx context.Context) (api.TraceIO, error) {
	seen, err := l.watch.Take(ctx)
	if err != nil {
		return api.TraceIO{}, err
	}
	now := time.Now()
	out := api.TraceIO{Node: l.node.name, Time: now, Window: now.Sub(l.began), Notes: slices.Clone(l.notes), Rows: []api.TraceRow{}, Slow: []api.SlowCommand{}}
	l.began = now
	exports := l.node.exports()
	var sum [trace.NumStages]trace.Histogram
	for key, counts := range seen.Counts {
		e := exports.of(key)
		if !l.asked(key, e) {
			continue
		}
		for i := range sum {
			sum[i].Add(&counts.Stages[i])
		}
		out.Rows = append(out.Rows, rows(key, e, counts)...)
	}
	for i := range out.Rows {
		out.Total.Add(&out.Rows[i].Times)
	}
	if seen.Missed > 0 {
		out.Notes = append(out.Notes, fmt.Sprintf("%d commands were not timed: too many at a time", seen.Missed))
	}
	l.limit(&out)
	for i := range sum {
		s := trace.Stage(i)
		out.Stages = append(out.Stages, api.Stage{Name: s.String(), Source: fromLunard, About: s.About(), Times: histogram(&sum[i])})
	}
	out.Stages = append(out.Stages, l.kernelStages()...)
	l.slowest(ctx, &out, seen.Slow, exports)
	return out, nil
}

// asked tells whether a pair of an initiator and a LUN is asked for.
func (l *looker) asked(k trace.Key, e exportOf) bool {
	q := &l.query
	return (q.Volume == "" || q.Volume == e.volume) && (q.Target == "" || q.Target == k.Target) && (q.LUN == nil || *q.LUN == k.LUN && k.Target != "")
}

func rows(k trace.Key, e exportOf, c *trace.Counts) (out []api.TraceRow) {
	for op := range trace.NumOps {
		if h := histogram(&c.Ops[op].Times); h.Count > 0 {
			out = append(out, api.TraceRow{Target: k.Target, LUN: k.LUN, Image: e.image, Initiator: k.Initiator, Operation: op.String(), Bytes: c.Ops[op].Bytes, Times: h})
		}
	}
	return out
}

func (l *looker) limit(out *api.TraceIO) {
	out.Active = len(out.Rows)
	slices.SortFunc(out.Rows, func(a, b api.TraceRow) int {
		return cmp.Or(cmp.Compare(b.Times.Count, a.Times.Count), cmp.Compare(a.Target, b.Target), cmp.Compare(a.LUN, b.LUN),
			cmp.Compare(a.Initiator, b.Initiator), cmp.Compare(a.Operation, b.Operation))
	})
	out.Rows = out.Rows[:min(len(out.Rows), l.query.Limit)]
}

// kernelStages are those that the kernel told since the last report.
func (l *looker) kernelStages() (out []api.Stage) {
	names, devices := l.lookAtDevices()
	for dev, now := range devices {
		before := l.devices[dev]
		for op := range now.Times {
			if h := kernelHistogram(&now.Times[op], &before.Times[op]); h.Count > 0 && names[dev] != "" {
				out = append(out, api.Stage{Name: "block " + iotrace.Operation(op).String(), Source: fromKernel, Device: names[dev], Times: h,
					About: "request of the block device started until completed"})
			}
		}
	}
	l.devices = devices
	if l.ring != nil {
		if now, err := l.ring.Times(); err == nil {
			for op := range now {
				if h := kernelHistogram(&now[op], &l.rings[op]); h.Count > 0 {
					out = append(out, api.Stage{Name: "io_uring " + [...]string{"read", "write", "flush"}[op], Source: fromKernel, Times: h,
						About: "submitted to io_uring until completed, all I/O of lunard"})
				}
			}
			l.rings = now
		}
	}
	for initiator, h := range l.node.rttSince(l.peers) {
		if h.Count > 0 {
			out = append(out, api.Stage{Name: "network", Source: fromKernel, Peer: initiator, Times: h,
				About: "round trip of the connection, smoothed by TCP"})
		}
	}
	l.peers = l.node.roundTrips()
	slices.SortFunc(out, func(a, b api.Stage) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Device, b.Device), cmp.Compare(a.Peer, b.Peer))
	})
	return out
}

// lookAtDevices has those of the volume that is asked for, or of all.
func (l *looker) lookAtDevices() (map[uint64]string, map[uint64]iotrace.DeviceTimes) {
	names, err := l.node.watchDevices(l.query.Volume)
	if err != nil {
		l.node.log.Debug("devices that the kernel does not time", "error", err)
	}
	all, err := l.node.tracing.kernel.Devices()
	if err != nil {
		l.node.log.Debug("times of devices", "error", err)
	}
	out := map[uint64]iotrace.DeviceTimes{}
	for _, d := range all {
		out[d.Device] = d
	}
	return names, out
}

// around is how long before and after a command the cluster's events count as of its moment.
const around = time.Second

// maxAround bounds the events of one command.
const maxAround = 32

// slowest adds the slowest commands that are asked for, with what the cluster did then.
func (l *looker) slowest(ctx context.Context, out *api.TraceIO, slow []trace.Slow, exports exports) {
	for i := range slow {
		e := exports.of(slow[i].Key)
		if len(out.Slow) < l.query.Slowest && l.asked(slow[i].Key, e) {
			out.Slow = append(out.Slow, slowCommand(&slow[i], e))
		}
	}
	if len(out.Slow) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, peerLimit)
	defer cancel()
	events, _, err := l.node.db.Events(ctx)
	if err != nil {
		out.Notes = append(out.Notes, fmt.Sprintf("what the cluster did meanwhile is not known: %v", err))
		return
	}
	for i := range out.Slow {
		e := exports[exportKey{out.Slow[i].Target, out.Slow[i].LUN}]
		out.Slow[i].Events = meanwhile(&out.Slow[i], events, e.volume)
	}
}

// meanwhile are the events around a command that are about its volume, or about none.
func meanwhile(c *api.SlowCommand, events []cluster.Event, volume string) []api.Event {
	from, to := c.Received.Add(-around), c.Received.Add(c.Took+around)
	out := []api.Event{}
	for i := range events {
		e := &events[i]
		if e.Time.After(from) && e.Time.Before(to) && (e.Volume == "" || e.Volume == volume) && len(out) < maxAround {
			out = append(out, eventOf(*e))
		}
	}
	slices.SortStableFunc(out, func(a, b api.Event) int { return a.Time.Compare(b.Time) })
	return out
}

// lunBlock is the block length of every LUN.
const lunBlock = 512

func slowCommand(s *trace.Slow, e exportOf) api.SlowCommand {
	out := api.SlowCommand{
		Received: s.Received, Took: s.Took, Target: s.Key.Target, LUN: s.Key.LUN, Image: e.image, Initiator: s.Key.Initiator,
		Command: commandName(s.CDB[0]), Offset: s.Offset(lunBlock), Bytes: s.Bytes, Status: s.Status, Redirected: s.Redirected, Events: []api.Event{},
	}
	var at time.Duration
	for i, took := range s.Stages {
		if s.Passed[i] {
			out.Stages = append(out.Stages, api.SlowStage{Name: trace.Stage(i).String(), At: at, Took: took})
			at += took
		}
	}
	return out
}

// commandNames are those of SPC-4 and SBC-3 that take time.
var commandNames = map[byte]string{
	0x00: "TEST UNIT READY", 0x08: "READ(6)", 0x0A: "WRITE(6)", 0x12: "INQUIRY", 0x1A: "MODE SENSE(6)", 0x25: "READ CAPACITY(10)",
	0x28: "READ(10)", 0x2A: "WRITE(10)", 0x2E: "WRITE AND VERIFY(10)", 0x2F: "VERIFY(10)", 0x35: "SYNCHRONIZE CACHE(10)",
	0x41: "WRITE SAME(10)", 0x42: "UNMAP", 0x5A: "MODE SENSE(10)", 0x5E: "PERSISTENT RESERVE IN", 0x5F: "PERSISTENT RESERVE OUT",
	0x83: "EXTENDED COPY", 0x88: "READ(16)", 0x89: "COMPARE AND WRITE", 0x8A: "WRITE(16)", 0x8E: "WRITE AND VERIFY(16)",
	0x8F: "VERIFY(16)", 0x91: "SYNCHRONIZE CACHE(16)", 0x93: "WRITE SAME(16)", 0x9E: "SERVICE ACTION IN(16)", 0xA0: "REPORT LUNS",
	0xA3: "MAINTENANCE IN", 0xA8: "READ(12)", 0xAA: "WRITE(12)",
}

func commandName(opcode byte) string {
	if name := commandNames[opcode]; name != "" {
		return name
	}
	return fmt.Sprintf("command %02Xh", opcode)
}
