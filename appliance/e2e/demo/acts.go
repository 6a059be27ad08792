package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"lunar/appliance/api"
	"lunar/appliance/e2e/cluster/load"
	"lunar/appliance/e2e/lab"
)

// act is an event and what it may cost.
type act struct {
	name string
	// do has the event happen; it returns the node that it is about, nil if none, and what followed.
	do func(context.Context) (*lab.ClusterNode, string, error)
	// undo has the node as before.
	undo func(context.Context, *lab.ClusterNode) error
	// redirected bounds redirected operations.
	redirected time.Duration
}

// The bars. What this machine's own timers were late is not counted, once per hand that a command goes through.
const (
	directBar   = 100 * time.Millisecond
	moveBar     = 300 * time.Millisecond
	failoverBar = 3 * time.Second
	hands       = 4
)

func powerOn(ctx context.Context, n *lab.ClusterNode) error { return n.PowerOn(ctx) }

func (s *show) acts() []act {
	nothing := func(context.Context, *lab.ClusterNode) error { return nil }
	return []act{
		{"nothing", s.rest, nothing, moveBar},
		{"volume move", s.move, nothing, moveBar},
		{"coordinator: kill -9", s.kill, func(ctx context.Context, n *lab.ClusterNode) error { return n.Restart(ctx) }, failoverBar},
		{"coordinator: SIGSTOP", s.freeze, s.thaw, failoverBar},
		{"disk path cut", s.cutPath, s.mendPath, failoverBar},
		{"coordinator: disk path cut", s.cutCoordinatorPath, s.mendPath, failoverBar},
		{"coordinator: network cut", s.cutNetwork, s.mendNetwork, failoverBar},
		{"coordinator: machine off", s.powerOff, powerOn, failoverBar},
		{"… and database leader", s.powerOffLeader, powerOn, failoverBar},
	}
}

// tries bounds how often an act that misses a bar is performed. What the cluster cannot do it misses each time; what other
// work on this machine held up it does not.
const tries = 3

// perform has an act happen until it meets its bars, and prints each try.
func (s *show) perform(ctx context.Context, a act) error {
	var missed []error
	for try := range tries {
		if try > 0 {
			fmt.Printf("  %-26s %v: once more\n", "", errors.Join(missed...))
		}
		var err error
		if missed, err = s.once(ctx, a); err != nil || len(missed) == 0 {
			return err
		}
	}
	s.failed = append(s.failed, missed...)
	return nil
}

// once prints an act's line; missed tells what took too long.
func (s *show) once(ctx context.Context, a act) (missed []error, err error) {
	s.fleet.GoHome()
	time.Sleep(time.Second)
	from := time.Now()
	about, followed, err := a.do(ctx)
	if err != nil {
		return nil, err
	}
	time.Sleep(time.Second)
	others := func(path string) bool { return about == nil || path != about.Name }
	to, record := time.Now(), s.fleet.Record
	longest := func(k load.Kind) time.Duration { return record.Longest(k, from, to, others).Took }
	late := record.Longest(load.Machine, from, to, nil).Took
	fmt.Printf("  %-26s %-22s %9s %11s %10s %9s\n", a.name, followed, ms(longest(load.Direct)), ms(longest(load.Redirected)), ms(longest(load.Metadata)), ms(late))
	for kind, bar := range map[load.Kind]time.Duration{load.Direct: directBar, load.Redirected: a.redirected} {
		if took, limit := longest(kind), bar+hands*late; took > limit {
			missed = append(missed, fmt.Errorf("%s: a %s operation took %v, more than %v", a.name, kind, took, limit))
		}
	}
	if about == nil {
		return missed, nil
	}
	back := time.Now()
	if err := a.undo(ctx, about); err != nil {
		return missed, err
	}
	if s.struck != nil {
		s.strikes[s.struck].Add(1)
		s.struck = nil
	}
	fmt.Printf("  %-26s %s after %s\n", "", about.Name+" is whole again", ms(time.Since(back)))
	return missed, s.settle(about.Name)
}

// settleLimit is for the commands that were sent to a struck node.
const settleLimit = 30 * time.Second

// settle waits for them: TCP sends again late what was lost with a network, and the next act would be blamed.
func (s *show) settle(path string) error {
	now := time.Now()
	return lab.Poll(settleLimit, func() error {
		if s.fleet.Record.Pending(path, now) {
			return fmt.Errorf("a command to %s has not ended", path)
		}
		return nil
	})
}

