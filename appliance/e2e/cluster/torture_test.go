package cluster

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"lunar/appliance/e2e/cluster/load"
	"lunar/appliance/e2e/lab"
)

const shortTorture = 4 * time.Second

// TestTorture strikes nodes at random, one at a time, with writers through all of them and images made, cloned,
// resized and deleted: nothing that was acknowledged is lost. LUNAR_MINUTES is how long, LUNAR_SEED repeats a
// sequence of faults.
func TestTorture(t *testing.T) {
	duration := shortTorture
	if minutes, err := strconv.ParseFloat(os.Getenv("LUNAR_MINUTES"), 64); err == nil {
		duration = time.Duration(minutes * float64(time.Minute))
	}
	seed, err := strconv.ParseUint(os.Getenv("LUNAR_SEED"), 10, 64)
	if err != nil {
		seed = rand.Uint64()
	}
	t.Logf("%v, LUNAR_SEED=%d", duration, seed)
	b := newBenchFor(t, 3, duration+testLimit)
	b.load()
	strikes := make([]atomic.Int64, len(b.Nodes))
	var orders []load.Order
	for i, n := range b.Nodes {
		orders = append(orders, load.Order{Name: n.Name, Client: n.API, Strikes: &strikes[i]})
	}
	clerk := load.NewClerk(b.fleet.Record, lab.ClusterVolume, seed, orders...)
	b.fleet.Go(b.ctx, clerk.Run)
	torturer := &torturer{b: b, random: rand.New(rand.NewPCG(seed, 3)), strikes: strikes, counts: map[string]int{}}
	torturer.run(time.Now().Add(duration))
	b.finish()
	for _, n := range b.Nodes {
		if err := clerk.Verify(b.ctx, n.API); err != nil {
			t.Errorf("through %s: %v", n.Name, err)
		}
	}
	t.Logf("faults: %v; orders about images: %d done, %d not known", torturer.counts, clerk.Done, clerk.Unknown)
	t.Log(torturer.longest())
	b.clean()
}

type torturer struct {
	b       *bench
	random  *rand.Rand
	strikes []atomic.Int64
	counts  map[string]int
	began   time.Time
}

// blow is a fault and its end.
type blow struct {
	name     string
	do, undo func(context.Context, *lab.ClusterNode) error
}

func (t *torturer) blows() []blow {
	of := func(method func(*lab.ClusterNode, context.Context) error) func(context.Context, *lab.ClusterNode) error {
		return func(ctx context.Context, n *lab.ClusterNode) error { return method(n, ctx) }
	}
	back := func(ctx context.Context, n *lab.ClusterNode) error { return n.Revive(ctx, 3*time.Second) }
	return []blow{
		{"move", t.b.Move, func(context.Context, *lab.ClusterNode) error { return nil }},
		{"kill", func(_ context.Context, n *lab.ClusterNode) error { n.Kill(); return nil }, of((*lab.ClusterNode).Restart)},
		{"stop", func(_ context.Context, n *lab.ClusterNode) error { n.Freeze(); return nil }, func(ctx context.Context, n *lab.ClusterNode) error { n.Thaw(); return back(ctx, n) }},
		{"path", func(_ context.Context, n *lab.ClusterNode) error { return n.CutPath() }, func(ctx context.Context, n *lab.ClusterNode) error {
			if err := n.MendPath(); err != nil {
				return err
			}
			return back(ctx, n)
		}},
		{"network", of((*lab.ClusterNode).CutNetwork), func(ctx context.Context, n *lab.ClusterNode) error {
			if err := n.MendNetwork(ctx); err != nil {
				return err
			}
			return back(ctx, n)
		}},
		{"power", of((*lab.ClusterNode).PowerOff), of((*lab.ClusterNode).PowerOn)},
	}
}

func (t *torturer) run(until time.Time) {
	t.began = time.Now()
	blows := t.blows()
	for time.Now().Before(until) && len(t.b.fleet.Record.Errors()) == 0 {
		i, w := t.random.IntN(len(t.b.Nodes)), blows[t.random.IntN(len(blows))]
		if t.random.IntN(2) == 0 { // the coordinator is the better victim
			i = t.coordinator(i)
		}
		t.strike(i, w)
		time.Sleep(t.upTo(1500 * time.Millisecond))
	}
}

func (t *torturer) coordinator(otherwise int) int {
	if c, err := t.b.Coordinator(t.b.ctx); err == nil {
		for i, n := range t.b.Nodes {
			if n == c {
				return i
			}
		}
	}
	return otherwise
}

func (t *torturer) upTo(d time.Duration) time.Duration {
	return time.Duration(t.random.Int64N(int64(d)))
}

func (t *torturer) strike(i int, w blow) {
	n := t.b.Nodes[i]
	at := time.Since(t.began).Round(time.Millisecond)
	t.counts[w.name]++
	t.strikes[i].Add(1)
	err := w.do(t.b.ctx, n)
	time.Sleep(t.upTo(4 * time.Second))
	if err == nil {
		err = w.undo(t.b.ctx, n)
	}
	if err != nil {
		t.b.t.Fatalf("%v: %s of %s: %v", at, w.name, n.Name, err)
	}
	t.strikes[i].Add(1)
	t.b.fleet.GoHome()
	if testing.Verbose() {
		t.b.t.Logf("%v: %s of %s, over after %v", at, w.name, n.Name, (time.Since(t.began) - at).Round(time.Millisecond))
	}
}

func (t *torturer) longest() string {
	return fmt.Sprintf("over all: %s", t.b.fleet.Record.Within(t.began, time.Now(), nil))
}
