package cluster

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"lunar/appliance/e2e/cluster/load"
	"lunar/appliance/e2e/lab"
	"lunar/iscsi/scsi"
)

// The history: clients of all nodes at a few sectors, each a register.
const (
	registers   = 8
	clients     = 6
	registersAt = 64 * mib
	historyTime = 6 * time.Second
	pace        = 2 * time.Millisecond
	judgeLimit  = 2 * time.Minute
)

// access is a client's operation on a register, and what came of it.
type access struct {
	register int
	verb     verb
	value    uint64 // written
	expected uint64 // by COMPARE AND WRITE
}

type verb byte

const (
	reading verb = iota
	writing
	swapping
)

// outcome of an access: one that is unknown may have taken effect, or may yet.
type outcome struct {
	value   uint64 // read
	swapped bool
	unknown bool
}

func registerModel() porcupine.Model {
	return porcupine.Model{
		Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
			out := make([][]porcupine.Operation, registers)
			for _, o := range history {
				r := o.Input.(access).register
				out[r] = append(out[r], o)
			}
			return out
		},
		Init: func() any { return uint64(0) },
		Step: func(state, input, output any) (bool, any) {
			return input.(access).step(state.(uint64), output.(outcome))
		},
		DescribeOperation: func(input, output any) string { return fmt.Sprintf("%+v → %+v", input, output) },
	}
}

func (a access) step(state uint64, o outcome) (possible bool, next uint64) {
	switch a.verb {
	case reading:
		return o.value == state, state
	case writing:
		return true, a.value
	}
	fits := state == a.expected
	if fits {
		next = a.value
	} else {
		next = state
	}
	return o.unknown || o.swapped == fits, next
}

// historian is a client; its paths are the nodes in an order of its own.
type historian struct {
	b       *bench
	id      int
	session *load.Session
	at      int
	values  *atomic.Uint64
	began   time.Time
	random  *rand.Rand
	history []porcupine.Operation
}

func (h *historian) run(stop <-chan struct{}) error {
	last := map[int]uint64{}
	for {
		select {
		case <-stop:
			return nil
		case <-time.After(pace):
		}
		if !h.connected() {
			continue
		}
		a := access{register: h.random.IntN(registers), verb: verb(h.random.IntN(3)), value: h.values.Add(1)}
		a.expected = last[a.register]
		call := time.Since(h.began)
		o, err := h.do(a)
		done := int64(time.Since(h.began))
		switch {
		case errors.Is(err, load.ErrPath):
			h.session.Close()
			h.session, h.at = nil, h.at+1
			o.unknown, done = true, math.MaxInt64
		case err != nil:
			return fmt.Errorf("client %d: %+v: %w", h.id, a, err)
		case o.unknown:
			done = math.MaxInt64
		case a.verb == reading:
			last[a.register] = o.value
		}
		if a.verb == reading && o.unknown {
			continue
		}
		h.history = append(h.history, porcupine.Operation{ClientId: h.id, Input: a, Output: o, Call: int64(call), Return: done})
		if done == math.MaxInt64 {
			h.id += clients // a client has one operation at a time: this one never ends
		}
	}
}

func (h *historian) connected() bool {
	if h.session != nil {
		return true
	}
	n := h.b.Nodes[h.at%len(h.b.Nodes)]
	s, err := load.Login(h.b.ctx, n.Portal(), lab.ClusterTarget, fmt.Sprintf("iqn.2026-01.lunar.test:historian-%d", h.id%clients), uint32(100+h.id), 8*time.Second)
	if err != nil {
		h.at++
		return false
	}
	h.session = s
	return true
}

// do sends a command until it is neither refused for now nor met by a unit attention.
func (h *historian) do(a access) (o outcome, err error) {
	at := registersAt + int64(a.register)*load.Block
	cdb, out, want := load.Read(at, load.Sector), []byte(nil), load.Sector
	switch a.verb {
	case writing:
		cdb, out, want = load.Write(at, load.Sector, false), sector(a.value), 0
	case swapping:
		cdb, out, want = load.CompareAndWrite(at, 1), append(sector(a.expected), sector(a.value)...), 0
	}
	for {
		answer, err := h.session.Do(cdb, out, want)
		switch {
		case err != nil:
			return o, err
		case answer.Status == scsi.Good:
			o.swapped = a.verb == swapping
			if a.verb == reading {
				o.value = binary.BigEndian.Uint64(answer.Data)
			}
			return o, nil
		case answer.Key() == 0xE:
			return o, nil
		case answer.Key() == 0xB && a.verb == swapping: // aborted: the initiator has to look for itself
			o.unknown = true
			return o, nil
		case answer.Status == scsi.Busy, answer.Key() == 6:
		default:
			return o, answer.Err()
		}
	}
}

