package protocol

import (
	"errors"
	"slices"
	"testing"
)

func TestTermHoldsTheBarrier(t *testing.T) {
	term := NewTerm(7, []NodeID{"a", "b", "c"})
	if _, err := term.Acknowledge("a", 6); !errors.Is(err, ErrStale) || term.Passed() {
		t.Fatal("an older epoch counts", err)
	}
	for _, node := range []NodeID{"a", "a", "d"} {
		if passed, err := term.Acknowledge(node, 7); err != nil || passed {
			t.Fatal(node, passed, err)
		}
	}
	if got := term.Awaited(); !slices.Equal(got, []NodeID{"b", "c"}) {
		t.Fatal(got)
	}
	if term.Expel("c") || !term.Expel("b") || !term.Passed() || term.Expel("b") {
		t.Fatal("the last one passes it, once")
	}
	if term.End(); term.Passed() || !errors.Is(term.Check(7), ErrStale) {
		t.Fatal("an ended term goes on")
	}
}

func TestTermKnowsProcesses(t *testing.T) {
	term := NewTerm(1, []NodeID{"a"})
	for i, c := range []struct {
		incarnation uint64
		lost, stale bool
	}{{5, false, false}, {5, false, false}, {4, false, true}, {6, true, false}, {5, false, true}} {
		lost, err := term.Hello("a", c.incarnation)
		if lost != c.lost || errors.Is(err, ErrStale) != c.stale {
			t.Fatal(i, lost, err)
		}
	}
	term.Expel("a")
	if _, err := term.Hello("a", 6); !errors.Is(err, ErrStale) || !errors.Is(term.Admit("a"), ErrStale) {
		t.Fatal("a fenced process came back", err)
	}
	if _, err := term.Acknowledge("a", 1); !errors.Is(err, ErrStale) {
		t.Fatal("a fenced process acknowledged", err)
	}
	if _, err := term.Hello("a", 7); err != nil || term.Admit("a") != nil {
		t.Fatal("a new process is refused", err)
	}
}
