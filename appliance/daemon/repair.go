package daemon

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"lunar/appliance/api"
	"lunar/appliance/cluster"
	"lunar/datapath/coordinator"
	"lunar/datapath/layout/protocol"
	"lunar/datapath/volume"
)

// The bounds of a repair's steps.
const (
	redirectLimit = 60 * time.Second // for all layouts to come back: longer than a node that does not answer is fenced
	turnLimit     = 2 * time.Minute  // for this node to win a volume that has no coordinator
	turnAgain     = time.Second      // between the tries
	maxSteps      = 256              // that a slow reader has not taken; further ones are left out
	stepEvery     = 300 * time.Millisecond
)

// repairs are those under way on this node. The zero value is ready.
type repairs struct {
	mu      sync.Mutex // guards what follows
	number  uint64
	running map[uint64]context.CancelFunc
	stopped bool
}

// begin is a context that stop ends; false when the node stops.
func (r *repairs) begin(ctx context.Context) (context.Context, func(), bool) {
	ctx, cancel := context.WithCancel(ctx)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stopped {
		cancel()
		return ctx, cancel, false
	}
	if r.running == nil {
		r.running = map[uint64]context.CancelFunc{}
	}
	r.number++
	number := r.number
	r.running[number] = cancel
	return ctx, func() {
		cancel()
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.running, number)
	}, true
}

// stop ends all, and lets none begin any more.
func (r *repairs) stop() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stopped = true
	for _, cancel := range r.running {
		cancel()
	}
}

// RepairVolume implements server.Repairs: the volume's coordinator does it.
func (n *Node) RepairVolume(ctx context.Context, name string, r api.Repair, tell func(api.RepairStep) error) (api.RepairResult, error) {
	v, err := n.volume(name)
	if err == nil {
		err = checkRepair(name, r)
	}
	if err != nil {
		return api.RepairResult{}, err
	}
	if peer, ok := n.coordinatorElsewhere(v); ok {
		return n.repairThere(ctx, peer, v, r, tell)
	}
	return n.repairHere(ctx, v, r, tell)
}

// checkRepair refuses what makes no sense.
func checkRepair(name string, r api.Repair) error {
	switch {
	case r.NoCheck && (r.CheckOnly || r.Force):
		return api.Errorf(api.Invalid, "a repair without a check has nothing to repair").WithHint("leave --no-check out")
	case r.NoCheck && !r.Trim && len(r.Defragment) == 0:
		return api.Errorf(api.Invalid, "nothing is left to do").WithHint("give --trim or --defragment, or leave --no-check out")
	case r.CheckOnly && r.Force:
		return api.Errorf(api.Invalid, "a check alone changes nothing, and needs no force").WithHint("leave --check-only or --force out")
	}
	for _, image := range r.Defragment {
		volume, _, err := api.SplitImage(image)
		if err != nil {
			return err
		}
		if volume != name {
			return api.Errorf(api.Invalid, "image %s is not on volume %s", image, name)
		}
	}
	return nil
}

// repair is one under way.
type repair struct {
	node    *Node
	v       *volumeState
	request api.Repair
	result  api.RepairResult
	steps   chan api.RepairStep

	redirected, waits time.Time // since when I/O was redirected, and waited; zero: it was not
}

// repairHere does it, and hands each step on while it does.
func (n *Node) repairHere(ctx context.Context, v *volumeState, r api.Repair, tell func(api.RepairStep) error) (api.RepairResult, error) {
	ctx, end, ok := n.repairs.begin(ctx)
	defer end()
	if !ok {
		return api.RepairResult{}, api.Errorf(api.Unavailable, "this node is stopping")
	}
	one := &repair{node: n, v: v, request: r, steps: make(chan api.RepairStep, maxSteps)}
	done := make(chan error, 1)
	go func() {
		err := one.run(ctx)
		close(one.steps)
		done <- err
	}()
	for step := range one.steps {
		if tell(step) != nil {
			end() // who asked is gone
		}
	}
	err := <-done
	return one.result, refusal(err)
}

// say tells a step. It does not block: I/O may wait for who says it.
func (r *repair) say(step api.RepairStep) {
	select {
	case r.steps <- step:
	default:
	}
}

