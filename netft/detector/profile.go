package detector

import (
	"errors"
	"fmt"
	"time"
)

// Bounds of a Profile.
const (
	MinPeriod = 50 * time.Millisecond
	MaxPeriod = time.Minute
	MinMissed = 3
	MaxMissed = 120
	// MinInterval bounds Profile.Interval: shorter ones cost more CPU than they tell.
	MinInterval = 20 * time.Millisecond
)

// ErrProfile is wrapped by what Profile.Validate and New return.
var ErrProfile = errors.New("detector: bad options")

// Profile says how soon silence counts.
type Profile struct {
	// Period is the unit of silence, Windows' SameSubnetDelay; it also is how long grace lasts.
	Period time.Duration
	// Missed is after how many silent periods a path, a node or a daemon is given up: Windows'
	// SameSubnetThreshold. MissedRouted is the same for a path between two subnets, CrossSubnetThreshold.
	Missed, MissedRouted int
	// Interval is the time between two heartbeats of a path, at most Period. It may be shorter, so that traffic
	// leaves a network which drops it long before anybody is given up. 0 is a tenth of Period, but not less than
	// 100 ms unless Period is less.
	Interval time.Duration
}

// Default is as Windows Server 2016: a second, 10 missed in one subnet and 20 between two.
func Default() Profile {
	return Profile{Period: time.Second, Missed: 10, MissedRouted: 20, Interval: 100 * time.Millisecond}
}

// Fast is for networks of low latency.
func Fast() Profile {
	return Profile{Period: 100 * time.Millisecond, Missed: 5, MissedRouted: 10, Interval: 100 * time.Millisecond}
}

// Threshold is the silence after which a path of one subnet, or a node, is given up.
func (p Profile) Threshold() time.Duration { return time.Duration(p.Missed) * p.Period }

// RoutedThreshold is Threshold for a path between two subnets.
func (p Profile) RoutedThreshold() time.Duration { return time.Duration(p.MissedRouted) * p.Period }

// Leave is the silence after which a path is Suspect: two heartbeats were missed, and half an interval is over.
func (p Profile) Leave() time.Duration { return p.Interval * 5 / 2 }

// Tick is how often to Judge, so that a verdict is late by less than an eighth of an interval.
func (p Profile) Tick() time.Duration { return max(p.Interval/8, 5*time.Millisecond) }

// WithDefaults fills what is 0: Period and Missed of Default, MissedRouted twice Missed, and Interval as said there.
func (p Profile) WithDefaults() Profile {
	if p.Period == 0 {
		p.Period = Default().Period
	}
	if p.Missed == 0 {
		p.Missed = Default().Missed
	}
	if p.MissedRouted == 0 {
		p.MissedRouted = min(2*p.Missed, MaxMissed)
	}
	if p.Interval == 0 {
		p.Interval = max(p.Period/10, min(p.Period, 100*time.Millisecond))
	}
	return p
}

// Validate tells what is wrong, and what would be right.
func (p Profile) Validate() error {
	switch {
	case p.Period < MinPeriod || p.Period > MaxPeriod:
		return fmt.Errorf("%w: a heartbeat period of %v: give %v to %v", ErrProfile, p.Period, MinPeriod, MaxPeriod)
	case p.Missed < MinMissed || p.Missed > MaxMissed:
		return fmt.Errorf("%w: %d missed heartbeats: give %d to %d", ErrProfile, p.Missed, MinMissed, MaxMissed)
	case p.MissedRouted < p.Missed || p.MissedRouted > MaxMissed:
		return fmt.Errorf("%w: %d missed heartbeats between subnets: give %d to %d",
			ErrProfile, p.MissedRouted, p.Missed, MaxMissed)
	case p.Interval < MinInterval || p.Interval > p.Period:
		return fmt.Errorf("%w: heartbeats every %v: give %v to the period, %v",
			ErrProfile, p.Interval, MinInterval, p.Period)
	}
	return nil
}
