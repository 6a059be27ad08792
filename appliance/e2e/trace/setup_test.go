// Package trace checks, with a real disk and a real network that are slow, that a delay is shown where it is.
package trace

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"lunar/appliance/api"
	"lunar/appliance/e2e/lab"
	"lunar/appliance/e2e/lab/labtest"
)

const (
	mib   = int64(1) << 20
	limit = 2 * time.Minute // against a hang

	target = "iqn.2026-01.lunar.test:trace"

	// delay is what is injected. A histogram has it in the class of 8.4 to 16.8 ms; a busy machine may add some.
	delay   = 10 * time.Millisecond
	atLeast = 8 * time.Millisecond
	atMost  = 40 * time.Millisecond
)

func TestMain(m *testing.M) { labtest.Main(m) }

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// follow gathers what the node says of its I/O while work goes on, until enough says so.
func follow(ctx context.Context, t *testing.T, client *api.Client, q api.TraceQuery, work func(), enough func(*seen) bool) *seen {
	t.Helper()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s := &seen{stages: map[string]*api.Histogram{}}
	begun := false
	q.Interval = 100 * time.Millisecond
	done := make(chan struct{})
	err := client.TraceIO(ctx, q, func(r api.TraceIO) error {
		if !begun {
			begun = true
			go func() { defer close(done); work() }()
		}
		s.add(&r)
		if enough(s) {
			cancel()
		}
		return nil
	})
	if begun {
		<-done
	}
	if err != nil && !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if !enough(s) {
		t.Fatalf("the node did not say enough of its I/O: %s", s)
	}
	return s
}

// seen is the sum of some reports.
type seen struct {
	stages map[string]*api.Histogram // by name
	slow   []api.SlowCommand
	notes  []string
}

func (s *seen) add(r *api.TraceIO) {
	for i := range r.Stages {
		st := &r.Stages[i]
		if s.stages[st.Name] == nil {
			s.stages[st.Name] = &api.Histogram{}
		}
		s.stages[st.Name].Add(&st.Times)
	}
	s.slow = append(s.slow, r.Slow...)
	s.notes = r.Notes
}

func (s *seen) count(stage string) uint64 {
	if h := s.stages[stage]; h != nil {
		return h.Count
	}
	return 0
}

func (s *seen) String() string {
	var b strings.Builder
	for name, h := range s.stages {
		b.WriteString(name + ": " + h.Quantile(0.5).String() + ", ")
	}
	return b.String() + strings.Join(s.notes, "; ")
}

// slow checks that the median of a stage is about the delay, and fast that it is well below.
func (s *seen) slowIn(t *testing.T, stages ...string) {
	t.Helper()
	for _, name := range stages {
		if h := s.stages[name]; h == nil || h.Quantile(0.5) < atLeast || h.Quantile(0.5) > atMost {
			t.Errorf("stage %s does not show a delay of %v: %s", name, delay, s)
		}
	}
}

func (s *seen) fastIn(t *testing.T, stages ...string) {
	t.Helper()
	for _, name := range stages {
		if h := s.stages[name]; h != nil && h.Quantile(0.5) >= atLeast {
			t.Errorf("stage %s shows a delay that is not its: %s", name, s)
		}
	}
}

// told checks that nothing is missing, and that the slowest commands' stages add up.
func (s *seen) told(t *testing.T, command, most string) {
	t.Helper()
	if len(s.notes) > 0 {
		t.Errorf("the node does not know all: %q", s.notes)
	}
	found := false
	for i := range s.slow {
		c := &s.slow[i]
		var sum, longest time.Duration
		var where string
		for _, st := range c.Stages {
			if sum += st.Took; st.Took > longest {
				longest, where = st.Took, st.Name
			}
		}
		if sum != c.Took {
			t.Errorf("%s took %v, its stages %v", c.Command, c.Took, sum)
		}
		found = found || strings.HasPrefix(c.Command, command) && where == most && longest >= atLeast && c.Image == "Volume1/disk.img"
	}
	if !found {
		t.Errorf("no slow %s spent most of its time in stage %s: %+v", command, most, s.slow)
	}
}

// repeat does something so many times in one run of qemu-io.
func repeat(ctx context.Context, t *testing.T, e *lab.Export, times int, command string) {
	commands := make([]string, times)
	for i := range commands {
		commands[i] = command
	}
	if _, err := lab.QemuIO(ctx, e.URLs[0], commands...); err != nil {
		t.Error(err)
	}
}
