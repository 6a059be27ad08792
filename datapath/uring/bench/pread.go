package main

import (
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// goroutines is one goroutine per I/O under way, each with pread or pwrite.
type goroutines struct{ dev *device }

func (*goroutines) name() string { return "pread" }
func (*goroutines) close()       {}

func (g *goroutines) run(w workload, d time.Duration) (result, error) {
	mem, err := unix.Mmap(-1, 0, w.block*w.depth, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE|unix.MAP_POPULATE)
	if err != nil {
		return result{}, err
	}
	defer func() { _ = unix.Munmap(mem) }()
	var (
		mu    sync.Mutex // guards total and failed
		total latencies
		all   sync.WaitGroup
		fail  error
	)
	start, cpu := time.Now(), cpuTime()
	for i := range w.depth {
		all.Go(func() {
			where := newOffsets(w, g.dev.size)
			where.next = uint64(i) * where.blocks / uint64(w.depth)
			hist, err := g.loop(w, mem[i*w.block:][:w.block], &where, start, d)
			mu.Lock()
			defer mu.Unlock()
			total.merge(hist)
			if err != nil {
				fail = err
			}
		})
	}
	all.Wait()
	return summary(&total, start, cpu), fail
}

func (g *goroutines) loop(w workload, p []byte, where *offsets, start time.Time, d time.Duration) (*latencies, error) {
	hist, fd, do := new(latencies), int(g.dev.file.Fd()), unix.Pread
	if w.write {
		do = unix.Pwrite
	}
	for now := time.Since(start); now < d; {
		if _, err := do(fd, p, where.take()); err != nil {
			return hist, err
		}
		end := time.Since(start)
		hist.add(end - now)
		now = end
	}
	return hist, nil
}
