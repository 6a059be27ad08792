// Package trace checks, with a real disk and a real network that are slow, that a delay is shown where it is.
package trace

import (
	"context"
	"errors"
	"fmt"
	"os"
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

// timed skips what judges times, which others' work on a machine spoils.
func timed(t *testing.T) {
	t.Helper()
	if os.Getenv("LUNAR_LONG") == "" {
		t.Skip("judges times: LUNAR_LONG=1, or make trace-test")
	}
}

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

// expected is what a delay has to look like.
type expected struct {
	slow, fast []string // stages with a median of about the delay, and well below it
	command    string   // what the slowest is, by the begin of its name
	most       string   // the stage in which it spent most of its time
}

// wrong says what is not as expected, nothing if all is.
func (s *seen) wrong(e expected) (out []string) {
	for _, name := range e.slow {
		if h := s.stages[name]; h == nil || h.Quantile(0.5) < atLeast || h.Quantile(0.5) > atMost {
			out = append(out, fmt.Sprintf("stage %s does not show a delay of %v", name, delay))
		}
	}
	for _, name := range e.fast {
		if h := s.stages[name]; h != nil && h.Quantile(0.5) >= atLeast {
			out = append(out, fmt.Sprintf("stage %s shows a delay that is not its", name))
		}
	}
	if len(s.notes) > 0 {
		out = append(out, fmt.Sprintf("the node does not know all: %q", s.notes))
	}
	found := false
	for i := range s.slow {
		c := &s.slow[i]
		sum, longest, where := spent(c)
		if sum != c.Took {
			out = append(out, fmt.Sprintf("%s took %v, its stages %v", c.Command, c.Took, sum))
		}
		found = found || strings.HasPrefix(c.Command, e.command) && where == e.most && longest >= atLeast && c.Image == "Volume1/disk.img"
	}
	if !found {
		out = append(out, fmt.Sprintf("no slow %s spent most of its time in stage %s: %+v", e.command, e.most, s.slow))
	}
	return out
}

// spent is the sum of a command's stages, and the longest.
func spent(c *api.SlowCommand) (sum, longest time.Duration, where string) {
	for _, st := range c.Stages {
		if sum += st.Took; st.Took > longest {
			longest, where = st.Took, st.Name
		}
	}
	return sum, longest, where
}

// tries bounds how often a measurement is made that other work on the machine has spoiled: it can make any stage slow, but
// what is shown in a wrong stage is so each time.
const tries = 6

// hold measures until all is as expected.
func hold(t *testing.T, e expected, measure func() *seen) {
	t.Helper()
	for i := range tries {
		s := measure()
		wrong := s.wrong(e)
		if len(wrong) == 0 {
			return
		}
		t.Logf("try %d: %s: %s", i+1, strings.Join(wrong, "; "), s)
	}
	t.Errorf("in none of %d tries was the delay where it belongs", tries)
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
