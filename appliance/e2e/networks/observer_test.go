package networks

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"lunar/appliance/api"
	"lunar/appliance/e2e/lab"
)

// suspicions are what a node says of others that it holds for dead, or cut off, since its log was that long.
func suspicions(n *lab.ClusterNode, from int) (out []string) {
	text := n.Log()
	for line := range strings.Lines(text[min(from, len(text)):]) {
		if slices.ContainsFunc([]string{`msg="node lost"`, `msg="daemon stalled"`, `msg="network down"`, "network.node-lost"}, func(s string) bool {
			return strings.Contains(line, s)
		}) {
			out = append(out, line)
		}
	}
	return out
}

// TestObserver stops a node's daemon for 3 s, six times its threshold, and keeps all processors busy: nobody that lives
// is suspected by it.
func TestObserver(t *testing.T) {
	b := newBench(t, "\n[network]\nprofile = \"fast\"\n")
	b.awaitNetwork(b.Network, api.NetworkUp, b.Nodes...)
	b.awaitNetwork(b.Second, api.NetworkUp, b.Nodes...)
	observer := b.Nodes[2]
	from := len(observer.Log())
	observer.Freeze()
	time.Sleep(3 * time.Second)
	observer.Thaw()
	b.awaitNetwork(b.Second, api.NetworkUp, b.Nodes...)
	for _, line := range suspicions(observer, from) {
		t.Errorf("stopped for 3 s, node %s says %s", observer.Name, line)
	}
	t.Logf("its peers say meanwhile: %q", suspicions(b.Nodes[0], 0))
	b.busy(8, 3*time.Second)
	check(t, b.Stop())
}

// busy keeps the processors from the daemons, and wants that none of them suspects another.
func (b *bench) busy(threads int, during time.Duration) {
	b.t.Helper()
	from := map[*lab.ClusterNode]int{}
	for _, n := range b.Nodes {
		from[n] = len(n.Log())
	}
	var spinning []*exec.Cmd
	for range threads {
		c := exec.Command("sh", "-c", "while :; do :; done")
		check(b.t, c.Start())
		spinning = append(spinning, c)
	}
	time.Sleep(during)
	for _, c := range spinning {
		_ = c.Process.Kill()
		_ = c.Wait()
	}
	for _, n := range b.Nodes {
		for _, line := range suspicions(n, from[n]) {
			b.t.Errorf("with %d threads spinning, node %s says %s", threads, n.Name, line)
		}
	}
}
