package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"lunar/datapath/device/loopdev"
)

// The faults of a node. Each has its opposite, by which the node comes back.

// Freeze stops the daemon with SIGSTOP, and Thaw lets it go on.
func (n *ClusterNode) Freeze() { n.signal(syscall.SIGSTOP) }

// Thaw is described at Freeze.
func (n *ClusterNode) Thaw() { n.signal(syscall.SIGCONT) }

// CutPath takes the node's path to the LUN away; every I/O of the node there fails from now on.
func (n *ClusterNode) CutPath() error { return loopdev.Cut(n.Path.Path) }

// MendPath gives the path back.
func (n *ClusterNode) MendPath() error { return loopdev.Mend(n.Path.Path) }

// CutNetwork pulls the node's cable.
func (n *ClusterNode) CutNetwork(ctx context.Context) error {
	return n.Host.Cut(ctx, n.cluster.Network)
}

// MendNetwork plugs it in.
func (n *ClusterNode) MendNetwork(ctx context.Context) error {
	return n.Host.Mend(ctx, n.cluster.Network)
}

// PowerOff is the machine's end: its cable and its path to the LUN are dead, the daemon and its guard are killed
// at once, and nobody hears a goodbye.
func (n *ClusterNode) PowerOff(ctx context.Context) error {
	err := errors.Join(n.CutNetwork(ctx), n.CutPath())
	guards := n.guardOf()
	for _, pid := range guards {
		_ = unix.Kill(pid, unix.SIGKILL)
	}
	n.Kill()
	if len(guards) == 0 {
		err = errors.Join(err, fmt.Errorf("node %s has no guard", n.Name))
	}
	return err
}

// PowerOn starts the machine again.
func (n *ClusterNode) PowerOn(ctx context.Context) error {
	if err := errors.Join(n.MendPath(), n.MendNetwork(ctx)); err != nil {
		return err
	}
	return n.Restart(ctx)
}

// Restart starts a daemon that has ended, as its service manager would, and waits until the LUN is there.
func (n *ClusterNode) Restart(ctx context.Context) error {
	select {
	case <-n.Exited():
	case <-time.After(startLimit):
		return fmt.Errorf("node %s still runs", n.Name)
	}
	if err := n.Start(ctx); err != nil {
		return err
	}
	return n.AwaitLUN(ctx, ClusterTarget)
}

// Revive starts a daemon that has ended within patience, as its service manager would, and else waits for its
// LUN: after a fault that the node may survive or not.
func (n *ClusterNode) Revive(ctx context.Context, patience time.Duration) error {
	select {
	case <-n.Exited():
		return n.Restart(ctx)
	case <-time.After(patience):
		return n.AwaitLUN(ctx, ClusterTarget)
	}
}

// clear kills what is left on the host: a guard outlives its daemon for a while, to answer other nodes.
func (h *Host) clear(ctx context.Context) error {
	out, err := Run(ctx, "ip", "netns", "pids", h.Namespace)
	if err != nil {
		return err
	}
	for _, pid := range numbers(out) {
		_ = unix.Kill(pid, unix.SIGKILL)
	}
	return Poll(startLimit, func() error {
		out, err := Run(ctx, "ip", "netns", "pids", h.Namespace)
		if err == nil && strings.TrimSpace(out) != "" {
			err = fmt.Errorf("processes are left on host %s: %s", h.Namespace, strings.Fields(out))
		}
		return err
	})
}

// available is the memory that the kernel would give.
func available() int64 {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(text), "MemAvailable:")
	if words := strings.Fields(rest); len(words) > 0 {
		if n, err := strconv.ParseInt(words[0], 10, 64); err == nil {
			return n << 10
		}
	}
	return 0
}

func numbers(s string) []int {
	var out []int
	for _, word := range strings.Fields(s) {
		if n, err := strconv.Atoi(word); err == nil {
			out = append(out, n)
		}
	}
	return out
}
