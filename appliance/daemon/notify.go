package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	systemd "github.com/coreos/go-systemd/v22/daemon"
)

// notifier talks to systemd; without NOTIFY_SOCKET it does nothing.
type notifier struct{ log *slog.Logger }

func (n notifier) send(state string) {
	if _, err := systemd.SdNotify(false, state); err != nil {
		n.log.Warn("systemd was not notified", "error", err)
	}
}

func (n notifier) status(format string, args ...any) {
	n.send("STATUS=" + fmt.Sprintf(format, args...))
}

// watch feeds systemd's watchdog while alive says so in time, until ctx ends.
func (n notifier) watch(ctx context.Context, alive func(ctx context.Context, within time.Duration) error) {
	interval, err := systemd.SdWatchdogEnabled(false)
	if err != nil || interval <= 0 {
		return
	}
	tick := time.NewTicker(interval / 3)
	defer tick.Stop()
	for {
		if err := alive(ctx, interval/3); err == nil {
			n.send(systemd.SdNotifyWatchdog)
		} else if ctx.Err() == nil {
			n.log.Error("the watchdog is not fed", "error", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// alive checks that every lane runs callbacks and that the locks of the node's state are let go: without one of these
// no I/O goes on, and systemd restarts the daemon. What may wait for a disk or another node is not asked.
func (d *Daemon) alive(ctx context.Context, within time.Duration) error {
	if err := lanesAnswer(ctx, d.engine, within); err != nil {
		return err
	}
	if d.node.unlocked(ctx, within) {
		return nil
	}
	return fmt.Errorf("the node's state is locked for more than %v", within)
}

// unlocked tells whether the locks that are held for moments can be had within a time.
func (n *Node) unlocked(ctx context.Context, within time.Duration) bool {
	for end := time.Now().Add(within); ; {
		if n.mu.TryRLock() {
			n.mu.RUnlock()
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(lockPoll):
		}
		if time.Now().After(end) {
			return false
		}
	}
}

// lockPoll is how often a lock that is held is tried again.
const lockPoll = 10 * time.Millisecond
