package fence

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// AgentOptions is a command that fences, as Pacemaker's and oVirt's agents do. It is run as
// `COMMAND… off NODE DEVICE` and exits 0 only when the node surely cannot write to the device any more.
type AgentOptions struct {
	Command []string      // program and arguments before "off"
	Timeout time.Duration // of one run; 0 is DefaultAgentTimeout
}

// DefaultAgentTimeout is that of Pacemaker's stonith-timeout.
const DefaultAgentTimeout = time.Minute

// Bounds of an agent.
const (
	agentOutput = 4 << 10         // bytes kept of what it prints
	agentPipes  = 2 * time.Second // how long its children may hold its output after it was killed
)

type agent struct {
	nothing
	opts   AgentOptions
	device string
}

func openAgent(o Options) (*agent, error) {
	a := &agent{opts: o.Agent, device: o.Device}
	if len(a.opts.Command) == 0 {
		return nil, errors.New("fencing by agent: no command is configured")
	}
	if a.opts.Timeout < 0 {
		return nil, fmt.Errorf("fencing by agent: the time-out is %v: give 0 or more", a.opts.Timeout)
	}
	if a.opts.Timeout == 0 {
		a.opts.Timeout = DefaultAgentTimeout
	}
	if _, err := exec.LookPath(a.opts.Command[0]); err != nil {
		return nil, fmt.Errorf("fencing by agent: %w", err)
	}
	return a, nil
}

// fence runs the command until it says yes.
func (a *agent) fence(ctx context.Context, v Victim) (Proof, error) {
	var wait time.Duration
	for {
		err := a.run(ctx, v)
		if err == nil {
			return Proof{Detail: fmt.Sprintf("%s off %s %s: exit 0", a.name(), v.Name, a.device)}, nil
		}
		if pause(ctx, &wait) != nil {
			return Proof{}, errors.Join(ctx.Err(), err)
		}
	}
}

func (a *agent) name() string { return filepath.Base(a.opts.Command[0]) }

// run runs the command once; it and its children are killed at its time-out or when ctx ends.
func (a *agent) run(ctx context.Context, v Victim) error {
	ctx, cancel := context.WithTimeout(ctx, a.opts.Timeout)
	defer cancel()
	arguments := append(append([]string{}, a.opts.Command[1:]...), "off", v.Name, a.device)
	cmd := exec.CommandContext(ctx, a.opts.Command[0], arguments...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = agentPipes
	var output tail
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), errors.Join(ctx.Err(), err), output.text())
	}
	return nil
}

func (a *agent) describe() string {
	return fmt.Sprintf("agent: `%s off NODE %s` switches a node that is out off, or its path; it is trusted to tell the truth",
		strings.Join(a.opts.Command, " "), a.device)
}

// tail keeps the end of what is written to it.
type tail struct{ kept bytes.Buffer }

func (t *tail) Write(p []byte) (int, error) {
	t.kept.Write(p)
	if over := t.kept.Len() - agentOutput; over > 0 {
		t.kept.Next(over)
	}
	return len(p), nil
}

func (t *tail) text() string {
	if s := strings.TrimSpace(t.kept.String()); s != "" {
		return s
	}
	return "it printed nothing"
}
