package trace

import (
	"cmp"
	"encoding/binary"
	"slices"
	"time"
)

// Slow is one command that was among the slowest.
type Slow struct {
	Key        Key
	Received   time.Time
	Took       time.Duration
	CDB        [16]byte
	Bytes      int
	Status     uint8
	Redirected bool
	Stages     [NumStages]time.Duration // of those that it passed
	Passed     [NumStages]bool
}

// Offset is where on the LUN a read or a write begins, in bytes; -1 for other commands.
func (s *Slow) Offset(block int64) int64 {
	if ops[s.CDB[0]].kind == Other {
		return -1
	}
	switch s.CDB[0] >> 5 {
	case 0:
		return int64(binary.BigEndian.Uint32(s.CDB[0:])&0x1fffff) * block
	case 4:
		return int64(binary.BigEndian.Uint64(s.CDB[2:])) * block
	}
	return int64(binary.BigEndian.Uint32(s.CDB[2:])) * block
}

// slowest keeps the MaxSlow slowest of all that it is shown.
type slowest struct {
	n     int
	least int64 // what is no slower is not kept
	at    int   // where the least stands, when there are MaxSlow
	kept  [MaxSlow]kept
}

// kept is a Slow before it is handed over.
type kept struct {
	series         *series
	received, took int64
	cdb            [16]byte
	bytes          int32
	status         uint8
	redirected     bool
	passed         passed
}

func (s *slowest) keep(c *command, p *passed, took int64) {
	at := s.n
	if s.n == MaxSlow {
		at = s.at
	} else {
		s.n++
	}
	s.kept[at] = kept{
		series: c.series, received: c.received, took: took, cdb: c.cdb, bytes: c.bytes, status: c.status,
		redirected: c.redirected != 0, passed: *p,
	}
	if s.n < MaxSlow {
		return
	}
	s.at = 0
	for i := range s.kept {
		if s.kept[i].took < s.kept[s.at].took {
			s.at = i
		}
	}
	s.least = s.kept[s.at].took
}

// take empties it.
func (s *slowest) take(epoch time.Time) []Slow {
	out := make([]Slow, s.n)
	for i := range out {
		k := &s.kept[i]
		out[i] = Slow{
			Key: k.series.key, Received: epoch.Add(time.Duration(k.received)), Took: time.Duration(k.took), CDB: k.cdb, Bytes: int(k.bytes),
			Status: k.status, Redirected: k.redirected,
		}
		for j, took := range k.passed.took {
			out[i].Stages[j], out[i].Passed[j] = time.Duration(took), k.passed.has&(1<<j) != 0
		}
		k.series = nil
	}
	s.n, s.least, s.at = 0, 0, 0
	return out
}

// bySlowness orders the slowest first.
func bySlowness(a, b Slow) int { return cmp.Compare(b.Took, a.Took) }

// keepSlowest adds more, and keeps the MaxSlow slowest.
func keepSlowest(all, more []Slow) []Slow {
	all = append(all, more...)
	slices.SortStableFunc(all, bySlowness)
	if len(all) > MaxSlow {
		all = all[:MaxSlow]
	}
	return all
}

// Op is what the command does.
func (s *Slow) Op() Op { return ops[s.CDB[0]].kind }
