package slot

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Slot is one of the two.
type Slot struct {
	Name    string `json:"name"`              // a or b
	Version string `json:"version,omitempty"` // empty: it holds nothing whole
	Booted  bool   `json:"booted,omitempty"`
	Default bool   `json:"default,omitempty"`
	Failed  bool   `json:"failed,omitempty"` // its trial was given up
	Left    int    `json:"left,omitempty"`   // boots left of its trial
}

// Status is both slots, and what comes next in a sentence.
type Status struct {
	Slots []Slot `json:"slots"`
	Trial bool   `json:"trial,omitempty"` // the boot that runs is one
	Text  string `json:"text"`
}

// Status reads the loader's variables. A damaged block is ErrEnvironment.
func (s *System) Status() (Status, error) {
	booted, err := s.Booted()
	if err != nil {
		return Status{}, err
	}
	e, err := s.environment()
	if err != nil {
		return Status{}, err
	}
	st := Status{Trial: e.get(varTry) == booted}
	for _, name := range []string{"a", "b"} {
		one := Slot{Name: name, Version: e.version(name), Booted: name == booted, Default: name == e.get(varDefault), Failed: name == e.get(varFailed)}
		if e.get(varTry) == name {
			one.Left = e.left()
		}
		st.Slots = append(st.Slots, one)
	}
	st.Text = describe(e, booted)
	return st, nil
}

func describe(e *environment, booted string) string {
	other := otherThan(booted)
	try, failed := e.get(varTry), e.get(varFailed)
	switch {
	case try == booted:
		return fmt.Sprintf("slot %s, %s, is on trial: it becomes the default when lunard is ready, else slot %s comes back", booted, e.version(booted), e.get(varDefault))
	case try != "" && e.left() > 0:
		return fmt.Sprintf("the next boot tries slot %s, %s", try, e.version(try))
	case failed != "" && failed != booted:
		return fmt.Sprintf("slot %s, %s, did not become ready and was given up; slot %s runs", failed, e.version(failed), booted)
	case e.get(varDefault) != booted:
		return fmt.Sprintf("slot %s runs, by choice at the loader; the default is %s", booted, e.get(varDefault))
	case e.version(other) == "":
		return fmt.Sprintf("slot %s runs; slot %s holds nothing to go back to", booted, other)
	}
	return fmt.Sprintf("slot %s runs; `lunarctl system rollback` goes back to %s, in slot %s", booted, e.version(other), other)
}

// Rollback puts the other slot on trial, for the next boot. force is needed for one that was given up before.
func (s *System) Rollback(force bool) (Status, error) {
	unlock, err := s.lock()
	if err != nil {
		return Status{}, err
	}
	defer func() { _ = unlock.Close() }()
	booted, e, err := s.settled()
	if err != nil {
		return Status{}, err
	}
	other := otherThan(booted)
	switch {
	case e.version(other) == "":
		return Status{}, fmt.Errorf("%w: slot %s holds no whole image", ErrNothing, other)
	case e.get(varFailed) == other && !force:
		return Status{}, fmt.Errorf("slot %s, %s, did not become ready before: --force tries it again", other, e.version(other))
	}
	e.set(varDefault, booted)
	e.set(varFailed, "")
	e.trial(other, Tries)
	if err := s.store(e); err != nil {
		return Status{}, err
	}
	return s.Status()
}

// settled is the slot that runs and the variables, unless that slot is itself on trial.
func (s *System) settled() (booted string, e *environment, err error) {
	if booted, err = s.Booted(); err != nil {
		return "", nil, err
	}
	if e, err = s.environment(); err != nil {
		return "", nil, err
	}
	if e.get(varTry) == booted {
		return "", nil, fmt.Errorf("%w, of slot %s: wait until lunard is ready, which ends it", ErrTrial, booted)
	}
	return booted, e, nil
}

// Trial tells whether the boot that runs is one that Confirm has to end.
func (s *System) Trial() (bool, error) {
	st, err := s.Status()
	return st.Trial, err
}

// Confirm makes the slot that runs the default, once ready returns nil. While the boot is a trial it has Timeout for that, and
// after it the error is of context.DeadlineExceeded: the caller restarts the machine. A damaged block is written anew, with
// this slot's version alone.
func (s *System) Confirm(ctx context.Context, version string, ready func(context.Context) error) error {
	booted, err := s.Booted()
	if err != nil {
		return err
	}
	trial, err := s.Trial()
	damaged := errors.Is(err, ErrEnvironment)
	if err != nil && !damaged {
		return err
	}
	if trial {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, s.Timeout())
		defer cancel()
	}
	if err := ready(ctx); err != nil {
		return fmt.Errorf("lunard is not ready: %w", err)
	}
	unlock, err := s.await(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = unlock() }()
	e, err := s.environment()
	if errors.Is(err, ErrEnvironment) {
		e, err = &environment{}, nil
		e.setVersion(booted, version)
	}
	if err != nil {
		return err
	}
	return s.confirm(e, booted, damaged)
}

func (s *System) confirm(e *environment, booted string, damaged bool) error {
	switch try := e.get(varTry); {
	case try == booted, damaged:
		e.set(varDefault, booted)
		e.trial("", 0)
	case try != "" && e.left() == 0: // the loader has no tries left, and did not say so itself
		e.set(varFailed, try)
		e.trial("", 0)
	default:
		return nil
	}
	return s.store(e)
}

// lockPoll is how often a lock that is held is tried again.
const lockPoll = 100 * time.Millisecond

// await is lock that waits.
func (s *System) await(ctx context.Context) (unlock func() error, err error) {
	for {
		c, err := s.lock()
		if err == nil {
			return c.Close, nil
		}
		if !errors.Is(err, ErrBusy) {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(lockPoll):
		}
	}
}