func (r *repair) run(ctx context.Context) (err error) {
	n, began := r.node, time.Now()
	if err := n.unheld(r.v); err != nil {
		return err
	}
	r.result.Volume, r.result.FileSystem = r.v.name(), n.record(r.v).FileSystem
	defer func() {
		r.result.TookNS = int64(time.Since(began))
		r.result.Coordinator = r.v.coordinator()
		r.note(ctx, err)
	}()
	n.note(ctx, cluster.Event{Kind: "volume.maintenance", Volume: r.v.name(), Text: fmt.Sprintf("maintenance of volume %s begins on node %s: %s", r.v.name(), n.name, r.what())})
	if !r.request.NoCheck {
		err := r.held(ctx, true, r.check)
		r.settled(ctx)
		if err != nil {
			return err
		}
	}
	if !r.request.Trim && len(r.request.Defragment) == 0 {
		return nil
	}
	return r.held(ctx, false, func(ctx context.Context, _ *held) error {
		return errors.Join(r.defragment(ctx), r.trim(ctx))
	})
}

// what names the parts of the repair.
func (r *repair) what() string {
	var parts []string
	for _, p := range []struct {
		is   bool
		name string
	}{
		{!r.request.NoCheck && r.request.CheckOnly, "check"},
		{!r.request.NoCheck && !r.request.CheckOnly, "check and repair"},
		{len(r.request.Defragment) > 0, "defragmentation"},
		{r.request.Trim, "TRIM"},
	} {
		if p.is {
			parts = append(parts, p.name)
		}
	}
	return strings.Join(parts, ", ")
}

// note tells the cluster's log how it ended.
func (r *repair) note(ctx context.Context, err error) {
	ctx = context.WithoutCancel(ctx)
	text := fmt.Sprintf("maintenance of volume %s has ended after %v: %s", r.v.name(), time.Duration(r.result.TookNS).Round(time.Millisecond), r.inWords())
	if err != nil {
		text = fmt.Sprintf("maintenance of volume %s was not done: %v", r.v.name(), err)
	}
	r.node.note(ctx, cluster.Event{Kind: "volume.maintained", Volume: r.v.name(), Text: text})
}

// inWords is what came of it.
func (r *repair) inWords() string {
	var parts []string
	switch {
	case r.result.Repaired:
		parts = append(parts, "damage was found and repaired")
	case r.result.Damaged:
		parts = append(parts, "damage was found")
	case r.result.Checked:
		parts = append(parts, "no damage was found")
	}
	if r.result.WaitedNS > 0 {
		parts = append(parts, fmt.Sprintf("I/O waited for at most %v", r.result.Waited().Round(time.Millisecond)))
	}
	for _, d := range r.result.Defragmented {
		parts = append(parts, fmt.Sprintf("%s has %d extents, had %d", d.Image, d.After, d.Before))
	}
	if r.request.Trim {
		parts = append(parts, api.FormatSize(r.result.Trimmed)+" were told to the device as unused")
	}
	return strings.Join(parts, "; ")
}

// held does one part while the volume is held.
func (r *repair) held(ctx context.Context, redirect bool, do func(context.Context, *held) error) error {
	h, err := r.node.hold(ctx, r.v, volume.Maintenance, redirect, r.what())
	if err != nil {
		return err
	}
	defer h.end(ctx)
	ctx, cancel := context.WithCancel(ctx)
	var watch sync.WaitGroup
	defer watch.Wait()
	defer cancel()
	watch.Go(func() {
		select {
		case <-h.Lost():
			cancel()
		case <-ctx.Done():
		}
	})
	return do(ctx, h)
}

// check redirects all I/O, and has the seat check and mend the volume.
func (r *repair) check(ctx context.Context, h *held) error {
	s := r.v.seat.Load()
	if s == nil {
		return api.Errorf(api.Unavailable, "volume %s is not available on this node: %s", r.v.name(), r.v.why())
	}
	redirected := time.Now()
	if s.coordinator(0) != nil {
		r.say(api.RepairStep{Phase: phaseRedirect, Text: "all I/O goes through the coordinator, reason Maintenance"})
		limited, cancel := context.WithTimeout(ctx, redirectLimit)
		err := h.redirected(limited)
		cancel()
		if err != nil {
			return err
		}
	}
	o := &overhaul{request: r.request, say: r.say, ctx: ctx, limit: waitLimit, done: make(chan struct{})}
	if err := s.overhaulSoon(o); err != nil {
		return err
	}
	if err := r.awaitOverhaul(ctx, s, o); err != nil {
		return err
	}
	o.result.Volume, o.result.FileSystem = r.result.Volume, r.result.FileSystem
	r.result = o.result
	if o.fatal == nil {
		r.say(api.RepairStep{Phase: phaseMount, Text: "the volume is mounted again"})
		o.fatal = r.followed(ctx, s)
	}
	r.redirected, r.waits = redirected, o.began
	return errors.Join(o.err, o.fatal)
}

// directLimit is for all nodes to be as they were before a check.
const directLimit = 3 * time.Second

