package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"lunar/datapath/wire/nbd"
)

// load is what a client does for a time.
type load struct {
	name   string
	write  bool
	random bool
	block  int
	depth  int
}

var loads = []load{
	{"randread-4k-qd1", false, true, 4 << 10, 1},
	{"randwrite-4k-qd1", true, true, 4 << 10, 1},
	{"randread-4k-qd32", false, true, 4 << 10, 32},
	{"randwrite-4k-qd32", true, true, 4 << 10, 32},
	{"read-128k-qd16", false, false, 128 << 10, 16},
	{"write-128k-qd16", true, false, 128 << 10, 16},
}

// sample is what a load came to.
type sample struct {
	iops float64
	cpu  float64 // of the server, microseconds per I/O
}

// run loads a server for d; its process is charged with what it used.
func (l load) run(ctx context.Context, c *nbd.Client, pid int, d time.Duration) (s sample, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var done atomic.Int64
	var wg sync.WaitGroup
	stop := make(chan struct{})
	var at atomic.Int64
	before, err := cpuTime(pid)
	if err != nil {
		return s, err
	}
	began := time.Now()
	for i := range l.depth {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(i), 7))
			p := make([]byte, l.block)
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := l.one(ctx, c, p, l.next(rng, &at)); err != nil {
					cancel(err)
					return
				}
				done.Add(1)
			}
		})
	}
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
	n, took := float64(done.Load()), time.Since(began)
	after, cpuErr := cpuTime(pid)
	close(stop)
	wg.Wait()
	if err := context.Cause(ctx); err != nil {
		return s, fmt.Errorf("%s: %w", l.name, err)
	}
	return sample{iops: n / took.Seconds(), cpu: float64((after - before).Microseconds()) / n}, cpuErr
}

func (l load) next(rng *rand.Rand, at *atomic.Int64) int64 {
	blocks := int64(imageSize / l.block)
	if l.random {
		return rng.Int64N(blocks) * int64(l.block)
	}
	return at.Add(1) % blocks * int64(l.block)
}

func (l load) one(ctx context.Context, c *nbd.Client, p []byte, off int64) error {
	if l.write {
		return c.Write(ctx, p, off, false)
	}
	return c.Read(ctx, p, off)
}

// cpuTime is what all threads of a process have used.
func cpuTime(pid int) (time.Duration, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	fields := strings.Fields(rest)
	var ticks int64
	for _, f := range fields[11:13] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, err
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond, nil
}
