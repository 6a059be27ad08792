package cluster

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// The history of campaigns, fences, releases and evictions on real etcd, with transactions that are
// lost or come late, has to be that of a register per volume: {epoch, holder, whom to fence}.

type historyCall struct {
	kind         string // campaign, fence, release, evict
	volume, node string
	epoch        uint64 // what it is about, all but campaign
}

type historyResult struct {
	kind     string // ok, held, over, unknown
	epoch    uint64
	previous string
}

type historyState struct {
	epoch    uint64
	holder   string
	fenced   bool
	previous string
}

func (s historyState) heldBy(c historyCall) bool { return s.holder == c.node && s.epoch == c.epoch }

// effect is the state after the call has done what it is for; false: it cannot.
func (s historyState) effect(c historyCall) (historyState, bool) {
	switch c.kind {
	case "campaign":
		if s.holder == "" {
			return historyState{s.epoch + 1, c.node, false, s.previous}, true
		}
		return s, s.holder == c.node && !s.fenced
	case "fence":
		if !s.heldBy(c) {
			return s, false
		}
		return historyState{s.epoch, s.holder, true, fmt.Sprint(c.node, s.epoch)}, true
	case "release":
		if !s.heldBy(c) {
			return s, false
		}
		after := historyState{s.epoch, "", false, s.previous}
		if s.fenced {
			after.previous = ""
		}
		return after, true
	}
	if s.epoch == c.epoch {
		s.holder, s.fenced = "", false
	}
	return s, true
}

func historyStep(state, input, output any) []any {
	s, _ := state.(historyState)
	c, _ := input.(historyCall)
	r, _ := output.(historyResult)
	after, can := s.effect(c)
	switch {
	case r.kind == "unknown" && can && after != s:
		return []any{s, after}
	case r.kind == "unknown":
		return []any{s}
	case r.kind == "ok" && can:
		if c.kind == "campaign" && (r.epoch != after.epoch || r.previous != after.previous) {
			return nil
		}
		return []any{after}
	case r.kind == "over" && can: // a try took effect, its answer was lost, and then others ended the term
		return []any{after}
	case r.kind == "held" && s.holder != "", r.kind == "over":
		return []any{s}
	}
	return nil
}

func historyModel() porcupine.Model {
	return (&porcupine.NondeterministicModel{
		Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
			by := map[string][]porcupine.Operation{}
			for _, op := range history {
				c, _ := op.Input.(historyCall)
				by[c.volume] = append(by[c.volume], op)
			}
			var out [][]porcupine.Operation
			for _, ops := range by {
				out = append(out, ops)
			}
			return out
		},
		Init:  func() []any { return []any{historyState{}} },
		Step:  historyStep,
		Equal: func(a, b any) bool { return a == b },
	}).ToModel()
}

// historian is one node that does things at random and writes down what came of it.
type historian struct {
	c       *Coordinators
	node    string
	number  int
	volumes []string
	rng     *rand.Rand
	terms   map[string]*Term
	fenced  map[string]bool
	rivals  *sync.Map // volume → *Term, the last known of anybody
	history []porcupine.Operation
}

func (h *historian) run() {
	for range 40 {
		v := h.volumes[h.rng.IntN(len(h.volumes))]
		t := h.terms[v]
		rival, _ := h.rivals.Load(v)
		switch dice := h.rng.IntN(6); {
		case dice == 0 && rival != nil:
			other, _ := rival.(*Term)
			h.do(historyCall{"evict", v, "", other.Epoch}, func(ctx context.Context) (historyResult, error) {
				return historyResult{}, h.c.Evict(ctx, v, other.key, "test")
			})
		case t == nil:
			h.campaign(v)
		case !h.fenced[v] && dice < 4:
			r := h.do(historyCall{"fence", v, h.node, t.Epoch}, func(ctx context.Context) (historyResult, error) { return historyResult{}, t.Fenced(ctx) })
			h.fenced[v] = r.kind == "ok"
			if !h.fenced[v] {
				delete(h.terms, v)
			}
		default:
			h.do(historyCall{"release", v, h.node, t.Epoch}, func(ctx context.Context) (historyResult, error) {
				if h.fenced[v] {
					if err := t.Closing(ctx); err != nil {
						return historyResult{}, err
					}
				}
				return historyResult{}, t.Release(ctx, "")
			})
			delete(h.terms, v)
			delete(h.fenced, v)
		}
	}
}

