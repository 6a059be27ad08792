package coordinator

import (
	"errors"
	"slices"
	"sync"
	"testing"
	"time"
)

// TestCommitsAreShared has many callers come while a commit runs: one more serves all of them.
func TestCommitsAreShared(t *testing.T) {
	const callers = 20
	var c commits
	var written []int64 // by rounds, which come one after the other
	var committed int
	write := func(all []*allocating) {
		for _, w := range all {
			written = append(written, w.off)
			if w.off == 7 {
				w.err = errors.New("of write 7")
			}
		}
	}
	failed := errors.New("commit failed")
	began, goOn := make(chan struct{}), make(chan struct{})
	first := func() error {
		close(began)
		<-goOn
		committed++
		return failed
	}
	var all sync.WaitGroup
	all.Go(func() {
		if err := c.do(&allocating{off: 100}, write, first); !errors.Is(err, failed) {
			t.Error("the first round:", err)
		}
	})
	<-began
	for i := range int64(callers) {
		all.Go(func() {
			err := c.do(&allocating{off: i}, write, func() error { committed++; return nil })
			if (err != nil) != (i == 7) {
				t.Errorf("write %d: %v", i, err)
			}
		})
	}
	for n := 0; n < callers; time.Sleep(time.Millisecond) {
		c.mu.Lock()
		if c.next != nil {
			n = len(c.next.writes)
		}
		c.mu.Unlock()
	}
	close(goOn)
	all.Wait()
	if slices.Sort(written); committed != 2 || len(written) != callers+1 || written[callers] != 100 {
		t.Fatalf("%d commits of writes %v", committed, written)
	}
}

// TestWhoComesDuringACommitIsNotServedByIt: what it changed may not be in there.
func TestWhoComesDuringACommitIsNotServedByIt(t *testing.T) {
	var c commits
	changed, durable := 0, 0
	var mu sync.Mutex
	var all sync.WaitGroup
	for i := range 50 {
		all.Go(func() {
			for j := range 20 {
				mu.Lock()
				changed++
				mine := changed
				mu.Unlock()
				err := c.do(nil, func([]*allocating) {}, func() error {
					mu.Lock()
					defer mu.Unlock()
					durable = changed
					return nil
				})
				mu.Lock()
				if err != nil || durable < mine {
					t.Errorf("caller %d, call %d: change %d is not durable: %d, %v", i, j, mine, durable, err)
				}
				mu.Unlock()
			}
		})
	}
	all.Wait()
}