func sector(value uint64) []byte {
	data := make([]byte, load.Sector)
	binary.BigEndian.PutUint64(data, value)
	return data
}

// TestHistory checks that a history of reads, writes and COMPARE AND WRITEs through all nodes, while the volume
// moves and its coordinator is killed, is one that a single disk could have had.
func TestHistory(t *testing.T) {
	b := newBench(t, 3)
	var values atomic.Uint64
	began, stop := time.Now(), make(chan struct{})
	all := make([]*historian, clients)
	failed := make([]error, clients)
	var running sync.WaitGroup
	for i := range all {
		h := &historian{b: b, id: i, at: i, values: &values, began: began, random: rand.New(rand.NewPCG(uint64(i), 4))}
		all[i] = h
		running.Go(func() { failed[i] = h.run(stop) })
	}
	b.stir(t, began.Add(historyTime))
	close(stop)
	running.Wait()
	check(t, errors.Join(failed...))
	var history []porcupine.Operation
	unknown := 0
	for _, h := range all {
		history = append(history, h.history...)
		unknown += h.id / clients
		if h.session != nil {
			h.session.Close()
		}
	}
	if verdict := porcupine.CheckOperationsTimeout(registerModel(), history, judgeLimit); verdict != porcupine.Ok {
		t.Errorf("the history of %d operations is %s", len(history), verdict)
	}
	t.Logf("%d operations on %d registers, %d of unknown outcome", len(history), registers, unknown)
	b.clean()
}

// stir moves the volume and kills its coordinator, in turns.
func (b *bench) stir(t *testing.T, until time.Time) {
	t.Helper()
	for n := 0; time.Now().Before(until); n++ {
		time.Sleep(500 * time.Millisecond)
		c, err := b.Coordinator(b.ctx)
		check(t, err)
		if n%2 == 0 {
			check(t, b.Move(b.ctx, b.Others(c)[n/2%2]))
			continue
		}
		c.Kill()
		b.successor(c)
		check(t, c.Restart(b.ctx))
	}
}

// TestHistoryCanFail proves that the model refuses what no disk could have done.
func TestHistoryCanFail(t *testing.T) {
	write := func(value uint64, call, end int64) porcupine.Operation {
		return porcupine.Operation{Input: access{verb: writing, value: value}, Output: outcome{}, Call: call, Return: end}
	}
	read := func(value uint64, call, end int64) porcupine.Operation {
		return porcupine.Operation{ClientId: 1, Input: access{verb: reading}, Output: outcome{value: value}, Call: call, Return: end}
	}
	swap := func(expected, value uint64, swapped bool, call, end int64) porcupine.Operation {
		return porcupine.Operation{ClientId: 2, Input: access{verb: swapping, value: value, expected: expected}, Output: outcome{swapped: swapped}, Call: call, Return: end}
	}
	for name, c := range map[string]struct {
		history []porcupine.Operation
		ok      bool
	}{
		"read after write":      {[]porcupine.Operation{write(1, 0, 1), read(1, 2, 3)}, true},
		"lost write":            {[]porcupine.Operation{write(1, 0, 1), read(0, 2, 3)}, false},
		"old after new":         {[]porcupine.Operation{write(1, 0, 10), read(1, 1, 2), read(0, 3, 4)}, false},
		"late, but unknown":     {[]porcupine.Operation{write(1, 0, math.MaxInt64), read(0, 2, 3), read(1, 4, 5)}, true},
		"two swaps of one":      {[]porcupine.Operation{swap(0, 1, true, 0, 1), swap(0, 2, true, 2, 3)}, false},
		"swap that miscompared": {[]porcupine.Operation{write(1, 0, 1), swap(0, 2, false, 2, 3)}, true},
	} {
		if got := porcupine.CheckOperations(registerModel(), c.history); got != c.ok {
			t.Errorf("%s: %v, want %v", name, got, c.ok)
		}
	}
}
