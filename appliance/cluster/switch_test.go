package cluster

import (
	"context"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// mute is the way to a voter whose machine has gone: a watch hears nothing, and no error either.
type mute struct {
	clientv3.Watcher
	ended chan struct{} // a watch was given up
}

// Watch implements clientv3.Watcher.
func (m mute) Watch(ctx context.Context, _ string, _ ...clientv3.OpOption) clientv3.WatchChan {
	out := make(chan clientv3.WatchResponse)
	go func() {
		<-ctx.Done()
		close(out)
		close(m.ended)
	}()
	return out
}

// TestWatchMovesToTheOtherClient: a node that became a voter watches through its own member from then on, and not
// through the voter by which it joined until that is found to be dead.
func TestWatchMovesToTheOtherClient(t *testing.T) {
	db := startMembers(t, 1)[0].DB
	gone := clientv3.NewCtxClient(t.Context())
	silent := mute{ended: make(chan struct{})}
	gone.Watcher = silent
	x := newExchange()
	x.set(gone, false)
	heard := newSwitched(t.Context(), x).Watch(t.Context(), "/k", clientv3.WithRev(1))
	x.set(db.client, false)
	_, err := db.client.Put(t.Context(), "/k", "v")
	must(t, err)
	for _, c := range []struct {
		what string
		done func() bool
	}{
		{"the event", func() bool { r, ok := <-heard; return ok && len(r.Events) == 1 }},
		{"the end of the watch before", func() bool { <-silent.ended; return true }},
	} {
		got := make(chan bool, 1)
		go func() { got <- c.done() }()
		select {
		case ok := <-got:
			if !ok {
				t.Fatal("not ", c.what)
			}
		case <-time.After(10 * time.Second):
			t.Fatal("not within 10 s: ", c.what)
		}
	}
}

// dead is the way into a member that has died of its disk: a watch hears nothing, and does not end either.
type dead struct{ clientv3.Watcher }

// Watch implements clientv3.Watcher.
func (dead) Watch(context.Context, string, ...clientv3.OpOption) clientv3.WatchChan {
	return make(chan clientv3.WatchResponse)
}

// TestWatchEndsThoughTheMemberIsDead: or lunard never stops.
func TestWatchEndsThoughTheMemberIsDead(t *testing.T) {
	client := clientv3.NewCtxClient(t.Context())
	client.Watcher = dead{}
	x := newExchange()
	x.set(client, false)
	ctx, cancel := context.WithCancel(t.Context())
	heard := newSwitched(t.Context(), x).Watch(ctx, "/k")
	cancel()
	select {
	case r, ok := <-heard:
		if ok {
			t.Fatalf("heard %+v", r)
		}
	case <-time.After(patience):
		t.Fatal("the watch did not end")
	}
}
