package uring_test

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lunar/datapath/uring"
	"lunar/datapath/uring/uringtest"
)

const (
	simBlock  = 4096
	simBlocks = 64
	simDepth  = 24
	simOps    = 400
)

// simulation drives one ring through the faulty twin by a seeded plan, several operations at a time, each on a range
// of its own, and holds what it reads to a model in memory.
type simulation struct {
	t      *testing.T
	ring   *uring.Ring
	pool   *uring.Pool
	file   *uring.File
	faulty *uring.Faulty
	random *rand.Rand
	model  [simBlocks][]byte // nil: not known, after a write that failed
	busy   [simBlocks]bool
	left   int
	live   int
	held   int
	tally  map[string]int
	over   bool
	ended  chan struct{}
}

// simOp is one operation under way and what it should bring about.
type simOp struct {
	uring.Op
	sim    *simulation
	first  int
	want   [][]byte
	pooled bool
}

// pump keeps operations under way, and ends the run when all are done and released.
func (s *simulation) pump() {
	for tries := 0; s.left > 0 && s.live < simDepth && tries < 100; tries++ {
		s.launch()
	}
	if s.live == 0 {
		s.faulty.Release()
	}
	if s.left == 0 && s.live == 0 && s.held == 0 && !s.over {
		s.over = true
		close(s.ended)
	}
}

// launch starts a random operation unless its range is taken.
func (s *simulation) launch() {
	n := 1 + s.random.IntN(8)
	first := s.random.IntN(simBlocks - n + 1)
	if slices.Contains(s.busy[first:first+n], true) {
		return
	}
	op := &simOp{sim: s, first: first, want: make([][]byte, n)}
	op.Op = uring.Op{Code: s.code(), File: s.file, Offset: int64(first) * simBlock, Length: int64(n) * simBlock,
		Deadline: 50 * time.Millisecond, FUA: s.random.IntN(4) == 0, Done: func(*uring.Op) { op.done() }}
	op.Released = func() { op.released() }
	op.prepare(n)
	op.mark(true)
	s.left--
	s.live++
	s.faulty.Submit(&op.Op)
	if s.random.IntN(20) == 0 {
		s.ring.Cancel(&op.Op)
	}
}

// mark takes or frees the operation's range.
func (op *simOp) mark(busy bool) {
	for i := range op.want {
		op.sim.busy[op.first+i] = busy
	}
}

func (op *simOp) released() {
	op.sim.held--
	op.mark(false)
	op.sim.pump()
}

func (s *simulation) code() uring.Code {
	codes := [...]uring.Code{uring.Read, uring.Read, uring.Read, uring.Write, uring.Write, uring.Discard, uring.WriteZeroes, uring.Flush}
	return codes[s.random.IntN(len(codes))]
}

// prepare gives the operation its buffer and expectation.
func (op *simOp) prepare(n int) {
	switch op.Code {
	case uring.Read, uring.Write:
		if op.pooled = op.sim.random.IntN(4) > 0; op.pooled {
			op.Buf = op.sim.pool.Get(n * simBlock)
		} else {
			op.Buf = make([]byte, n*simBlock)
		}
	}
	for i := range op.want {
		switch op.Code {
		case uring.Write:
			p := op.Buf[i*simBlock:][:simBlock]
			for j := range p {
				p[j] = byte(op.sim.random.Uint32())
			}
			op.want[i] = bytes.Clone(p)
		case uring.Discard, uring.WriteZeroes:
			op.want[i] = make([]byte, simBlock)
		default:
			op.want[i] = op.sim.model[op.first+i]
		}
	}
}

func (op *simOp) done() {
	s := op.sim
	s.live--
	s.tally[outcome(op.Err)]++
	for i := range op.want {
		op.judge(i)
	}
	if op.Held {
		s.held++
	} else {
		op.mark(false)
	}
	if op.pooled {
		s.pool.Put(op.Buf)
	}
	s.pump()
}

// judge compares one block with the model, or updates it.
func (op *simOp) judge(i int) {
	s, b := op.sim, op.first+i
	changes := op.Code != uring.Read && op.Code != uring.Flush
	switch {
	case changes && op.Err == nil:
		s.model[b] = op.want[i]
	case changes:
		s.model[b] = nil
	case op.Code == uring.Read && op.Err == nil && op.want[i] != nil && !bytes.Equal(op.Buf[i*simBlock:][:simBlock], op.want[i]):
		s.t.Errorf("block %d reads wrong", b)
	}
}

// outcome is the class of an error; every error must have one.
func outcome(err error) string {
	for name, pair := range map[string][2]error{
		"deadline": {uring.ErrDeadline, unix.ETIMEDOUT},
		"canceled": {uring.ErrCanceled, unix.ECANCELED},
		"failed":   {uring.ErrIO, unix.EIO},
	} {
		if errors.Is(err, pair[0]) && errors.Is(err, pair[1]) {
			return name
		}
	}
	if err == nil {
		return "ok"
	}
	return fmt.Sprintf("unexpected: %v", err)
}

func TestSimulation(t *testing.T) {
	for seed := range uint64(8) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) { simulate(t, seed) })
	}
}

func simulate(t *testing.T, seed uint64) {
	e := uringtest.Open(t, uring.Options{InFlight: 8, Entries: 8, Grace: 20 * time.Millisecond, Log: slog.New(slog.DiscardHandler)})
	plan := uring.Plan{Seed: seed, Rate: [...]float64{
		uring.FaultFail: .05, uring.FaultLateFail: .05, uring.FaultShort: .2, uring.FaultDelay: .1,
		uring.FaultTransient: .1, uring.FaultDrop: .02, uring.FaultLose: .01,
	}}
	faulty, err := uring.NewFaulty(e.Ring(0), plan)
	if err != nil {
		t.Fatal(err)
	}
	s := &simulation{t: t, ring: e.Ring(0), pool: e.Pool(), file: openFile(t, e, simBlocks*simBlock), faulty: faulty,
		random: rand.New(rand.NewPCG(seed, 1)), left: simOps, tally: map[string]int{}, ended: make(chan struct{})}
	uring.Limit(s.file, int(seed%4)*2) // 0 is none
	for b := range s.model {
		s.model[b] = make([]byte, simBlock)
	}
	on(t, e, func(*uring.Ring) { s.pump() })
	wait(t, s.ended)
	on(t, e, func(*uring.Ring) {
		for _, k := range []string{"ok", "failed", "deadline", "canceled"} {
			if s.tally[k] == 0 {
				t.Errorf("no operation ended %q", k)
			}
			delete(s.tally, k)
		}
		if len(s.tally) != 0 {
			t.Errorf("unexpected: %v", s.tally)
		}
	})
}