// settled waits until no node is redirected for a repair any more, so that what is told of waiting and redirected I/O
// holds for every node.
func (r *repair) settled(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), directLimit)
	defer cancel()
	maintained := func(row api.VolumeNode) bool { return strings.Contains(row.Reason, volume.Maintenance.String()) }
	for !r.redirected.IsZero() && slices.ContainsFunc(r.node.rows(ctx, r.v), maintained) && pause(ctx, heldPoll) == nil {
	}
	if !r.redirected.IsZero() {
		r.result.RedirectedNS = int64(time.Since(r.redirected))
	}
	if !r.waits.IsZero() {
		r.result.WaitedNS = int64(time.Since(r.waits))
	}
}

// awaitOverhaul returns when it has ended. A vacant seat is made this node's for it.
func (r *repair) awaitOverhaul(ctx context.Context, s *seat, o *overhaul) error {
	late := time.NewTimer(turnLimit)
	defer late.Stop()
	again := time.NewTicker(turnAgain)
	defer again.Stop()
	gone := ctx.Done()
	for {
		select {
		case <-o.done:
			return nil
		case <-again.C:
			if s.coordinator(0) == nil {
				r.takeTurn(ctx, s)
			}
			continue
		case <-late.C:
			if s.withdraw(o) {
				return errors.Join(api.Errorf(api.Unavailable, "node %s did not become the coordinator of volume %s within %v", r.node.name, r.v.name(), turnLimit), s.failure())
			}
		case <-gone:
			if s.withdraw(o) || r.node.stopping.Load() {
				return ctx.Err()
			}
			gone = nil // a check ends by itself then; a repair that has begun to write goes on
		}
	}
}

// takeTurn asks for the seat; a failure is tried again.
func (r *repair) takeTurn(ctx context.Context, s *seat) {
	s.mu.Lock()
	under := s.overhauling
	s.mu.Unlock()
	if e, err := r.node.elections(ctx); err == nil && !under {
		_, _ = e.Move(ctx, r.v.id, r.node.name)
	}
}

// followed returns when no node's I/O waits for the volume any more.
func (r *repair) followed(ctx context.Context, s *seat) error {
	c := s.coordinator(0)
	if c == nil {
		return errors.Join(fmt.Errorf("volume %s did not come back", r.v.name()), s.failure())
	}
	limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), redirectLimit)
	defer cancel()
	return c.Followed(limited)
}

// present is this node's coordinator of the volume.
func (r *repair) present() (*coordinator.Coordinator, error) {
	if s := r.v.seat.Load(); s != nil {
		if c := s.coordinator(0); c != nil {
			return c, nil
		}
	}
	return nil, api.Errorf(api.Unavailable, "this node does not coordinate volume %s any more", r.v.name()).
		WithHint("give the command again")
}

// defragment joins the extents of the images that were named, one after the other.
func (r *repair) defragment(ctx context.Context) error {
	for _, image := range r.request.Defragment {
		c, err := r.present()
		if err != nil {
			return err
		}
		_, path, _ := api.SplitImage(image) // checked before
		size, err := r.sizeOf(ctx, c, path)
		if err != nil {
			return err
		}
		last := time.Now()
		m, err := c.Defragment(ctx, protocol.NodeID(r.node.name), path, func(m coordinator.Moved) {
			if time.Since(last) >= stepEvery {
				last = time.Now()
				r.say(api.RepairStep{Phase: phaseDefragment, Text: image, Done: m.Looked, Total: size})
			}
		})
		if err != nil {
			return err
		}
		r.say(api.RepairStep{Phase: phaseDefragment, Text: fmt.Sprintf("%s: %d extents, was %d", image, m.Now, m.Before)})
		r.result.Defragmented = append(r.result.Defragmented, api.Defragmented{Image: image, Before: m.Before, After: m.Now, Moved: m.Moved})
	}
	return nil
}

func (r *repair) sizeOf(ctx context.Context, c *coordinator.Coordinator, path string) (int64, error) {
	st, err := c.Stat(ctx, path)
	return st.Size, err
}

// trim tells the device what the file system does not use.
func (r *repair) trim(ctx context.Context) (err error) {
	if !r.request.Trim {
		return nil
	}
	c, err := r.present()
	if err != nil {
		return err
	}
	last := time.Now()
	r.result.Trimmed, err = c.Trim(ctx, func(looked, all int64) {
		if looked == all || time.Since(last) >= stepEvery {
			last = time.Now()
			r.say(api.RepairStep{Phase: phaseTrim, Done: looked, Total: all})
		}
	})
	return err
}
