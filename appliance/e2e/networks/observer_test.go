package networks

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lunar/appliance/api"
	"lunar/appliance/e2e/lab"
)

// fast is the configuration of heartbeats that suspect after 0.5 s.
const fast = "\n[network]\nprofile = \"fast\"\n"

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

// TestObserver stops a node's daemon for 3 s, six times its threshold, and then keeps all processors busy: nobody that
// lives is suspected by it. A plain detector beside it, with the same times and priority, suspects.
func TestObserver(t *testing.T) {
	long(t)
	b := newBenchOf(t, lab.ClusterConfig{Nodes: 3, Second: true, Lease: "30s", Extra: fast})
	b.awaitNetwork(b.Network, api.NetworkUp, b.Nodes...)
	b.awaitNetwork(b.Second, api.NetworkUp, b.Nodes...)
	observer := b.Nodes[2]
	p := b.plainDetector(observer, b.Nodes[0])
	time.Sleep(time.Second) // beats have come
	before, from := p.suspicions(), len(observer.Log())
	const stops = 3
	for range stops {
		observer.Freeze()
		p.signal(syscall.SIGSTOP)
		time.Sleep(3 * time.Second)
		observer.Thaw()
		p.signal(syscall.SIGCONT)
		time.Sleep(2 * time.Second)
		b.awaitNetwork(b.Second, api.NetworkUp, b.Nodes...)
	}
	ours, plain := suspicions(observer, from), p.suspicions()-before
	t.Logf("stopped %d times for 3 s, node %s suspects %d times, a plain detector %d times", stops, observer.Name, len(ours), plain)
	for _, line := range ours {
		t.Errorf("stopped for 3 s, node %s says %s", observer.Name, line)
	}
	if plain == 0 {
		t.Error("the plain detector suspects nobody: this proves nothing")
	}
	t.Logf("its peers say meanwhile: %q", suspicions(b.Nodes[0], 0))
	b.busy(p, 0, 16*time.Second, b.Nodes...)
	// Now the observer gets no processor for long spans, and its peers as much as who is busy; for less than the lease.
	for _, n := range b.Nodes {
		b.renice(n, -20)
	}
	b.renice(observer, 19)
	const tries = 3
	for try := 1; b.busy(p, -20, 8*time.Second, observer) == 0; try++ {
		if try == tries {
			t.Fatal("the plain detector suspects nobody: this proves nothing")
		}
	}
	check(t, b.Stop())
}

// busy keeps the processors busy with 8 threads of a nice value, and wants that none of the observers suspects a node, and
// nobody holds one for dead. It returns how often the plain detector suspects one.
func (b *bench) busy(p *plain, nice int, during time.Duration, observers ...*lab.ClusterNode) int {
	b.t.Helper()
	const threads = 8
	before, from := p.suspicions(), map[*lab.ClusterNode]int{}
	for _, n := range b.Nodes {
		from[n] = len(n.Log())
	}
	var spinning []*exec.Cmd
	for range threads {
		c := exec.Command("nice", "-n", strconv.Itoa(nice), "sh", "-c", "while :; do :; done")
		check(b.t, c.Start())
		spinning = append(spinning, c)
	}
	time.Sleep(during)
	for _, c := range spinning {
		_ = c.Process.Kill()
		_ = c.Wait()
	}
	ours, others := 0, 0
	for _, n := range b.Nodes {
		for _, line := range suspicions(n, from[n]) {
			if !slices.Contains(observers, n) && !strings.Contains(line, "node lost") {
				others++ // the daemon that was kept from running
				continue
			}
			ours++
			b.t.Errorf("with %d threads spinning, node %s says %s", threads, n.Name, line)
		}
	}
	plain := p.suspicions() - before
	b.t.Logf("%d threads spinning for %v at nice %d: %d observers suspect %d times, a plain detector %d times; others say %d times that a daemon stalled",
		threads, during, nice, len(observers), ours, plain, others)
	return plain
}

// renice gives a daemon a priority. Its heartbeats' thread has one of its own.
func (b *bench) renice(n *lab.ClusterNode, nice int) {
	b.t.Helper()
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", n.PID()))
	check(b.t, err)
	for _, thread := range threads {
		if id, err := strconv.Atoi(thread.Name()); err == nil {
			_ = unix.Setpriority(unix.PRIO_PROCESS, id, nice) // it may have ended
		}
	}
}

// TestKilled kills a daemon with SIGKILL. Its kernel goes on answering, so the others see that the node lives; it loses
// its part in the cluster all the same, and takes over what is pinned when it comes back.
func TestKilled(t *testing.T) {
	long(t)
	bpffs(t)
	b := newBenchOf(t, lab.ClusterConfig{Nodes: 3, Second: true, Sys: true, Extra: fast})
	for _, segment := range []*lab.Network{b.Network, b.Second} {
		b.awaitNetwork(segment, api.NetworkUp, b.Nodes...)
	}
	killed, from := b.Nodes[2], len(b.Nodes[0].Log())
	began := time.Now()
	killed.Kill()
	b.awaitPresent(killed, false)
	t.Logf("node %s is out %v after SIGKILL", killed.Name, time.Since(began).Round(time.Millisecond))
	b.logTells(killed.Name, "network.daemon-stalled")
	if lines := suspicions(b.Nodes[0], from); slices.ContainsFunc(lines, func(l string) bool { return strings.Contains(l, "node lost") }) {
		t.Errorf("a node whose kernel answers is held for dead: %q", lines)
	}
	check(t, killed.Start(b.ctx))
	b.awaitPresent(killed, true)
	b.logTells(killed.Name, "network.daemon-alive")
	check(t, b.Stop())
	if left, _ := filepath.Glob("/sys/fs/bpf/lunar/*"); len(left) > 0 {
		t.Errorf("stopped nodes leave %q pinned", left)
	}
}

// bpffs mounts the bpf file system where it belongs, if it is not there.
func bpffs(t *testing.T) {
	t.Helper()
	const at = "/sys/fs/bpf"
	var fs unix.Statfs_t
	check(t, unix.Statfs(at, &fs))
	if os.Geteuid() != 0 || fs.Type == unix.BPF_FS_MAGIC {
		return
	}
	check(t, unix.Mount("bpf", at, "bpf", 0, ""))
	t.Cleanup(func() {
		if err := unix.Unmount(at, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

// awaitPresent waits until the others have a node in the cluster, or out of it.
func (b *bench) awaitPresent(n *lab.ClusterNode, want bool) {
	b.t.Helper()
	check(b.t, lab.Poll(settle, func() error {
		got, err := b.Others(n)[0].API.Node(b.ctx, n.Name)
		if err == nil && got.Present != want {
			err = fmt.Errorf("node %s is present: %t", n.Name, got.Present)
		}
		return err
	}))
}
