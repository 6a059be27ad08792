package daemon

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"lunar/appliance/api"
	"lunar/appliance/cluster"
	"lunar/datapath/coordinator"
)

// An overhaul is a check, and a repair when that finds damage, of a volume that is not mounted. Its place is in a
// take-over: after the coordinator before was fenced or has handed over, and before the mount. So nobody else can
// have the volume mounted, and who takes over next fences this node first.
//
// The volume's record says when a repair has begun to write. It is ended then before any mount: by this node, or,
// when it is cut off, by the next coordinator. Nothing of a tool that was cut off comes later: it dies with its
// daemon, which the guard kills at the deadline and, when it is asked, before it lets another node mount; the guard
// looks that the device is held by nobody, which the tool does exclusively. Where a tool leaves dirty pages behind
// (coordinator.FSType.Clean), a volume of several nodes is not repaired by it.

// overhaul is one that somebody asked for.
type overhaul struct {
	request api.Repair
	say     func(api.RepairStep) // does not block
	ctx     context.Context      //nolint:containedctx // of who asked; a repair that has begun to write goes on without it
	limit   time.Duration        // for how long I/O may wait, unless the request lets it wait
	done    chan struct{}        // closed when the volume serves again, or did not come back

	// Before done only for the seat.
	began      time.Time // I/O waits since then; zero: it waited before
	result     api.RepairResult
	unfinished bool  // a repair has begun to write, and is not done
	err        error // why it was not done, or not whole
	fatal      error // why the volume did not come back
}

// overhaulSoon has the seat hand over to itself, and overhaul the volume in between. A seat that is vacant does it
// when this node wins it.
func (s *seat) overhaulSoon(o *overhaul) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.overhaul != nil {
		return api.Errorf(api.Busy, "volume %s is being checked already", s.name())
	}
	s.overhaul = o
	if s.here != nil && s.here.why == "" {
		s.order = &departure{s.here.term, s.node.name, "for its check"}
	}
	s.kick()
	return nil
}

// withdraw takes an overhaul back that has not begun; false when it has.
func (s *seat) withdraw(o *overhaul) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.overhaul != o || s.overhauling {
		return false
	}
	s.overhaul = nil
	return true
}

// ioWaits notes since when the I/O of a volume waits that is overhauled.
func (s *seat) ioWaits(began time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.overhaul != nil {
		s.overhaul.began = began
	}
}

// overhaulIfDue is the take-over's step before the mount.
func (s *seat) overhaulIfDue(ctx context.Context, p *parts, t *cluster.Term) error {
	limited, cancel := context.WithTimeout(ctx, recordLimit)
	record, err := s.node.db.Volume(limited, s.v.id)
	cancel()
	if err != nil {
		return err
	}
	s.mu.Lock()
	o := s.overhaul
	s.overhauling = o != nil || record.Mending != nil
	s.mu.Unlock()
	if !s.overhauling {
		return nil
	}
	s.ending.Store(true) // the deadline is not let pass while a tool runs
	defer s.ending.Store(false)
	if o == nil {
		return s.endMending(ctx, p, t, *record.Mending)
	}
	o.unfinished = record.Mending != nil
	if o.err = s.check(ctx, p, t, o, record.Mending); o.unfinished || ctx.Err() != nil {
		return o.err
	}
	return nil
}

// overhauled tells who asked how the take-over ended.
func (s *seat) overhauled(err error) {
	s.mu.Lock()
	o := s.overhaul
	begun := s.overhauling
	s.overhauling = false
	if begun {
		s.overhaul = nil
	}
	s.mu.Unlock()
	if begun && o != nil {
		o.fatal = err
		close(o.done)
	}
}

// The words of the phases of a repair.
const (
	phaseRedirect   = "redirect"
	phaseCheck      = "check"
	phaseRepair     = "repair"
	phaseMount      = "mount"
	phaseDefragment = "defragment"
	phaseTrim       = "trim"
)

func (o *overhaul) told(phase string) coordinator.Told {
	return func(step string) { o.say(api.RepairStep{Phase: phase, Text: step}) }
}

// left is how long I/O may wait still; limited is false where it may wait for as long as it takes.
func (o *overhaul) left() (d time.Duration, limited bool) {
	if o.request.Wait || o.began.IsZero() {
		return 0, false
	}
	return o.limit - time.Since(o.began), true
}

// waitLimit is for how long a check may have I/O wait: what a node does without a coordinator ends after a minute, and
// the mount comes after the check.
const waitLimit = 40 * time.Second

// repairCosts is how much longer than its check a repair takes at most, with the check after it, as far as was seen.
const repairCosts = 4

