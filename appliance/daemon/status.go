package daemon

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"lunar/appliance/api"
)

// statusInterval is how often keepTelling looks; it only reads memory.
const statusInterval = time.Second

// maxNamed bounds the volumes that the status names in a list.
const maxNamed = 8

// status tells systemd and the log in words how the node is.
func (d *Daemon) status() {
	text := d.describe()
	d.log.Info(text)
	d.tell(text)
}

// tell sets the unit's status text where it is another than before.
func (d *Daemon) tell(text string) {
	if was := d.told.Swap(&text); was == nil || *was != text {
		d.notify.status("%s", text)
	}
}

// keepTelling keeps the unit's status text as the node is, until ctx ends.
func (d *Daemon) keepTelling(ctx context.Context) {
	tick := time.NewTicker(statusInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			d.tell(d.describe())
		case <-ctx.Done():
			return
		}
	}
}

// describe is how the node is: what it serves and coordinates, what is redirected or absent, what is under way.
func (d *Daemon) describe() string {
	n := d.node
	lines := n.lines()
	served := len(lines) - len(namesOf(lines, func(l *api.VolumeLine) bool { return l.State == api.StateAbsent }))
	targets, luns := n.exported()
	var portals []string
	for _, p := range d.Portals() {
		portals = append(portals, p.String())
	}
	parts := []string{fmt.Sprintf("Serving %d volumes, %d targets, %d LUNs on %s", served, targets, luns, strings.Join(portals, ", "))}
	say := func(format, text string) {
		if text != "" {
			parts = append(parts, fmt.Sprintf(format, text))
		}
	}
	say("coordinates %s", list(namesOf(lines, func(l *api.VolumeLine) bool { return l.Coordinator == l.Node })))
	say("redirected: %s", list(reasonsOf(lines, api.Redirected)))
	say("paused: %s", list(reasonsOf(lines, api.Paused)))
	say("not available: %s", list(namesOf(lines, func(l *api.VolumeLine) bool { return l.End == "" && l.State == api.StateAbsent })))
	say("taken off line: %s", list(namesOf(lines, func(l *api.VolumeLine) bool { return l.End != "" })))
	say("%s", n.underWay())
	if joining := n.joining.Load(); joining != nil {
		say("%s", *joining)
	}
	say("ALARM: %s", n.database.why())
	return strings.Join(parts, "; ")
}

// lines is every volume as this node has it, by name. One that comes or goes at this moment is absent.
func (n *Node) lines() []api.VolumeLine {
	var out []api.VolumeLine
	for _, v := range n.sortedVolumes() {
		l, _ := n.line(v, v.name())
		out = append(out, l)
	}
	return out
}

// exported counts targets and their LUNs.
func (n *Node) exported() (targets, luns int) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	for _, t := range n.targets {
		luns += len(t.luns)
	}
	return len(n.targets), luns
}

// underWay tells the long operations.
func (n *Node) underWay() string {
	var out []string
	for _, j := range n.jobs.list() {
		out = append(out, strings.TrimSpace(j.Kind+" "+j.Object))
	}
	if len(out) == 0 {
		return ""
	}
	return "under way: " + list(out)
}

func namesOf(lines []api.VolumeLine, is func(*api.VolumeLine) bool) (names []string) {
	for i := range lines {
		if is(&lines[i]) {
			names = append(names, lines[i].Volume)
		}
	}
	return names
}

func reasonsOf(lines []api.VolumeLine, state api.State) (out []string) {
	for i := range lines {
		if l := &lines[i]; l.State == state {
			out = append(out, fmt.Sprintf("%s (%s)", l.Volume, l.Reason))
		}
	}
	return out
}

// list names maxNamed at most.
func list(names []string) string {
	if more := len(names) - maxNamed; more > 0 {
		names = append(slices.Clone(names[:maxNamed]), fmt.Sprintf("%d more", more))
	}
	return strings.Join(names, ", ")
}
