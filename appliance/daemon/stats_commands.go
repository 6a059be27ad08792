package daemon

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"lunar/appliance/api"
	"lunar/appliance/server"
	"lunar/datapath/trace"
)

// ledger adds up what the tracer counted from scrape to scrape, since counters only rise.
type ledger struct {
	mu         sync.Mutex   // guards what follows, and has one scrape at a time ask the lanes
	watch      *trace.Watch // nil: none was asked for yet
	operations [trace.NumOps]api.Histogram
	stages     [trace.NumStages]api.Histogram
	luns       map[lunOp]*[2]uint64 // commands and bytes
	initiators map[initiatorOp]*[2]uint64
}

type lunOp struct {
	target string
	lun    uint16
	op     trace.Op
}

type initiatorOp struct {
	initiator string
	op        trace.Op
}

// commandStats is nil where commands are not timed, or the lanes do not answer within ctx.
func (n *Node) commandStats(ctx context.Context) *server.CommandStats {
	if n.tracing == nil || !n.tracing.commands.On() {
		return nil
	}
	l := &n.ledger
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.watch == nil {
		w, err := n.tracing.commands.Watch(ctx)
		if err != nil {
			return nil
		}
		l.watch, l.luns, l.initiators = w, map[lunOp]*[2]uint64{}, map[initiatorOp]*[2]uint64{}
	}
	seen, err := l.watch.Take(ctx)
	if err != nil {
		return nil
	}
	for k, c := range seen.Counts {
		l.add(k, c)
	}
	return l.tell(seen.Slow)
}

func (l *ledger) add(k trace.Key, c *trace.Counts) {
	for i := range c.Stages {
		addTimes(&l.stages[i], &c.Stages[i])
	}
	for i := range c.Ops {
		o := &c.Ops[i]
		count := o.Times.Count()
		if count == 0 {
			continue
		}
		addTimes(&l.operations[i], &o.Times)
		addPair(l.luns, lunOp{k.Target, k.LUN, trace.Op(i)}, count, o.Bytes)
		addPair(l.initiators, initiatorOp{k.Initiator, trace.Op(i)}, count, o.Bytes)
	}
}

// addPair adds, unless that would be one series too many.
func addPair[K comparable](all map[K]*[2]uint64, k K, commands, bytes uint64) {
	one := all[k]
	if one == nil {
		if len(all) >= server.MaxLUNSeries {
			return
		}
		one = new([2]uint64)
		all[k] = one
	}
	one[0] += commands
	one[1] += bytes
}

func addTimes(h *api.Histogram, more *trace.Histogram) {
	h.Count += more.Count()
	h.Sum += time.Duration(more.Sum)
	for i, n := range more.Buckets {
		h.Buckets[min(i, len(h.Buckets)-1)] += n
	}
}

func (l *ledger) tell(slow []trace.Slow) *server.CommandStats {
	out := &server.CommandStats{}
	for i := range l.operations {
		o := server.OperationStats{Operation: trace.Op(i).String(), Times: l.operations[i]}
		for j := range slow {
			if s := &slow[j]; s.Op() == trace.Op(i) {
				o.Slow = append(o.Slow, server.SlowCommand{Target: s.Key.Target, LUN: s.Key.LUN, Initiator: s.Key.Initiator, Took: s.Took, At: s.Received})
			}
		}
		out.Operations = append(out.Operations, o)
	}
	for i := range l.stages {
		out.Stages = append(out.Stages, server.StageStats{Stage: trace.Stage(i).String(), Times: l.stages[i]})
	}
	for k, v := range l.luns {
		out.LUNs = append(out.LUNs, server.LUNCommands{Target: k.target, LUN: k.lun, Operation: k.op.String(), Commands: v[0], Bytes: v[1]})
	}
	for k, v := range l.initiators {
		out.Initiators = append(out.Initiators, server.InitiatorCommands{Initiator: k.initiator, Operation: k.op.String(), Commands: v[0], Bytes: v[1]})
	}
	slices.SortFunc(out.LUNs, func(a, b server.LUNCommands) int {
		return cmp.Or(cmp.Compare(a.Target, b.Target), cmp.Compare(a.LUN, b.LUN))
	})
	return out
}
