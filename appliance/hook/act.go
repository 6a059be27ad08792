package hook

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// How the snapshot ended, as LUNAR_RESULT tells a command.
const (
	resultTaken   = "taken"
	resultFailed  = "failed"
	resultUnknown = "unknown" // the daemon was gone, or too late
)

// quiesce runs what is to run before; frozen is how many of the guest's file systems are frozen.
func (r *record) quiesce() (frozen int, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), r.Spec.Limit)
	defer cancel()
	if r.Spec.Agent != "" {
		frozen, err = freeze(ctx, r.Spec.Agent)
	} else {
		err = command(ctx, r.Spec.Before, r.Job.environment("before", ""))
	}
	return frozen, r.limited(ctx, err)
}

// resume runs what is to run after; thawed is how many of the guest's file systems were still frozen.
func (r *record) resume(result string) (thawed int, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), r.Spec.Limit)
	defer cancel()
	if r.Spec.Agent != "" {
		thawed, err = thaw(ctx, r.Spec.Agent)
	} else {
		err = command(ctx, r.Spec.After, r.Job.environment("after", result))
	}
	return thawed, r.limited(ctx, err)
}

// limited says of an error that it is the limit's.
func (r *record) limited(ctx context.Context, err error) error {
	if err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return fmt.Errorf("not within the hook's limit of %v: %w", r.Spec.Limit, err)
	}
	return err
}

// command runs a command line with more environment; what it started ends with ctx.
func command(ctx context.Context, line string, environment []string) error {
	if line == "" {
		return nil
	}
	out := &tail{}
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", line)
	cmd.Env = append(os.Environ(), environment...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	if err == nil || errors.Is(err, exec.ErrWaitDelay) {
		return nil // what it left running has its output
	}
	if words := strings.TrimSpace(strings.ToValidUTF8(string(out.last), "?")); words != "" {
		return fmt.Errorf("command %q: %w: %s", line, err, words)
	}
	return fmt.Errorf("command %q: %w", line, err)
}

// tail keeps the end of what is written to it.
type tail struct{ last []byte }

// Write implements io.Writer.
func (t *tail) Write(p []byte) (int, error) {
	t.last = append(t.last, p...)
	if n := len(t.last) - maxOutput; n > 0 {
		t.last = bytes.Clone(t.last[n:])
	}
	return len(p), nil
}
