package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"lunar/appliance/api"
	"lunar/appliance/firstboot"
	"lunar/appliance/slot"
)

// resumeMark is there while this node is drained for a restart that an update or a rollback asked for.
const resumeMark = firstboot.DefaultState + "/resume"

// drainTimeout bounds the hand-over before a restart. lunard hands over what is left when it stops.
const drainTimeout = 2 * time.Minute

// handOverAndReboot moves this node's volumes to others, if there are others, and restarts the machine.
func (c *cli) handOverAndReboot(ctx context.Context) error {
	if err := c.handOver(ctx); err != nil {
		return fmt.Errorf("the machine is not restarted: %w", err)
	}
	return systemctl(ctx, "reboot")
}

func (c *cli) handOver(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, drainTimeout)
	defer cancel()
	s, err := c.client.Cluster(ctx)
	if api.CodeOf(err) == api.Unreachable {
		return nil // lunard does not run: there is nothing to hand over
	}
	if err != nil || s.ID == "" || len(s.Nodes) < 2 {
		return err
	}
	for i := range s.Nodes {
		if n := &s.Nodes[i]; n.Name == s.Node && n.Draining {
			return nil // by somebody's order, which stays
		}
	}
	if err := os.MkdirAll(filepath.Dir(resumeMark), 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(resumeMark, []byte(s.Node+"\n"), 0o600); err != nil {
		return err
	}
	d, err := c.client.DrainNode(ctx, s.Node)
	if err != nil {
		return errors.Join(err, c.client.ResumeNode(ctx, s.Node), os.Remove(resumeMark))
	}
	if len(d.Stay) > 0 {
		_, _ = fmt.Fprintf(c.err, "lunarctl: %s stay until lunard stops: no other node can take them\n", strings.Join(d.Stay, ", "))
	}
	return nil
}

// systemConfirm is for lunar-slot-good.service.
func (c *cli) systemConfirm() *cobra.Command {
	cmd := c.verb("confirm", "Keep the slot that runs once lunard is ready; restart the machine if it does not become so on trial", 0, c.confirm)
	cmd.Hidden = true
	return cmd
}

func (c *cli) confirm(ctx context.Context, _ []string) error {
	s, err := slot.Here()
	if err != nil {
		return err
	}
	err = s.Confirm(ctx, imageVersion(), lunardReady)
	if errors.Is(err, context.DeadlineExceeded) {
		_, _ = fmt.Fprintf(c.err, "lunarctl: this boot was a trial, and lunard was not ready within %v: the machine restarts\n", s.Timeout())
		return errors.Join(err, systemctl(context.WithoutCancel(ctx), "reboot"))
	}
	if err != nil {
		return systemError(err)
	}
	if st, err := s.Status(); err == nil {
		_, _ = fmt.Fprintln(c.out, st.Text)
	}
	return c.resume(ctx)
}

// resume lets this node coordinate again after the restart for which it was drained.
func (c *cli) resume(ctx context.Context) error {
	node, err := os.ReadFile(resumeMark)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for {
		err = c.client.ResumeNode(ctx, strings.TrimSpace(string(node)))
		if err == nil {
			return os.Remove(resumeMark)
		}
		_, _ = fmt.Fprintln(c.err, "lunarctl: this node stays drained for now:", err)
		select {
		case <-ctx.Done():
			return err
		case <-time.After(10 * time.Second):
		}
	}
}

// The daemon is ready when it has been so for a while: one that ends at once is started again and again.
const (
	readyPoll = 500 * time.Millisecond
	readyFor  = 5 * time.Second
)

// lunardReady returns when the same lunard has been ready for readyFor.
func lunardReady(ctx context.Context) error {
	var since time.Time
	var seen string
	for {
		now, err := exec.CommandContext(ctx, "systemctl", "show", "--property=ActiveState,MainPID", "lunard.service").Output()
		state := string(now)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil || !strings.Contains(state, "ActiveState=active"):
			seen = ""
		case state != seen:
			seen, since = state, time.Now()
		case time.Since(since) >= readyFor:
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(readyPoll):
		}
	}
}

// imageVersion is the version of the image that runs, by os-release(5).
func imageVersion() string {
	text, err := os.ReadFile("/usr/lib/os-release")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(text)) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), "IMAGE_VERSION="); ok {
			return strings.Trim(v, `"'`)
		}
	}
	return ""
}

func systemctl(ctx context.Context, args ...string) error {
	if out, err := exec.CommandContext(ctx, "systemctl", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("systemctl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}