// check looks, and mends what it finds. was is a repair that was cut off.
func (s *seat) check(ctx context.Context, p *parts, t *cluster.Term, o *overhaul, was *cluster.Mending) error {
	o.result.Checked = true
	if was != nil {
		o.result.Damaged = true
		return s.mend(ctx, p, t, o.request.Force || was.Force, o)
	}
	dirty := s.replay(ctx, p, t)
	looking, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(o.ctx, cancel)() //nolint:contextcheck // who asked may end the check too
	if limit, limited := o.left(); limited {
		var end context.CancelFunc
		looking, end = context.WithTimeout(looking, limit)
		defer end()
	}
	began := time.Now()
	found, err := coordinator.Check(looking, p.dev, o.told(phaseCheck))
	took := time.Since(began)
	switch {
	case err != nil && ctx.Err() == nil && o.ctx.Err() != nil:
		return api.Errorf(api.Failed, "the check was ended before it was whole: nothing was changed")
	case err != nil && ctx.Err() == nil && looking.Err() != nil:
		return api.Errorf(api.Refused, "the check was given up after %v: I/O waits for no longer than %v", took.Round(time.Second), o.limit).
			WithHint("--wait lets I/O wait for as long as it takes: stop the machines first, their I/O fails after a minute")
	case err != nil:
		return err
	}
	o.result.Damaged, o.result.Findings, o.result.More = found.Damaged, found.Words, found.More
	if !found.Damaged && dirty == nil || o.request.CheckOnly {
		return nil
	}
	if err := s.mayMend(p, o, took); err != nil {
		return err
	}
	return s.mend(ctx, p, t, o.request.Force, o)
}

// replay empties the log of a volume that was not handed over. An error is why it cannot be: the check then looks at
// what the log would have changed.
func (s *seat) replay(ctx context.Context, p *parts, t *cluster.Term) error {
	if t.Previous == nil {
		return nil
	}
	err := coordinator.Replay(ctx, p.dev, s.node.sharesKernel)
	if err != nil {
		s.log.Warn("the volume does not mount before its check", "error", err)
	}
	return err
}

// mayMend refuses a repair that would have I/O wait for too long, or that a later coordinator could not be kept from.
func (s *seat) mayMend(p *parts, o *overhaul, check time.Duration) error {
	fs := coordinator.FSType(s.node.record(s.v).FileSystem)
	if p.fencer != nil && !fs.Clean() {
		return api.Errorf(api.Refused, "volume %s is damaged, and %s is not repaired while several nodes have the volume", s.name(), fs).
			WithHint("its tool can write after this node was fenced: eject the volume, run e2fsck -f on one node, and add it again")
	}
	left, limited := o.left()
	if need := repairCosts*check + time.Second; limited && need > left {
		return api.Errorf(api.Refused, "volume %s is damaged, and its repair may take %v: I/O waits for no longer than %v",
			s.name(), need.Round(time.Second), o.limit).
			WithHint("--wait lets I/O wait for as long as it takes: stop the machines first, their I/O fails after a minute")
	}
	return nil
}

// mend repairs. Once it has begun, the volume is not mounted before it is done.
func (s *seat) mend(ctx context.Context, p *parts, t *cluster.Term, force bool, o *overhaul) error {
	if err := s.recordMending(ctx, &cluster.Mending{Node: s.node.name, Epoch: t.Epoch, Since: time.Now().UTC(), Force: force}); err != nil {
		return err
	}
	o.unfinished = true
	s.note(ctx, "volume.repair", t.Epoch, fmt.Sprintf("the repair of volume %s begins on node %s", s.name(), s.node.name))
	found, err := coordinator.Mend(ctx, p.dev, force, o.told(phaseRepair))
	if len(o.result.Findings) == 0 {
		o.result.Findings, o.result.More = found.Words, found.More
	}
	if err != nil && !errors.Is(err, coordinator.ErrDirtyLog) {
		return err
	}
	if err := s.recordMending(ctx, nil); err != nil {
		return err
	}
	o.unfinished = false
	if err != nil { // nothing was written
		return api.Errorf(api.Refused, "volume %s: %v", s.name(), err).
			WithHint("`lunarctl volume repair %s --force` gives the log up: what it has of the last changes is lost", s.name())
	}
	o.result.Repaired = true
	return nil
}

// endMending ends a repair that was cut off.
func (s *seat) endMending(ctx context.Context, p *parts, t *cluster.Term, was cluster.Mending) error {
	o := &overhaul{ctx: ctx, say: func(r api.RepairStep) { s.log.Info("repair", "phase", r.Phase, "step", r.Text) }}
	began := time.Now()
	err := s.mend(ctx, p, t, was.Force, o)
	if err != nil {
		return fmt.Errorf("volume %s: its repair, which began on node %s and was cut off, is not ended: %w", s.name(), was.Node, err)
	}
	s.note(ctx, "volume.repaired", t.Epoch, fmt.Sprintf("volume %s: its repair, which began on node %s and was cut off, was ended by node %s within %v",
		s.name(), was.Node, s.node.name, time.Since(began).Round(time.Millisecond)))
	return nil
}

// recordMending notes that the volume is not to be mounted before a repair is done, or that it is.
func (s *seat) recordMending(ctx context.Context, m *cluster.Mending) error {
	ctx, cancel := context.WithTimeout(ctx, recordLimit)
	defer cancel()
	_, err := s.node.db.UpdateVolume(ctx, s.v.id, func(r *cluster.Volume) error { r.Mending = m; return nil })
	return err
}

// advise adds to the error of a mount what may help.
func (s *seat) advise(err error) error {
	switch {
	case errors.Is(err, unix.EUCLEAN), errors.Is(err, unix.EBADMSG):
		return fmt.Errorf("%w: the file system is damaged: `lunarctl volume repair %s`", err, s.name())
	case errors.Is(err, unix.EIO):
		return fmt.Errorf("%w: if the path to the LUN is sound, its file system is damaged: `lunarctl volume repair %s`", err, s.name())
	}
	return err
}
