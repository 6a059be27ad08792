package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"regexp"
	"strings"
	"time"

	"lunar/appliance/e2e/lab"
)

const (
	testLimit = 25 * time.Second
	// settleLimit is how long a target may take to be seen dead after the test that killed it.
	settleLimit = 200 * time.Millisecond
)

// tests asks iscsi-test-cu for its tests whose names match.
func tests(ctx context.Context, match *regexp.Regexp) ([]string, error) {
	list, err := lab.Run(ctx, "iscsi-test-cu", "--list")
	if err != nil {
		return nil, err
	}
	var names []string
	for name := range strings.FieldsSeq(list) {
		if strings.HasPrefix(name, "ALL.") && strings.Count(name, ".") == 2 && match.MatchString(name) {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("no test matches %s", match)
	}
	return names, nil
}

// suite runs every test against one target, which start makes anew after a crash. A test that a
// disk's properties rule out runs on the target's next disk.
type suite struct {
	start func(context.Context) ([]*lab.Export, error)
	out   io.Writer
	disks []*lab.Export
}

func (s *suite) run(ctx context.Context, names []string) (Tally, error) {
	var tally Tally
	for _, name := range names {
		if ctx.Err() != nil {
			return tally, ctx.Err()
		}
		if err := s.ensureTarget(ctx); err != nil {
			return tally, err
		}
		from := time.Now()
		outcome := s.any(ctx, name)
		tally.add(outcome.Verdict)
		fmt.Fprintf(s.out, "%-48s %-8s %6.2fs  %s\n", name, outcome.Verdict, time.Since(from).Seconds(), outcome.Reason)
	}
	return tally, nil
}

func (s *suite) ensureTarget(ctx context.Context) error {
	if s.disks != nil && !s.targetDied(0) {
		return nil
	}
	var err error
	s.disks, err = s.start(ctx)
	return err
}

func (s *suite) targetDied(within time.Duration) bool {
	died := s.disks[0].Target.Exited()
	select {
	case <-died: // first, since select picks at random when the time is over too
		return true
	default:
	}
	select {
	case <-died:
		return true
	case <-time.After(within):
		return false
	}
}

func (s *suite) any(ctx context.Context, name string) Outcome {
	first := s.one(ctx, name, s.disks[0])
	for _, disk := range s.disks[1:] {
		if first.Verdict != Skipped {
			break
		}
		if other := s.one(ctx, name, disk); other.Verdict != Skipped {
			return other
		}
	}
	return first
}

func (s *suite) one(ctx context.Context, name string, disk *lab.Export) Outcome {
	limited, cancel := context.WithTimeout(ctx, testLimit)
	defer cancel()
	argv := append([]string{"iscsi-test-cu", "--dataloss", "--allow-sanitize", "-t", name}, disk.URLs...)
	output, err := lab.Run(limited, argv...)
	outcome := excuse(name, judge(output, exitStatus(err)))
	if limited.Err() != nil {
		outcome = Outcome{Hang, fmt.Sprintf("no end after %s", testLimit)}
	}
	if outcome.Verdict != Passed && outcome.Verdict != Skipped && s.targetDied(settleLimit) {
		outcome = Outcome{Crash, "the target ended; its log: " + lastLine(disk.Target.Log())}
	}
	return outcome
}

// exitStatus leaves only the status of err, without the command line and its output.
func exitStatus(err error) error {
	var status *exec.ExitError
	if errors.As(err, &status) {
		return status
	}
	return err
}
