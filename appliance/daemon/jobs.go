package daemon

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"lunar/appliance/api"
)

// jobs are the long operations under way.
type jobs struct {
	mu  sync.Mutex // guards all
	all []*job     // the oldest first
}

type job struct {
	api.Job
	done atomic.Int64 // bytes
}

// begin notes an operation on total bytes, or 0; the caller ends it.
func (j *jobs) begin(kind, object string, total int64) *job {
	j.mu.Lock()
	defer j.mu.Unlock()
	one := &job{Job: api.Job{Kind: kind, Object: object, Total: total, Since: time.Now().UTC()}}
	j.all = append(j.all, one)
	return one
}

func (j *jobs) end(one *job) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.all = slices.DeleteFunc(j.all, func(o *job) bool { return o == one })
}

func (j *jobs) list() []api.Job {
	j.mu.Lock()
	defer j.mu.Unlock()
	out := make([]api.Job, len(j.all))
	for i, one := range j.all {
		out[i] = one.Job
		out[i].Done = one.done.Load()
	}
	return out
}

// Jobs implements server.Jobs.
func (n *Node) Jobs(context.Context) ([]api.Job, error) { return n.jobs.list(), nil }

// size says how much there is to do, once that is known.
func (j *jobs) size(one *job, total int64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	one.Total = total
}

// reached notes that an operation from begin to end is at off, if it is not further already.
func (one *job) reached(off int64) {
	for was := one.done.Load(); was < off && !one.done.CompareAndSwap(was, off); was = one.done.Load() {
	}
}