func (h *historian) campaign(v string) {
	h.do(historyCall{"campaign", v, h.node, 0}, func(ctx context.Context) (historyResult, error) {
		t, err := h.c.Campaign(ctx, v)
		if err != nil {
			return historyResult{}, err
		}
		r := historyResult{epoch: t.Epoch}
		if t.Previous != nil {
			r.previous = fmt.Sprint(t.Previous.Node, t.Previous.Epoch)
		}
		h.terms[v], h.fenced[v] = t, false
		h.rivals.Store(v, t)
		return r, nil
	})
}

func (h *historian) do(call historyCall, what func(context.Context) (historyResult, error)) historyResult {
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(20+h.rng.IntN(60))*time.Millisecond)
	defer cancel()
	op := porcupine.Operation{ClientId: h.number, Input: call, Call: Boottime()}
	r, err := what(ctx)
	op.Return = Boottime()
	switch {
	case err == nil:
		r.kind = "ok"
	case errors.Is(err, ErrInUse):
		r.kind = "held"
	case errors.Is(err, ErrTermOver):
		r.kind = "over"
	default:
		r.kind = "unknown"
	}
	op.Output = r
	h.history = append(h.history, op)
	return r
}

func TestHistory(t *testing.T) {
	db := startMembers(t, 1)[0].DB
	volumes := addVolumes(t, db, 4)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	var wg, late sync.WaitGroup
	var rivals sync.Map
	all := make([]*historian, 4)
	for i := range all {
		node := fmt.Sprintf("n%d", i)
		s, _ := startSession(t, asNode(db, node), 5*time.Second)
		faulty := asNode(db, node)
		faulty.client = clientv3.NewCtxClient(t.Context())
		faulty.client.KV = &lateTxns{KV: db.client.KV, rng: rand.New(rand.NewPCG(seed, uint64(i))), wg: &late}
		all[i] = &historian{c: &Coordinators{db: faulty, session: s, log: db.log}, node: node, number: i, volumes: volumes,
			rng: rand.New(rand.NewPCG(seed, uint64(100+i))), terms: map[string]*Term{}, fenced: map[string]bool{}, rivals: &rivals}
		wg.Go(all[i].run)
	}
	wg.Wait()
	late.Wait()
	checkHistory(t, all)
}

func checkHistory(t *testing.T, all []*historian) {
	t.Helper()
	var history []porcupine.Operation
	count := map[string]int{}
	for _, h := range all {
		history = append(history, h.history...)
	}
	end := Boottime()
	for i := range history {
		r, _ := history[i].Output.(historyResult)
		c, _ := history[i].Input.(historyCall)
		count[c.kind+" "+r.kind]++
		if r.kind == "unknown" { // it may take effect at any time, or never
			history[i].Return = end
		}
	}
	t.Log(count)
	if result := porcupine.CheckOperationsTimeout(historyModel(), history, 10*time.Second); result != porcupine.Ok {
		slices.SortFunc(history, func(a, b porcupine.Operation) int { return int(a.Call - b.Call) })
		for _, op := range history {
			t.Logf("%d %d–%d %+v → %+v", op.ClientId, op.Call, op.Return, op.Input, op.Output)
		}
		t.Fatalf("the history is not one: %v", result)
	}
	if count["campaign ok"] == 0 || count["release ok"] == 0 || count["evict ok"] == 0 || count["campaign unknown"] == 0 {
		t.Error("the history does not hold what it is to check")
	}
}

// TestHistoryModelRefuses: two winners of one epoch, and a fence forgotten, are not a history.
func TestHistoryModelRefuses(t *testing.T) {
	call := func(kind, node string, epoch uint64) historyCall { return historyCall{kind, "v", node, epoch} }
	op := func(at int64, c historyCall, r historyResult) porcupine.Operation {
		return porcupine.Operation{ClientId: int(at), Input: c, Call: at, Output: r, Return: at + 1}
	}
	won := op(0, call("campaign", "a", 0), historyResult{"ok", 1, ""})
	for name, history := range map[string][]porcupine.Operation{
		"one epoch twice": {won, op(2, call("campaign", "b", 0), historyResult{"ok", 1, ""})},
		"no fence": {won, op(2, call("fence", "a", 1), historyResult{kind: "ok"}), op(4, call("evict", "", 1), historyResult{kind: "ok"}),
			op(6, call("campaign", "b", 0), historyResult{"ok", 2, ""})},
	} {
		if porcupine.CheckOperations(historyModel(), history) {
			t.Errorf("%s passed", name)
		}
	}
}
