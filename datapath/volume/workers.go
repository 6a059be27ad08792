package volume

import "sync"

// workers run functions that block, a bounded number at a time.
type workers struct {
	queue chan func()
	all   sync.WaitGroup
}

// startWorkers makes room for so many functions that wait.
func startWorkers(n, queue int) *workers {
	w := &workers{queue: make(chan func(), queue)}
	for range n {
		w.all.Go(func() {
			for fn := range w.queue {
				fn()
			}
		})
	}
	return w
}

// run hands fn over. The caller counts what it hands over, and never exceeds the room.
func (w *workers) run(fn func()) { w.queue <- fn }

// stop waits until everything that was handed over has run; run is not called any more.
func (w *workers) stop() {
	close(w.queue)
	w.all.Wait()
}
