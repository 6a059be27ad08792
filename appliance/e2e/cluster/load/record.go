package load

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

// Kind is what a command needed, by how its writer chose it.
type Kind string

// The kinds. Moved are commands whose path was lost and that ended by another try; Machine is how late this
// machine's own timers were, and not an operation: no figure can be better than it.
const (
	Direct     Kind = "direct"
	Redirected Kind = "redirected"
	Metadata   Kind = "metadata"
	Moved      Kind = "path lost"
	Machine    Kind = "machine"
)

// slow is from when on an operation is remembered singly; bucket is the grain of the rest.
const (
	slow   = 10 * time.Millisecond
	bucket = 100 * time.Millisecond
)

// Operation is one that has ended.
type Operation struct {
	Kind  Kind
	Path  string
	Start time.Time
	Took  time.Duration
}

// Ended is when it ended.
func (o *Operation) Ended() time.Time { return o.Start.Add(o.Took) }

// Record is what operations took. It may be used from any goroutine.
type Record struct {
	mu     sync.Mutex        // guards what follows
	slow   []Operation       // that took longer than slow
	fast   map[Operation]int // others: by kind, path and bucket of their start; Took is the longest there
	counts map[Kind]int
	under  map[*Operation]struct{} // that have not ended
	errors []error
}

// NewRecord is an empty one.
func NewRecord() *Record {
	return &Record{fast: map[Operation]int{}, counts: map[Kind]int{}, under: map[*Operation]struct{}{}}
}

// Begin notes that an operation begins; the caller owes it an End or a Drop.
func (r *Record) Begin(kind Kind, path string) *Operation {
	o := &Operation{Kind: kind, Path: path, Start: time.Now()}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.under[o] = struct{}{}
	return o
}

// Drop forgets an operation that has failed.
func (r *Record) Drop(o *Operation) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.under, o)
}

// End notes the end of an operation, which may have become of another kind, by another path.
func (r *Record) End(o *Operation, kind Kind, path string) {
	r.Drop(o)
	r.Add(kind, path, o.Start)
}

// Add notes an operation that ended now.
func (r *Record) Add(kind Kind, path string, start time.Time) {
	o := Operation{kind, path, start, time.Since(start)}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.counts[kind]++
	if o.Took >= slow {
		r.slow = append(r.slow, o)
		return
	}
	o.Start, o.Took = start.Truncate(bucket), o.Took.Round(time.Millisecond)
	r.fast[o]++
}

// Fail notes an I/O error.
func (r *Record) Fail(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.errors = append(r.errors, err)
}

// Errors lists the I/O errors and what was lost.
func (r *Record) Errors() []error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.errors)
}

// Count is how many operations of a kind have ended.
func (r *Record) Count(kind Kind) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.counts[kind]
}

// Longest is the longest operation of a kind that was under way between from and to, by paths for which keep says
// yes; nil keeps all. One that has not ended counts with the time that it took so far.
func (r *Record) Longest(kind Kind, from, to time.Time, keep func(path string) bool) Operation {
	r.mu.Lock()
	defer r.mu.Unlock()
	var longest Operation
	consider := func(o Operation, end time.Time) {
		if o.Kind == kind && o.Took > longest.Took && end.After(from) && o.Start.Before(to) && (keep == nil || keep(o.Path)) {
			longest = o
		}
	}
	for _, o := range r.slow {
		consider(o, o.Ended())
	}
	for o := range r.under {
		now := *o
		now.Took = time.Since(o.Start)
		consider(now, now.Ended())
	}
	for o := range r.fast {
		consider(o, o.Start.Add(bucket))
	}
	return longest
}

// Pending tells whether an operation by a path that began before a time has not ended.
func (r *Record) Pending(path string, before time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for o := range r.under {
		if o.Path == path && o.Start.Before(before) {
			return true
		}
	}
	return false
}

// First is how long after from the first operation of a kind ended that had begun after it, or was under
// way then; 0 if there is none.
func (r *Record) First(kind Kind, from time.Time) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	var first time.Duration
	for _, o := range r.slow {
		if took := o.Ended().Sub(from); o.Kind == kind && took > 0 && (first == 0 || took < first) {
			first = took
		}
	}
	return first
}

// Pulse measures this machine until stop is closed: how late a timer of a few milliseconds is.
func (r *Record) Pulse(stop <-chan struct{}) {
	const beat = 5 * time.Millisecond
	for {
		start := time.Now()
		select {
		case <-stop:
			return
		case <-time.After(beat):
			r.Add(Machine, "", start.Add(beat))
		}
	}
}

// Within describes a window: the longest of each kind, and the machine's own lateness.
func (r *Record) Within(from, to time.Time, keep func(path string) bool) string {
	var parts []string
	for _, kind := range []Kind{Direct, Redirected, Metadata, Moved} {
		if o := r.Longest(kind, from, to, keep); o.Took > 0 {
			parts = append(parts, fmt.Sprintf("%s %v", kind, o.Took.Round(time.Millisecond)))
		}
	}
	late := r.Longest(Machine, from, to, nil).Took.Round(time.Millisecond)
	return fmt.Sprintf("longest: %s (this machine's timers were up to %v late)", strings.Join(parts, ", "), late)
}
