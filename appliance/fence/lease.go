package fence

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// LeaseOptions are the times that a takeover by lease rests on.
type LeaseOptions struct {
	// TTL is the node lease's: after its last renewal a node's deadline lies less than that ahead.
	TTL time.Duration
	// InFlight bounds how long a write that was given to the device may take there: the device's time-out.
	InFlight time.Duration
	// Margin is for the guard to do its work, and for clocks that run at other rates.
	Margin time.Duration
	// Watchdog is the time-out of the nodes' watchdogs; 0 when they have none.
	Watchdog time.Duration
	// Ask has the victim's own guard end it and prove that, as guard.Ask does, and tells in words how; nil for nobody
	// to ask. It is called beside the wait, and its context ends with that.
	Ask func(ctx context.Context, victim Node) (words string, err error)
}

// Validate tells what is wrong with o.
func (o LeaseOptions) Validate() error {
	switch {
	case o.TTL <= 0:
		return errors.New("fencing by lease: TTL is missing: give the node lease's")
	case o.InFlight <= 0:
		return errors.New("fencing by lease: InFlight is missing: give the time in which the device ends or fails each write")
	case o.Margin < o.TTL/50:
		return fmt.Errorf("fencing by lease: Margin is %v: give 2 %% of the TTL at least, for clocks that run apart", o.Margin)
	case o.Watchdog < 0:
		return fmt.Errorf("fencing by lease: Watchdog is %v: give 0 or more", o.Watchdog)
	}
	return nil
}

// wait is how long from now a victim may still write that was silent for so long.
func (o LeaseOptions) wait(silent time.Duration) time.Duration {
	return max(0, o.TTL-silent+o.Watchdog+o.InFlight+o.Margin)
}

type lease struct {
	nothing
	opts LeaseOptions
}

func openLease(o Options) (*lease, error) {
	if err := o.Lease.Validate(); err != nil {
		return nil, err
	}
	return &lease{opts: o.Lease}, nil
}

// fence waits, from now on: the eviction came before, so that no renewal was written after it. The victim's guard
// may prove the end sooner.
func (l *lease) fence(ctx context.Context, v Victim) (Proof, error) {
	w := l.opts.wait(v.Silent)
	if l.opts.Ask == nil {
		return l.wait(ctx, w, "")
	}
	waiting, stop := context.WithCancel(ctx)
	defer stop()
	type told struct {
		words string
		err   error
	}
	asked, cancel := context.WithTimeout(ctx, w)
	defer cancel()
	heard := make(chan told, 1)
	go func() {
		words, err := l.opts.Ask(asked, v.Node)
		if err == nil {
			stop()
		}
		heard <- told{words, err}
	}()
	proof, err := l.wait(waiting, w, "; its guard did not prove it sooner")
	cancel()
	t := <-heard
	if t.err == nil {
		return Proof{Detail: "its guard proved it: " + t.words}, nil
	}
	if err == nil {
		proof.Detail += ": " + t.err.Error()
	}
	return proof, err
}

func (l *lease) wait(ctx context.Context, w time.Duration, but string) (Proof, error) {
	if err := settle(ctx, w); err != nil {
		return Proof{}, fmt.Errorf("wait %v: %w", w, err)
	}
	return Proof{Detail: fmt.Sprintf("waited %v: the victim's deadline, its watchdog, and the writes that its device had%s", w, but)}, nil
}

func (l *lease) describe() string {
	return fmt.Sprintf("lease: WEAK: a node that is out stops by itself at its deadline, by a guard process; others wait %v, or less when that guard answers them. "+
		"Nothing in the device keeps it from writing: a virtual machine that is paused, or a write that stays longer than %v in a queue, can damage the volume",
		l.opts.wait(0), l.opts.InFlight)
}
