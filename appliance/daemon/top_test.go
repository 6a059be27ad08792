package daemon

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"lunar/appliance/api"
	"lunar/appliance/cluster"
	"lunar/datapath/trace"
)

// many are so many LUNs of one initiator; LUN i has i+1 reads of 4 KiB.
func many(n int) (*trace.Seen, exports) {
	seen, all := &trace.Seen{Counts: map[trace.Key]*trace.Counts{}}, exports{}
	for i := range n {
		k := trace.Key{Initiator: fmt.Sprint("iqn.i", i%7), Target: fmt.Sprint("iqn.t", i/256), LUN: uint16(i % 256)}
		c := &trace.Counts{}
		c.Ops[trace.Read].Bytes = uint64(i+1) * 4096
		c.Ops[trace.Read].Times.Buckets[5] = uint64(i + 1)
		seen.Counts[k] = c
		all[exportKey{k.Target, k.LUN}] = exportOf{fmt.Sprintf("Volume1/%d", i), "Volume1"}
	}
	return seen, all
}

// TestTopOfManyLUNs: of 10,000 LUNs the answer has the busiest, and the sums of all.
func TestTopOfManyLUNs(t *testing.T) {
	const n = 10000
	seen, exports := many(n)
	q := api.TopQuery{Limit: 20}
	must(t, q.Fill())
	s := topShare{Node: "n1", Window: time.Second, Volumes: map[string]*topVolume{"Volume1": {}}}
	s.fill(seen, exports, q)
	if len(s.Pairs) != 20*shareFactor || s.Left != n-20*shareFactor || !strings.Contains(strings.Join(s.Notes, ""), "--limit") {
		t.Fatalf("%d pairs, %d left, notes %q", len(s.Pairs), s.Left, s.Notes)
	}
	if s.Pairs[0].Image != fmt.Sprintf("Volume1/%d", n-1) {
		t.Errorf("the busiest is %+v", s.Pairs[0].Image)
	}
	const all = n * (n + 1) / 2
	if got := s.Ops.rates(time.Second).Read.IOPS; got != all || s.Volumes["Volume1"].Ops.count() != all {
		t.Errorf("%v IOPS, want %d", got, all)
	}
	luns := map[exportKey]*joined{}
	for _, node := range []string{"n1", "n2"} {
		for i := range s.Pairs {
			at(luns, exportKey{s.Pairs[i].Target, s.Pairs[i].LUN}).add(&s.Pairs[i], node)
		}
	}
	first := busiest(luns, q)
	if len(first) != 20 || first[0].ops.count() != 2*n || !slices.Equal(first[0].nodes, []string{"n1", "n2"}) {
		t.Errorf("%d LUNs, the first has %d I/Os through %v", len(first), first[0].ops.count(), first[0].nodes)
	}
}

// TestMeanwhile: a slow command has the events of its volume, and those of none, from just before it to just after it.
func TestMeanwhile(t *testing.T) {
	at := time.Now()
	c := api.SlowCommand{Received: at, Took: time.Second}
	event := func(after time.Duration, volume, text string) cluster.Event {
		return cluster.Event{Time: at.Add(after), Volume: volume, Text: text}
	}
	events := []cluster.Event{
		event(-time.Hour, "Volume1", "long ago"), event(time.Second/2, "Volume1", "recall"), event(-time.Second/2, "", "node lost"),
		event(time.Second/2, "Volume2", "another volume"), event(time.Minute, "Volume1", "later"),
	}
	var got []string
	for _, e := range meanwhile(&c, events, "Volume1") {
		got = append(got, e.Text)
	}
	if !slices.Equal(got, []string{"node lost", "recall"}) {
		t.Errorf("events %q", got)
	}
}

// TestSlowStages: the stages of a slow command follow each other.
func TestSlowStages(t *testing.T) {
	s := trace.Slow{Key: trace.Key{Target: "t", LUN: 1}, Took: 30, CDB: [16]byte{0: 0x28, 5: 8}}
	s.Stages[trace.Decode], s.Passed[trace.Decode] = 10, true
	s.Stages[trace.Device], s.Passed[trace.Device] = 20, true
	c := slowCommand(&s, exportOf{"Volume1/a", "Volume1"})
	want := []api.SlowStage{{Name: "decode", At: 0, Took: 10}, {Name: "device", At: 10, Took: 20}}
	if c.Command != "READ(10)" || c.Offset != 4096 || !slices.Equal(c.Stages, want) {
		t.Errorf("%+v", c)
	}
	if name := commandName(0xC1); name != "command C1h" {
		t.Errorf("an unknown command is %q", name)
	}
}
