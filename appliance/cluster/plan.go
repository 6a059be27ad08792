package cluster

import (
	"cmp"
	"slices"
)

// voterCount is how many etcd members vote in a cluster of n nodes.
func voterCount(n int) int {
	switch {
	case n >= 7:
		return 5
	case n >= 3:
		return 3
	}
	return 1
}

// seat is a node, or a member of etcd, as the rule of voters sees it.
type seat struct {
	name     string // "": a member of etcd without a node
	number   uint16
	id       uint64 // of its etcd member, 0: none
	voter    bool
	learner  bool
	starting bool // its etcd member has not told its name yet
	leader   bool
	witness  bool
	leaving  bool
	alive    bool // heard of within the patience
}

// fit tells whether a seat should vote.
func (s *seat) fit() bool { return s.alive && !s.leaving }

// step is one change of etcd's membership.
type step struct {
	do   deed
	name string
	id   uint64
}

type deed int

const (
	nothing deed = iota
	addLearner
	promote
	remove
	handOver // the leader's office goes to the named voter
)

// plan is the next change towards the right number of living voters. It never leaves the voters
// without a living majority, and it goes from one voter to three in one go, since two are worse than
// one: it waits until all the learners it needs are there.
func plan(seats []seat) step {
	t := count(seats)
	switch {
	case t.orphan != nil:
		return step{remove, "", t.orphan.id}
	case t.deadLearner != nil:
		return step{remove, t.deadLearner.name, t.deadLearner.id}
	}
	missing := t.want - t.fitVoters
	if missing > 0 {
		return t.grow(missing)
	}
	if len(t.learners) > 0 {
		return step{remove, t.learners[0].name, t.learners[0].id}
	}
	if t.voters > t.want {
		return t.shrink(seats)
	}
	return step{}
}

type tally struct {
	want, voters, livingVoters, fitVoters int
	orphan, deadLearner                   *seat
	learners, spares                      []*seat
}

func count(seats []seat) tally {
	var t tally
	staying := 0
	for i := range seats {
		s := &seats[i]
		if s.name != "" && !s.leaving {
			staying++
		}
		switch {
		case s.name == "":
			t.orphan = s
		case s.learner && s.fit():
			t.learners = append(t.learners, s)
		case s.learner:
			t.deadLearner = s
		case !s.voter && s.fit():
			t.spares = append(t.spares, s)
		}
		if s.voter {
			t.voters++
			t.livingVoters += asInt(s.alive)
			t.fitVoters += asInt(s.fit())
		}
	}
	t.want = voterCount(staying)
	slices.SortFunc(t.spares, func(a, b *seat) int {
		return cmp.Or(asInt(b.witness)-asInt(a.witness), cmp.Compare(a.number, b.number))
	})
	return t
}

func asInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// grow adds learners until there are enough for all who are missing, then makes them voters. It adds one
// when the last has started: a member that starts asks all others for the list of members, which must be
// the one that it was given, and one that itself starts answers none for some seconds.
func (t *tally) grow(missing int) step {
	starting := slices.ContainsFunc(t.learners, func(s *seat) bool { return s.starting })
	switch {
	case len(t.learners)+len(t.spares) < missing:
		return step{}
	case len(t.learners) < missing && starting:
		return step{}
	case len(t.learners) < missing:
		return step{addLearner, t.spares[0].name, 0}
	case t.livingVoters+1 < majority(t.voters+1):
		return step{}
	}
	return step{promote, t.learners[0].name, t.learners[0].id}
}

func majority(voters int) int { return voters/2 + 1 }

// shrink removes one voter too many: the dead first, then who leaves, then who came last. The leader
// hands over before.
func (t *tally) shrink(seats []seat) step {
	var out *seat
	for i := range seats {
		if s := &seats[i]; s.voter && (out == nil || worse(s, out)) {
			out = s
		}
	}
	living := t.livingVoters - asInt(out.alive)
	if living < majority(t.voters-1) {
		return step{}
	}
	if !out.leader {
		return step{remove, out.name, out.id}
	}
	for i := range seats {
		if s := &seats[i]; s.voter && s.fit() && s != out {
			return step{handOver, s.name, s.id}
		}
	}
	return step{}
}

func worse(a, b *seat) bool {
	return cmp.Or(asInt(b.alive)-asInt(a.alive), asInt(a.leaving)-asInt(b.leaving), asInt(b.leader)-asInt(a.leader),
		cmp.Compare(a.number, b.number)) > 0
}
