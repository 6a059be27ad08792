package daemon

import (
	"testing"
	"time"

	"lunar/appliance/api"
)

// TestFirstAnswerIsWhole asks from the moment that a restart begins: an answer that comes before
// everything is restored would tell a script that its target is gone.
func TestFirstAnswerIsWhole(t *testing.T) {
	b := newBench(t)
	b.start()
	b.served(b.disk())
	b.stop()
	answer := make(chan []api.Target, 1)
	go func() {
		c := api.NewClient(b.config.Socket)
		defer c.Close()
		for t.Context().Err() == nil {
			if targets, err := c.Targets(t.Context()); err == nil {
				answer <- targets
				return
			}
			time.Sleep(time.Millisecond)
		}
	}()
	b.start()
	select {
	case targets := <-answer:
		if len(targets) != 1 || len(targets[0].LUNs) != 1 {
			t.Errorf("the first answer was %+v", targets)
		}
	case <-time.After(30 * time.Second):
		t.Error("no answer")
	}
}
