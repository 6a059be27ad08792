package main

import (
	"fmt"
	"math/bits"
	"slices"
	"syscall"
	"time"
)

// workload is one cell: block bytes at a time, depth of them under way.
type workload struct {
	write, random bool
	block, depth  int
}

func (w workload) String() string {
	return fmt.Sprintf("%s-%dk-qd%d", w.mode(), w.block>>10, w.depth)
}

// mode is the workload's name in fio's words.
func (w workload) mode() string {
	m := "read"
	if w.write {
		m = "write"
	}
	if w.random {
		return "rand" + m
	}
	return m
}

// offsets yields where the next I/O goes.
type offsets struct {
	w      workload
	blocks uint64
	next   uint64
	seed   uint64
}

func newOffsets(w workload, size int64) offsets {
	return offsets{w: w, blocks: uint64(size) / uint64(w.block), seed: uint64(time.Now().UnixNano()) | 1}
}

func (o *offsets) take() int64 {
	if !o.w.random {
		o.next++
		return int64(o.next%o.blocks) * int64(o.w.block)
	}
	o.seed ^= o.seed << 13 // xorshift64
	o.seed ^= o.seed >> 7
	o.seed ^= o.seed << 17
	hi, _ := bits.Mul64(o.seed, o.blocks)
	return int64(hi) * int64(o.w.block)
}

// result is what a peer did in one run.
type result struct {
	iops float64
	p50  time.Duration
	cpu  time.Duration // user and system time per I/O
}

// peer is one of the engines that are compared.
type peer interface {
	name() string
	run(w workload, d time.Duration) (result, error)
	close()
}

// latencies is a histogram with 16 steps per power of two.
type latencies struct {
	count [64 * 16]uint64
	n     uint64
}

func (l *latencies) add(d time.Duration) {
	v := uint64(max(d, 16))
	exp := bits.Len64(v) - 5
	l.count[exp<<4+int(v>>exp)&15]++
	l.n++
}

func (l *latencies) merge(o *latencies) {
	for i, c := range &o.count {
		l.count[i] += c
	}
	l.n += o.n
}

// median is the middle of the step that holds it.
func (l *latencies) median() time.Duration {
	var sum uint64
	for i, c := range &l.count {
		if sum += c; sum*2 >= l.n && c > 0 {
			exp := i >> 4
			return time.Duration(uint64(16+i&15)<<exp + uint64(1)<<exp/2)
		}
	}
	return 0
}

// cpuTime is what this process has used.
func cpuTime() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// summary makes a result of a run that began at start having used cpu.
func summary(l *latencies, start time.Time, cpu time.Duration) result {
	took, used := time.Since(start), cpuTime()-cpu
	n := max(l.n, 1)
	return result{iops: float64(l.n) / took.Seconds(), p50: l.median(), cpu: used / time.Duration(n)}
}

// median of each column by itself.
func median(rs []result) result {
	var iops, p50, cpu []float64
	for _, r := range rs {
		iops, p50, cpu = append(iops, r.iops), append(p50, float64(r.p50)), append(cpu, float64(r.cpu))
	}
	return result{iops: middle(iops), p50: time.Duration(middle(p50)), cpu: time.Duration(middle(cpu))}
}

// middle sorts v and returns its median.
func middle(v []float64) float64 {
	slices.Sort(v)
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}
