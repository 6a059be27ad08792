package cluster

import (
	"errors"
	"slices"
	"testing"
	"time"
)

// TestSteps tries every step from every state.
func TestSteps(t *testing.T) {
	states := []TermState{StateElected, StateFenced, StateMounted, StateOpen, StateClosing}
	allowed := map[TermState]string{StateElected: "ef", StateFenced: "fmc", StateMounted: "moc", StateOpen: "oc", StateClosing: "c"}
	letters := map[TermState]rune{StateElected: 'e', StateFenced: 'f', StateMounted: 'm', StateOpen: 'o', StateClosing: 'c'}
	me, old := Party{Node: "n1", Epoch: 7}, Party{Node: "n2", Epoch: 6}
	for _, from := range states {
		for _, to := range states {
			s := Seat{Coordinator: &Coordinator{Node: "n1", Epoch: 7, State: from}, Succession: Succession{Previous: &old}}
			after, err := s.advance(to, me)
			ok := slices.Contains([]rune(allowed[from]), letters[to])
			if ok != (err == nil) || !ok && !errors.Is(err, ErrTermState) {
				t.Errorf("%s → %s: %v", from, to, err)
			}
			if fence := from == StateElected && to == StateFenced; (after.Previous.Node == "n1") != fence {
				t.Errorf("%s → %s: previous %+v", from, to, after.Previous)
			}
			if s.Coordinator.State != from {
				t.Errorf("%s → %s changed its argument", from, to)
			}
		}
	}
}

func TestRelease(t *testing.T) {
	old := &Party{Node: "n2"}
	for state, want := range map[TermState]struct {
		refused  bool
		previous *Party
	}{
		StateElected: {false, old}, StateFenced: {true, old}, StateMounted: {true, old}, StateOpen: {true, old}, StateClosing: {false, nil},
	} {
		s := Seat{Term: 9, Coordinator: &Coordinator{State: state, Epoch: 3}, Succession: Succession{Epoch: 3, Previous: old, Order: &Order{To: "n3", Epoch: 3}}}
		after, err := s.release("")
		if errors.Is(err, ErrTermState) != want.refused || after.Previous != want.previous {
			t.Errorf("%s: %v, previous %+v", state, err, after.Previous)
		}
		if !want.refused && (after.Coordinator != nil || after.Next != "n3" || after.Released != 3) {
			t.Errorf("%s: %+v", state, after)
		}
	}
}

func TestWin(t *testing.T) {
	s, err := Seat{Succession: Succession{Epoch: 4, Next: "n1", Order: &Order{}}}.win(Party{Node: "n1", Incarnation: 2}, 9)
	if err != nil || s.Epoch != 10 || s.Coordinator.Epoch != 10 || s.Next != "" || s.Order != nil {
		t.Fatalf("%+v, %v", s, err)
	}
	if _, err := s.win(Party{Node: "n2"}, 0); !errors.Is(err, ErrInUse) {
		t.Fatal(err)
	}
}

func nodes(reach string, count map[string]int, draining ...string) map[string]Presence {
	out := map[string]Presence{}
	for _, r := range reach {
		name := "n" + string(r)
		out[name] = Presence{Node: name, Paths: map[string]bool{"v": true}, Coordinates: count[name], Draining: slices.Contains(draining, name)}
	}
	return out
}

func TestRank(t *testing.T) {
	count := map[string]int{"n1": 2, "n2": 0, "n3": 1}
	for name, tt := range map[string]struct {
		v    View
		want []string
	}{
		"by count":            {View{Nodes: nodes("123", count)}, []string{"n2", "n3", "n1"}},
		"draining is last":    {View{Nodes: nodes("123", count, "n2")}, []string{"n3", "n1", "n2"}},
		"the user's order":    {View{Nodes: nodes("123", count), Seats: map[string]Seat{"v": {Succession: Succession{Next: "n1"}}}}, []string{"n1", "n2", "n3"}},
		"order to a draining": {View{Nodes: nodes("123", count, "n1"), Seats: map[string]Seat{"v": {Succession: Succession{Next: "n1"}}}}, []string{"n2", "n3", "n1"}},
		"only who is there":   {View{Nodes: nodes("13", count), Seats: map[string]Seat{"v": {Succession: Succession{Next: "n2"}}}}, []string{"n3", "n1"}},
	} {
		if got := tt.v.Rank("v"); !slices.Equal(got, tt.want) {
			t.Errorf("%s: %v, want %v", name, got, tt.want)
		}
		if got := tt.v.Rank("other"); len(got) > 0 {
			t.Errorf("%s: %v reach a volume that none reaches", name, got)
		}
	}
}

