package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// stopLimit bounds the time from SIGTERM to SIGKILL.
const stopLimit = 20 * time.Second

// Process is a program that runs until it is stopped. Its output goes to a file.
type Process struct {
	LogPath string

	cmd    *exec.Cmd
	exited chan struct{} // closed once err is set
	err    error
}

// Start runs a program in its own process group; Close stops it if it still runs.
func (l *Lab) Start(argv ...string) (*Process, error) { return l.startWith(nil, argv...) }

// startWith is Start with additions to the environment, as in "NAME=value".
func (l *Lab) startWith(env []string, argv ...string) (*Process, error) {
	p := &Process{LogPath: l.logPath(argv[0]), exited: make(chan struct{})}
	output, err := os.Create(p.LogPath)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", argv[0], err)
	}
	defer output.Close() //nolint:errcheck // the child has its own descriptor
	p.cmd = exec.Command(argv[0], argv[1:]...)
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.Dir, p.cmd.Stdout, p.cmd.Stderr = l.Dir, output, output
	started := make(chan error)
	go p.run(started)
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", argv[0], err)
	}
	l.own(func() error { return p.Stop() })
	return p, nil
}

// run starts and awaits the program on one locked thread: the parent-death signal comes when the
// thread that forked ends, not the process.
func (p *Process) run(started chan<- error) {
	runtime.LockOSThread()
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	err := p.cmd.Start()
	started <- err
	if err == nil {
		p.err = p.cmd.Wait()
	}
	close(p.exited)
}

// PID is the process id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Exited is closed when the program has ended.
func (p *Process) Exited() <-chan struct{} { return p.exited }

// Log returns what the program has printed so far.
func (p *Process) Log() string {
	text, err := os.ReadFile(p.LogPath)
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// Stop asks with SIGTERM and waits; a program that is still there after stopLimit is killed, which
// is an error, as is an exit status other than 0. Stopping a stopped program does nothing.
func (p *Process) Stop() error { return p.StopWithin(stopLimit) }

// StopWithin is Stop with another limit.
func (p *Process) StopWithin(limit time.Duration) error {
	if !p.signal(syscall.SIGTERM) {
		return nil
	}
	select {
	case <-p.exited:
	case <-time.After(limit):
		p.Kill()
		return fmt.Errorf("stop %s: still running %s after SIGTERM; killed", p.cmd.Path, limit)
	}
	var status *exec.ExitError
	if errors.As(p.err, &status) && status.Sys().(syscall.WaitStatus).Signal() == syscall.SIGTERM { //nolint:errcheck // Linux
		return nil
	}
	if p.err != nil {
		return fmt.Errorf("stop %s: %w", p.cmd.Path, p.err)
	}
	return nil
}

// Kill ends the program with SIGKILL and waits until it is gone.
func (p *Process) Kill() {
	if p.signal(syscall.SIGKILL) {
		<-p.exited
	}
}

// signal tells whether the program was still there to get the signal.
func (p *Process) signal(s syscall.Signal) bool {
	select {
	case <-p.exited:
		return false
	default:
		return p.cmd.Process.Signal(s) == nil
	}
}

// Run runs a program to its end and returns its standard output; its error carries the standard error.
func Run(ctx context.Context, argv ...string) (string, error) {
	return RunInput(ctx, "", argv...)
}

// RunInput is Run with input on the program's standard input.
func RunInput(ctx context.Context, input string, argv ...string) (string, error) {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(input), &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%s: %w: %s", short(argv), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// short is a command line for an error message.
func short(argv []string) string {
	const most = 200
	line := strings.Join(argv, " ")
	if len(line) > most {
		line = line[:most] + "…"
	}
	return line
}

// patience is the least that Poll waits: the machine may be busy with other things.
const patience = time.Minute

// Poll calls ready until it returns nil, at most for limit, or for a minute if that is longer; then it returns ready's
// last error. Who asserts a time measures it.
func Poll(limit time.Duration, ready func() error) error {
	limit = max(limit, patience)
	deadline := time.Now().Add(limit)
	for {
		err := ready()
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("not ready after %s: %w", limit, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// ExitStatus is the status that Run's error tells, 0 without one and -1 if the program did not exit.
func ExitStatus(err error) int {
	var status *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &status):
		return status.ExitCode()
	}
	return -1
}
