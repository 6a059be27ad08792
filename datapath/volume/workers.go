package volume

import "sync"

// workers run functions that block, a bounded number at a time.
type workers struct {
	queue chan func()
	all   sync.WaitGroup
}

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

// try hands fn over, or is false when the queue is full. It never blocks.
func (w *workers) try(fn func()) bool {
	select {
	case w.queue <- fn:
		return true
	default:
		return false
	}
}

// stop waits until everything that was handed over has run; try is not called any more.
func (w *workers) stop() {
	close(w.queue)
	w.all.Wait()
}
