package daemon

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"lunar/appliance/api"
	"lunar/appliance/cluster"
	"lunar/datapath/volume"
)

// narrator writes into the cluster's log how this node reaches each volume, when that changes. The zero value is ready.
type narrator struct {
	mu   sync.Mutex // guards told
	told map[string]wayTo
}

// wayTo is how a node reaches a volume.
type wayTo struct {
	state  api.State
	reason string
	direct bool // CanUseDirectIO
	passed bool // a pause was seen once: most last for moments
}

// tell notes what is new about a volume; p is nil when it is off line here, for the reason why.
func (n *Node) tellState(ctx context.Context, v *volumeState, p *parts, why string) {
	now, epoch := wayTo{state: api.StateAbsent, reason: why}, uint64(0)
	if p == nil && why == "" {
		return // it has not been tried yet
	}
	if p != nil {
		now.state, now.reason = p.state()
		s := p.vol.Status()
		epoch, now.direct = s.Epoch, s.Reason&volume.NoDiskConnectivity == 0
	}
	before, first, ok := n.narrator.news(v.id, now)
	if !ok {
		return
	}
	name := v.name()
	event := cluster.Event{Volume: name, Epoch: epoch, Reason: now.reason}
	if first && p != nil || !first && before.direct != now.direct {
		event.Kind, event.Text = "volume.direct-io", fmt.Sprintf("CanUseDirectIO is %t for volume %s on node %s%s", now.direct, name, n.name, by(p))
		n.noteSoon(ctx, event)
	}
	event.Kind, event.Text = "volume.state", fmt.Sprintf("volume %s is %s on node %s%s", name, now.state, n.name, because(now.reason))
	if !first {
		event.Text += fmt.Sprintf("; it was %s%s", before.state, because(before.reason))
	}
	n.noteSoon(ctx, event)
}

func by(p *parts) string {
	if p == nil {
		return ""
	}
	return ", by " + p.dev.Path
}

func because(reason string) string {
	if reason == "" {
		return ""
	}
	return " (" + reason + ")"
}

// news is false when it was told before, or is a pause that may pass.
func (t *narrator) news(volumeID string, now wayTo) (before wayTo, first, news bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	before, known := t.told[volumeID]
	passed := before.passed
	before.passed = false
	if known && before == now {
		t.told[volumeID] = before
		return before, false, false
	}
	if t.told == nil {
		t.told = map[string]wayTo{}
	}
	if now.state == api.Paused && !passed {
		before.passed = true
		if known {
			t.told[volumeID] = before
		}
		return before, false, false
	}
	t.told[volumeID] = now
	return before, !known, true
}

// keep forgets volumes that are no more.
func (t *narrator) keep(all []*volumeState) {
	t.mu.Lock()
	defer t.mu.Unlock()
	maps.DeleteFunc(t.told, func(id string, _ wayTo) bool {
		return !slices.ContainsFunc(all, func(v *volumeState) bool { return v.id == id })
	})
}

// tellStates notes what is new about all volumes.
func (n *Node) tellStates(ctx context.Context) {
	all := n.sortedVolumes()
	n.narrator.keep(all)
	for _, v := range all {
		if v.use.TryRLock() { // else its parts come or go
			n.tellState(ctx, v, v.parts, v.reason)
			v.use.RUnlock()
		}
	}
}

// tellRegrant notes that all layouts of the volume were recalled, or granted anew.
func (s *seat) tellRegrant(here *tenure, withheld bool, took time.Duration, err error) {
	switch took = took.Round(time.Microsecond); {
	case here.ctx.Err() != nil:
	case err != nil:
		s.note(here.ctx, "volume.recall", here.term.Epoch, fmt.Sprintf("the layouts of volume %s are not as they are to be, after %v: %v", s.name(), took, err))
	case withheld:
		s.note(here.ctx, "volume.recall", here.term.Epoch, fmt.Sprintf("the layouts of volume %s were recalled from all nodes within %v: their I/O goes through node %s", s.name(), took, s.node.name))
	default:
		s.note(here.ctx, "volume.grant", here.term.Epoch, fmt.Sprintf("the layouts of volume %s were granted to all nodes again within %v", s.name(), took))
	}
}
