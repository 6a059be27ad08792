package cluster

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"
)

// Campaigns in parallel, how long one may take, and the pause after one that failed.
const (
	maxCampaigns    = 8
	campaignTimeout = 10 * time.Second
	campaignPause   = 100 * time.Millisecond
)

// Duties are what a node does about coordination. Run calls them one at a time; they must not block.
type Duties struct {
	Won     func(t *Term)                      // the caller fences, mounts and opens, and ends the term by Release or Abandon
	Leave   func(t *Term, next, reason string) // the term is to be handed over; again if the successor changes
	Over    func(t *Term, reason string)       // the term was ended by others: the volume must not be touched
	Changed func(v *View)                      // the latest state, also the first one
}

// runner is the shell around elector. Its goroutine is Run's caller; views and campaigns come in by
// latest, finished and wake.
type runner struct {
	c        *Coordinators
	duties   Duties
	elector  *elector
	latest   chan *View
	finished chan campaign
	wake     chan struct{}
	busy     map[string]bool // volumes for which a campaign is under way
	terms    map[string]*ours
	wg       sync.WaitGroup
}

type campaign struct {
	volume string
	term   *Term
	err    error
}

// ours is a term of this node, and the order to leave that was told.
type ours struct {
	*Term
	next, reason string
}

// Run takes part in every election in which this node can, until ctx ends. The terms that are held
// then stay with the caller, who releases them.
func (c *Coordinators) Run(ctx context.Context, d Duties) error {
	r := &runner{c: c, duties: d, elector: newElector(c.db.node), latest: make(chan *View, 1),
		finished: make(chan campaign), wake: make(chan struct{}, 1), busy: map[string]bool{}, terms: map[string]*ours{}}
	ctx, cancel := context.WithCancel(ctx)
	watched := make(chan error, 1)
	go func() { watched <- c.Watch(ctx, r.deliver) }()
	r.wg.Go(func() { c.observe(ctx) })
	err := r.loop(ctx, watched)
	cancel()
	r.drain() //nolint:contextcheck // its context has ended
	return err
}

// deliver leaves the latest view for the loop.
func (r *runner) deliver(v *View) {
	select {
	case <-r.latest:
	default:
	}
	r.latest <- v
}

func (r *runner) rouse() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

func (r *runner) loop(ctx context.Context, watched chan error) error {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	var view *View
	for {
		var lost <-chan struct{}
		if l := r.c.session.current(); l != nil {
			lost = l.gone
		}
		select {
		case err := <-watched:
			return err
		case view = <-r.latest:
			r.duties.Changed(view)
		case done := <-r.finished:
			r.finish(ctx, done)
		case <-r.wake:
		case <-lost:
		case <-timer.C:
		}
		if view == nil || ctx.Err() != nil {
			continue
		}
		if again := r.step(ctx, view); again > 0 {
			timer.Reset(again)
		}
	}
}

// drain waits for the campaigns; a seat that was won too late is given back.
func (r *runner) drain() {
	go func() {
		r.wg.Wait()
		close(r.finished)
	}()
	for done := range r.finished {
		if done.term == nil {
			continue
		}
		ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
		if err := done.term.Release(ctx, ""); err != nil {
			r.c.log.Warn("coordinators: a seat won at the end stays until the session ends", "volume", done.volume, "reason", err)
		}
		cancel()
	}
}

// step does what the view asks for, and tells after how long to look again, 0: at the next event.
func (r *runner) step(ctx context.Context, v *View) time.Duration {
	now := time.Duration(Boottime())
	for volume, t := range r.terms {
		r.check(v, volume, t, now)
	}
	l := r.c.session.current()
	if l == nil || v.Nodes[r.c.db.node].Session != l.revision {
		return campaignPause // established anew, or about to be
	}
	campaigns, again := r.elector.plan(v, now, func(volume string) bool { return r.busy[volume] || r.terms[volume] != nil })
	for _, volume := range campaigns {
		if len(r.busy) >= maxCampaigns {
			break // finish leads here again
		}
		r.campaign(ctx, volume)
	}
	return max(again-now, 0)
}

// check looks after one of our terms.
func (r *runner) check(v *View, volume string, t *ours, now time.Duration) {
	if t.opened.Load() {
		r.elector.opened(volume)
	}
	seat := v.Seats[volume]
	if reason, over := t.overIn(v, &seat); over {
		delete(r.terms, volume)
		if !t.opened.Load() || seat.Released != t.Epoch {
			r.elector.failed(volume, now)
		}
		if !t.leaving.Load() {
			r.duties.Over(t.Term, reason)
		}
		return
	}
	if seat.Term != t.key || t.leaving.Load() {
		return
	}
	if next, reason, ok := v.leave(r.c.db.node, seat); ok && (next != t.next || reason != t.reason) {
		t.next, t.reason = next, reason
		r.duties.Leave(t.Term, next, reason)
	}
}

// overIn tells whether the term has ended, by the session or by the view.
func (t *Term) overIn(v *View, seat *Seat) (reason string, over bool) {
	select {
	case <-t.life.gone:
		return ErrSessionLost.Error(), true
	default:
	}
	if v.Revision < t.key || seat.Term == t.key {
		return "", false
	}
	if seat.Reason != "" {
		return seat.Reason, true
	}
	return "its seat was taken", true
}

func (r *runner) campaign(ctx context.Context, volume string) {
	r.busy[volume] = true
	r.wg.Go(func() {
		ctx, cancel := context.WithTimeout(ctx, campaignTimeout)
		defer cancel()
		t, err := r.c.Campaign(ctx, volume)
		r.finished <- campaign{volume, t, err}
	})
}

func (r *runner) finish(ctx context.Context, done campaign) {
	delete(r.busy, done.volume)
	now := time.Duration(Boottime())
	switch {
	case done.err == nil:
		done.term.wake = r.rouse
		r.terms[done.volume] = &ours{Term: done.term}
		r.duties.Won(done.term)
	case errors.Is(done.err, ErrInUse), errors.Is(done.err, ErrSessionLost), errors.Is(done.err, ErrUnavailable):
		r.elector.pause(done.volume, now)
		r.c.log.LogAttrs(ctx, slog.LevelDebug, "coordinators: campaign", slog.String("volume", done.volume), slog.Any("reason", done.err))
	default:
		r.elector.failed(done.volume, now)
		r.c.log.Warn("coordinators: campaign", "volume", done.volume, "reason", done.err)
	}
}
