package uring

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// A request beyond a block device's queue finds no place, and the kernel hands it to a worker thread
// that waits for one: dearer than the request itself. So what is too much waits here.

// queueDepth is nr_requests of a block device, of its whole disk if it is a partition; 0 is unknown.
func queueDepth(device uint64) int {
	for _, queue := range [...]string{"queue", "../queue"} {
		path := fmt.Sprintf("/sys/dev/block/%d:%d/%s/nr_requests", unix.Major(device), unix.Minor(device), queue)
		if text, err := os.ReadFile(path); err == nil {
			n, _ := strconv.Atoi(strings.TrimSpace(string(text)))
			return n
		}
	}
	return 0
}

// limit lets the rings have depth operations in the kernel together, 0 for as many as they like. A ring
// may always have its even share, so that none is shut out.
func (f *File) limit(depth int) {
	f.depth, f.share = int32(depth), max(depth/len(f.uses), 1)
}

// room tells whether one more operation of ring i finds a place in the device's queue.
func (f *File) room(i int) bool {
	return f.depth == 0 || f.uses[i].running < f.share || f.running.Load() < f.depth
}

// count adds n to the operations that ring i has in the kernel.
func (f *File) count(i, n int) {
	if f == nil || f.depth == 0 {
		return
	}
	f.uses[i].running += n
	f.running.Add(int32(n))
}

// place starts op, or lets it wait behind the others for room in its device's queue.
func (r *Ring) place(op *Op) {
	f := op.File
	if f == nil || f.uses[r.index].waiting.empty() && f.room(r.index) {
		r.start(op)
		return
	}
	op.state = queued
	if f.uses[r.index].waiting.empty() && !slices.Contains(r.crowded, f) {
		r.crowded = append(r.crowded, f)
	}
	f.uses[r.index].waiting.push(op)
}

// refillCrowded starts what waits for room, as far as there is some.
func (r *Ring) refillCrowded() {
	r.crowded = slices.DeleteFunc(r.crowded, func(f *File) bool {
		waiting := &f.uses[r.index].waiting
		for !waiting.empty() && r.inKernel < r.opts.InFlight && f.room(r.index) {
			r.start(waiting.pop())
		}
		return waiting.empty()
	})
}

// eachQueue calls fn for every list of operations that wait.
func (r *Ring) eachQueue(fn func(*opList)) {
	fn(&r.queue)
	for _, f := range r.crowded {
		fn(&f.uses[r.index].waiting)
	}
}

// waiting is the number of operations that are not in the kernel yet.
func (r *Ring) waiting() int {
	n := r.queue.n
	for _, f := range r.crowded {
		n += f.uses[r.index].waiting.n
	}
	return n
}
