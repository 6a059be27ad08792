package daemon

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"lunar/appliance/cluster"
	"lunar/netft"
	"lunar/netft/detector"
)

// The bounds of what verdicts set off.
const (
	verdictWindow = time.Minute
	verdictEvents = 60               // in the cluster's log per window; more are in the journal alone
	suspectLimit  = 10 * time.Second // for the database to take a suspicion, also while it chooses a leader
	suspectPause  = 100 * time.Millisecond
)

// judgement is what this node made of the verdicts so far.
type judgement struct {
	node   *Node
	heard  map[string]bool // peers that lived under this watch: only such a one can be lost
	window time.Time
	events int
}

// keepJudging acts on the verdicts on other nodes, until ctx ends.
func (n *Node) keepJudging(ctx context.Context) {
	j := judgement{node: n, heard: map[string]bool{}}
	for {
		select {
		case v := <-n.fabric.verdicts:
			j.take(ctx, &v)
		case <-ctx.Done():
			return
		}
	}
}

func (j *judgement) take(ctx context.Context, v *netft.Verdict) {
	n, text := j.node, verdictText(v)
	n.countVerdict(v.Kind)
	e := cluster.Event{Kind: "network." + strings.ReplaceAll(v.Kind.String(), " ", "-"), Text: text}
	if j.mayNote(v) {
		n.noteSoon(ctx, e)
	} else {
		n.log.Info(text, "event", e.Kind)
	}
	switch v.Kind {
	case detector.NodeAlive, detector.NodeRestarted:
		j.heard[v.Peer] = true
	case detector.NodeLost:
		// A peer that was never heard may be behind a firewall, and live.
		if j.heard[v.Peer] {
			delete(j.heard, v.Peer)
			n.suspectSilent(v.Peer, text) //nolint:contextcheck // what is begun is ended by the membership
		}
	}
}

// grave verdicts are recorded always.
func grave(k detector.Kind) bool {
	return k == detector.NodeLost || k == detector.DaemonStalled || k == detector.NodeAlive || k == detector.DaemonAlive
}

// mayNote keeps a network that flaps from filling the cluster's log.
func (j *judgement) mayNote(v *netft.Verdict) bool {
	if v.Time.Sub(j.window) > verdictWindow {
		j.window, j.events = v.Time, 0
	}
	j.events++
	return grave(v.Kind) || j.events <= verdictEvents
}

func (n *Node) countVerdict(k detector.Kind) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.verdicts[k.String()]++
}

// suspectSilent evicts a node whose kernel is silent on all networks. Its volumes are fenced as ever: this only
// says when to begin.
func (n *Node) suspectSilent(node, reason string) {
	m := n.membership.Load()
	if m == nil || !m.shared {
		return
	}
	present, ok := m.view.Load().Nodes[node]
	if !ok {
		return
	}
	m.tasks.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), suspectLimit)
		defer cancel()
		select {
		case <-m.ready:
		case <-ctx.Done():
			return
		}
		err := evict(ctx, func() bool { return n.silent(node) }, func() error {
			_, err := m.elections.Suspect(ctx, node, present.Incarnation, reason)
			return err
		})
		if err != nil {
			n.log.Warn("a silent node was not evicted", "node", node, "error", err)
		}
	})
}

// evict calls suspect while the node is silent. This node may have lost its own session meanwhile, as while the database
// chose another leader in the silent one's place; it gets another soon.
func evict(ctx context.Context, silent func() bool, suspect func() error) error {
	for silent() {
		err := suspect()
		if !errors.Is(err, cluster.ErrSessionLost) || pause(ctx, suspectPause) != nil {
			return err
		}
	}
	return nil
}

// silent tells that netft still holds the node for dead.
func (n *Node) silent(node string) bool {
	running := n.fabric.running()
	return running != nil && slices.ContainsFunc(running.Paths(), func(p netft.PathStats) bool {
		return p.Peer == node && p.Health == detector.Dead
	})
}

// verdictText says a verdict and its evidence, for people.
func verdictText(v *netft.Verdict) string {
	var b strings.Builder
	subject := "node " + v.Peer
	if v.Network != "" {
		subject += " over " + v.Network
	}
	if v.Family != 0 {
		subject += " by " + v.Family.String()
	}
	fmt.Fprintf(&b, "%s: %s", subject, v.Kind)
	switch {
	case v.Reason != "":
		fmt.Fprintf(&b, ": %s", v.Reason)
	case v.Threshold > 0 && bad(v.Kind):
		fmt.Fprintf(&b, ": silent for %v, the limit is %v", short(v.Silence), v.Threshold)
	}
	if v.Unobserved > 0 {
		fmt.Fprintf(&b, ", and %v in which nobody observed", short(v.Unobserved))
	}
	fmt.Fprintf(&b, "; stamped by the %s", v.Method)
	for i := range v.Evidence {
		if i == 0 {
			b.WriteString("; paths: ")
		} else {
			b.WriteString(", ")
		}
		b.WriteString(evidenceText(v, &v.Evidence[i]))
	}
	return b.String()
}

func bad(k detector.Kind) bool {
	return slices.Contains([]detector.Kind{
		detector.PathSuspect, detector.PathLost, detector.NetworkDown, detector.NodeLost, detector.DaemonStalled,
	}, k)
}

func evidenceText(v *netft.Verdict, e *detector.Evidence) string {
	name := v.Networks[e.Network]
	if name == "" {
		name = fmt.Sprintf("network %d", e.Network)
	}
	text := fmt.Sprintf("%s %s %s", name, e.Family, e.State)
	switch {
	case e.Down != "":
		return text + " (" + e.Down + ")"
	case e.Seen == 0:
		text += ", never heard"
	default:
		text += fmt.Sprintf(", silent for %v", short(e.Silence))
	}
	if e.Heard == 0 {
		text += ", never answered"
	} else if e.Unheard > e.Silence+e.Threshold/2 {
		text += fmt.Sprintf(", no answer for %v", short(e.Unheard))
	}
	if e.Gaps > 0 {
		text += fmt.Sprintf(", %d missing", e.Gaps)
	}
	return text
}

// short leaves out what nobody reads.
func short(d time.Duration) time.Duration {
	if d < time.Second {
		return d.Round(time.Millisecond)
	}
	return d.Round(100 * time.Millisecond)
}