func ms(d time.Duration) string { return fmt.Sprintf("%d ms", d.Milliseconds()) }

func (s *show) rest(context.Context) (*lab.ClusterNode, string, error) { return nil, "–", nil }

func (s *show) move(ctx context.Context) (*lab.ClusterNode, string, error) {
	now, err := s.cluster.Coordinator(ctx)
	if err != nil {
		return nil, "", err
	}
	to := s.cluster.Others(now)[0]
	began := time.Now()
	err = s.cluster.Move(ctx, to)
	return nil, fmt.Sprintf("%s → %s in %s", now.Name, to.Name, ms(time.Since(began))), err
}

// strike does something to the coordinator and waits for the next one.
func (s *show) strike(ctx context.Context, blow func(*lab.ClusterNode) error) (*lab.ClusterNode, string, error) {
	old, err := s.cluster.Coordinator(ctx)
	if err != nil {
		return nil, "", err
	}
	s.strikes[old].Add(1)
	s.struck = old
	began := time.Now()
	if err := blow(old); err != nil {
		return old, "", err
	}
	others := &lab.Cluster{Nodes: s.cluster.Others(old)}
	var next *lab.ClusterNode
	err = lab.Poll(20*time.Second, func() (err error) {
		if next, err = others.Coordinator(ctx); err == nil && next == old {
			err = fmt.Errorf("%s still coordinates", old.Name)
		}
		return err
	})
	if err != nil {
		return old, "", err
	}
	return old, fmt.Sprintf("%s → %s in %s", old.Name, next.Name, ms(time.Since(began))), nil
}

func (s *show) kill(ctx context.Context) (*lab.ClusterNode, string, error) {
	return s.strike(ctx, func(n *lab.ClusterNode) error { n.Kill(); return nil })
}

func (s *show) freeze(ctx context.Context) (*lab.ClusterNode, string, error) {
	return s.strike(ctx, func(n *lab.ClusterNode) error { n.Freeze(); return nil })
}

func (s *show) thaw(ctx context.Context, n *lab.ClusterNode) error {
	n.Thaw()
	return n.Revive(ctx, patience)
}

func (s *show) powerOff(ctx context.Context) (*lab.ClusterNode, string, error) {
	return s.strike(ctx, func(n *lab.ClusterNode) error { return n.PowerOff(ctx) })
}

// powerOffLeader takes the leader of the cluster's database along.
func (s *show) powerOffLeader(ctx context.Context) (*lab.ClusterNode, string, error) {
	if _, err := s.cluster.LeaderCoordinates(ctx); err != nil {
		return nil, "", err
	}
	time.Sleep(time.Second)
	return s.powerOff(ctx)
}

// patience is for a node that was out to end, if it does.
const patience = 2 * time.Second

const stateLimit = 10 * time.Second

func (s *show) cutPath(ctx context.Context) (*lab.ClusterNode, string, error) {
	coordinator, err := s.cluster.Coordinator(ctx)
	if err != nil {
		return nil, "", err
	}
	n := s.cluster.Others(coordinator)[0]
	began := time.Now()
	if err := n.CutPath(); err != nil {
		return n, "", err
	}
	if err := n.AwaitState(ctx, api.Redirected, stateLimit); err != nil {
		return n, "", err
	}
	return n, fmt.Sprintf("%s redirected in %s", n.Name, ms(time.Since(began))), nil
}

func (s *show) cutCoordinatorPath(ctx context.Context) (*lab.ClusterNode, string, error) {
	return s.strike(ctx, (*lab.ClusterNode).CutPath)
}

func (s *show) mendPath(ctx context.Context, n *lab.ClusterNode) error {
	if err := n.MendPath(); err != nil {
		return err
	}
	return n.AwaitState(ctx, api.Direct, stateLimit)
}

func (s *show) cutNetwork(ctx context.Context) (*lab.ClusterNode, string, error) {
	return s.strike(ctx, func(n *lab.ClusterNode) error { return n.CutNetwork(ctx) })
}

func (s *show) mendNetwork(ctx context.Context, n *lab.ClusterNode) error {
	if err := n.MendNetwork(ctx); err != nil {
		return err
	}
	if err := n.Revive(ctx, patience); err != nil {
		return err
	}
	return n.AwaitState(ctx, api.Direct, stateLimit)
}
