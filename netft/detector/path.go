package detector

import "time"

// maxFlaps bounds how often the time doubles for which a path has to prove itself: to 32 periods.
const maxFlaps = 6

// path is what is known of a way to a peer.
type path struct {
	Watched
	stamp  Stamp
	since  time.Duration // watched
	state  State
	steady time.Duration // heartbeats have passed without a gap since; 0: they do not
	flaps  int           // how often it stopped passing of late
	gone   time.Duration // what came until then does not count: the peer said that it has no carrier
	calm   time.Duration // Up since, or since flaps was last counted down
}

func (d *Detector) judgePath(owner *peer, p *path, now time.Duration, grace bool) {
	was := p.state
	v := d.next(p, now, grace)
	if p.state == was {
		return
	}
	v.Path, v.Threshold = p.Path, d.threshold(p)
	switch p.state {
	case Up:
		v.Kind, p.calm = PathUp, now
	case Lost:
		v.Kind, v.Reason = PathLost, p.reason()
	default:
		v.Kind = PathSuspect
	}
	d.say(v, owner, now)
}

// next brings the path to its next state, and returns the silence on which that rests.
func (d *Detector) next(p *path, now time.Duration, grace bool) Verdict {
	silence, unobserved, proven := d.worse(p, now)
	fresh := proven && silence <= d.profile.Leave()
	next := p.state
	switch {
	case p.Down != "", p.isGone():
		next, fresh = Lost, false
	case silence >= d.threshold(p):
		next = Lost
	case fresh:
		next = d.returning(p, now)
	case p.state == Up || p.state == Lost && proven:
		next = Suspect
	}
	if grace && next < p.state && !p.told() {
		next = p.state
	}
	if fresh || !grace || p.told() {
		d.count(p, next, fresh, now)
	}
	p.state = next
	return Verdict{Silence: silence, Unobserved: unobserved}
}

func (p *path) isGone() bool { return p.gone != 0 && min(p.stamp.Seen, p.stamp.Heard) <= p.gone }

// told tells whether someone who knows said that the path is down, so that nothing has to be observed.
func (p *path) told() bool { return p.Down != "" || p.isGone() }

func (p *path) reason() string {
	if p.Down == "" && p.isGone() {
		return "the peer has no carrier"
	}
	return p.Down
}

// worse is the longer silence of the two directions, and whether both ever passed.
func (d *Detector) worse(p *path, now time.Duration) (silence, unobserved time.Duration, proven bool) {
	silence, unobserved = d.silence(max(p.stamp.Seen, p.since), now)
	if !d.holds(ruleBothWays) {
		return silence, unobserved, p.stamp.Seen != 0
	}
	if unheard, u := d.unheard(max(p.stamp.Heard, p.since), now); unheard > silence {
		silence, unobserved = unheard, u
	}
	return silence, unobserved, p.stamp.Seen != 0 && p.stamp.Heard != 0
}

// returning is the state of a path on which heartbeats pass: one that did not pass proves itself first.
func (d *Detector) returning(p *path, now time.Duration) State {
	if p.state == Unproven || p.state == Up || !d.holds(ruleHold) {
		return Up
	}
	if p.steady != 0 {
		if steady, _ := d.silence(p.steady, now); steady >= d.hold(p) {
			return Up
		}
	}
	return Suspect
}

// hold is how long heartbeats have to pass before the path is Up again.
func (d *Detector) hold(p *path) time.Duration {
	return d.profile.Period << max(min(p.flaps, maxFlaps)-1, 0)
}

// count keeps how often the path stopped passing, and since when it passes.
func (d *Detector) count(p *path, next State, fresh bool, now time.Duration) {
	switch {
	case !fresh && (p.steady != 0 || p.state == Up) && next != Up:
		p.steady = 0
		p.flaps = min(p.flaps+1, maxFlaps)
	case fresh && p.steady == 0:
		p.steady = now
	}
	if next == Up && p.state == Up && p.flaps > 0 && now-p.calm >= max(4*d.hold(p), 2*d.profile.Threshold()) {
		p.flaps--
		p.calm = now
	}
}