func TestLeave(t *testing.T) {
	held := func(o *Order) Seat {
		return Seat{Volume: "v", Coordinator: &Coordinator{Node: "n1", Epoch: 5}, Succession: Succession{Order: o}}
	}
	cut := nodes("123", nil)
	cut["n1"] = Presence{Paths: map[string]bool{"v": false}}
	for name, tt := range map[string]struct {
		nodes        map[string]Presence
		order        *Order
		next, reason string
	}{
		"nothing":             {nodes("123", nil), nil, "", ""},
		"by order":            {nodes("123", nil), &Order{To: "n3", Epoch: 5}, "n3", LeaveByOrder},
		"an older term's":     {nodes("123", nil), &Order{To: "n3", Epoch: 4}, "", ""},
		"to itself":           {nodes("123", nil), &Order{To: "n1", Epoch: 5}, "", ""},
		"to one that is gone": {nodes("12", nil), &Order{To: "n3", Epoch: 5}, "", ""},
		"to anyone":           {nodes("12", nil), &Order{Epoch: 5}, "n2", LeaveByOrder},
		"draining":            {nodes("13", nil, "n1"), nil, "n3", LeaveDraining},
		"all drain":           {nodes("13", nil, "n1", "n3"), nil, "", ""},
		"alone":               {nodes("1", nil, "n1"), nil, "", ""},
		"no path":             {cut, nil, (&View{Nodes: cut}).Rank("v")[0], LeaveNoPath},
	} {
		v := View{Nodes: tt.nodes, Seats: map[string]Seat{"v": held(tt.order)}}
		next, reason, ok := v.leave("n1", v.Seats["v"])
		if next != tt.next || reason != tt.reason || ok != (tt.reason != "") {
			t.Errorf("%s: to %q, %q, %v", name, next, reason, ok)
		}
	}
}

// TestPlanDealsOut: after the death of a node its volumes go to the others in equal parts, each to
// the first in rank at once, to the second after a stagger.
func TestPlanDealsOut(t *testing.T) {
	v := View{Nodes: map[string]Presence{}, Seats: map[string]Seat{}}
	paths := map[string]bool{}
	for i := range 30 {
		id := string(rune('A' + i))
		paths[id] = true
		v.Seats[id] = Seat{Volume: id}
	}
	all := map[string]*elector{}
	for _, n := range []string{"n1", "n2", "n3"} {
		v.Nodes[n] = Presence{Node: n, Paths: paths}
		all[n] = newElector(n)
	}
	idle := func(string) bool { return false }
	taken := map[string]bool{}
	for n, e := range all {
		now, again := e.plan(&v, 1, idle)
		if len(now) != 10 || again != 1+stagger {
			t.Errorf("%s campaigns for %d, again at %v", n, len(now), again)
		}
		for _, volume := range now {
			if taken[volume] {
				t.Errorf("volume %s has two", volume)
			}
			taken[volume] = true
		}
		if late, _ := e.plan(&v, 1+maxStagger, idle); len(late) != 30 {
			t.Errorf("%s campaigns for %d in the end", n, len(late))
		}
	}
}

func TestHold(t *testing.T) {
	e := newElector("n1")
	v := View{Nodes: nodes("1", nil), Seats: map[string]Seat{"v": {Volume: "v"}}}
	idle := func(string) bool { return false }
	for _, want := range []time.Duration{time.Second, 2 * time.Second, 4 * time.Second} {
		e.failed("v", 0)
		if now, again := e.plan(&v, 1, idle); len(now) > 0 || again != want {
			t.Errorf("campaigns %v, again at %v, want %v", now, again, want)
		}
	}
	for range 10 {
		e.failed("v", 0)
	}
	if _, again := e.plan(&v, 1, idle); again != longestHold {
		t.Errorf("again at %v", again)
	}
	e.opened("v")
	if now, _ := e.plan(&v, 1, idle); len(now) != 1 {
		t.Errorf("campaigns %v", now)
	}
}
