package hook

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// grace is what a keeper may take beside what the hook's limit bounds.
const grace = 10 * time.Second

// Keeper is a hook that has begun. Its methods serve one goroutine at a time.
type Keeper struct {
	path  string // of the record
	spec  Spec
	cmd   *exec.Cmd
	in    *os.File // orders
	out   *os.File
	lines *bufio.Reader
}

// Start runs what is to run before a snapshot. On an error, which is ErrBefore or the keeper's own, what runs after has
// run too. dir is the daemon's own, the same for Recover. When ctx ends the hook is called off.
func Start(ctx context.Context, dir string, s Spec, j Job) (*Keeper, error) {
	if err := s.Validate(); err != nil {
		return nil, fmt.Errorf("hook of %s: %w", j.Image, err)
	}
	r := &record{Spec: s, Job: j, Since: time.Now().UTC()}
	path, err := r.write(dir)
	if err != nil {
		return nil, fmt.Errorf("hook of %s: %w", j.Image, err)
	}
	k, err := spawn(path, modeRun, s)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("hook of %s: %w", j.Image, err), remove(path))
	}
	stop := context.AfterFunc(ctx, func() { _ = k.in.Close() }) // the keeper takes that for the daemon's end
	defer stop()
	t, err := k.read(2*s.Limit + grace)
	switch {
	case err == nil && t.Ready && ctx.Err() == nil:
		return k, nil
	case err == nil && t.Before != "":
		err = fmt.Errorf("%w: %s%s", ErrBefore, t.Before, also(t.After))
	case err == nil:
		err = ctx.Err()
	}
	return nil, fmt.Errorf("hook of %s: %w", j.Image, errors.Join(err, k.end(context.WithoutCancel(ctx), s.Limit)))
}

// also is a second thing that went wrong.
func also(words string) string {
	if words == "" {
		return ""
	}
	return "; afterwards: " + words
}

// spawn starts a keeper.
func spawn(path, mode string, s Spec) (*Keeper, error) {
	in, order, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	out, answer, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, in.Close(), order.Close())
	}
	k := &Keeper{path: path, spec: s, in: order, out: out, lines: bufio.NewReader(out)}
	k.cmd = exec.Command("/proc/self/exe", Argument, path)
	k.cmd.Args[0] = os.Args[0]
	k.cmd.Env = append(os.Environ(), marker+"="+mode)
	k.cmd.Stdin, k.cmd.Stdout, k.cmd.Stderr = in, answer, os.Stderr
	k.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = k.cmd.Start()
	err = errors.Join(err, in.Close(), answer.Close())
	if err != nil {
		_, _ = order.Close(), out.Close()
		return nil, err
	}
	return k, nil
}

// read gets the keeper's next line.
func (k *Keeper) read(limit time.Duration) (t told, err error) {
	if err = k.out.SetReadDeadline(time.Now().Add(limit)); err != nil {
		return t, err
	}
	line, err := k.lines.ReadBytes('\n')
	if err != nil {
		return t, fmt.Errorf("the hook's process says nothing: %w", err)
	}
	err = json.Unmarshal(line, &t)
	return t, err
}

// End runs what is to run after the snapshot, which was taken or not. ErrLate: it is not of what was stopped. ErrAfter:
// it is, but what was stopped may still be. It does not end before that with ctx.
func (k *Keeper) End(ctx context.Context, taken bool) error {
	order := byte(orderFailed)
	if taken {
		order = orderTaken
	}
	_, _ = k.in.Write([]byte{order}) // one that is gone has told why, or is recovered
	t, err := k.read(2*k.spec.Limit + grace)
	err = errors.Join(err, k.end(context.WithoutCancel(ctx), k.spec.Limit))
	if err != nil {
		return fmt.Errorf("%w: %w", ErrLate, err)
	}
	return t.err()
}

func (t told) err() error {
	var errs []error
	if t.Late != "" {
		errs = append(errs, fmt.Errorf("%w: %s", ErrLate, t.Late))
	}
	if t.After != "" {
		errs = append(errs, fmt.Errorf("%w: %s", ErrAfter, t.After))
	}
	return errors.Join(errs...)
}

// end awaits the keeper's end; one that was killed gets a successor.
func (k *Keeper) end(ctx context.Context, limit time.Duration) error {
	_ = k.in.Close()
	kill := time.AfterFunc(3*limit+grace, func() { _ = k.cmd.Process.Kill() })
	err := k.cmd.Wait()
	kill.Stop()
	_ = k.out.Close()
	if err == nil {
		return k.forget()
	}
	_, words, again := recoverOne(ctx, k.path)
	if words != "" {
		err = fmt.Errorf("%w; %s", err, words)
	}
	return errors.Join(fmt.Errorf("the hook's process: %w", err), again)
}

// Leave has the keeper do what is left alone, as after the daemon's end, in the place of End.
func (k *Keeper) Leave() error {
	return errors.Join(k.in.Close(), k.out.Close(), k.cmd.Process.Release())
}

// Limit is the longest time that End takes, and that the snapshot may.
func (k *Keeper) Limit() time.Duration { return 2*k.spec.Limit + grace }

// forget removes a record that says that all was done.
func (k *Keeper) forget() error {
	r, err := read(k.path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err == nil && r.Done:
		return remove(k.path)
	}
	return err
}

// Recovered is a hook whose daemon was gone before its end.
type Recovered struct {
	Job   Job
	Since time.Time
	Err   error // of what runs after
}

// Recover runs, or has run, what is left to run of hooks that an earlier daemon began. It takes no longer than their
// limits, all side by side; when ctx ends the keepers go on alone.
func Recover(ctx context.Context, dir string, each func(Recovered)) error {
	paths, err := filepath.Glob(filepath.Join(dir, "*"+suffix))
	if err != nil || len(paths) == 0 {
		return err
	}
	results := make(chan Recovered, len(paths))
	for _, path := range paths {
		go func() {
			r, words, err := recoverOne(ctx, path)
			if words != "" {
				err = errors.Join(err, fmt.Errorf("%w: %s", ErrAfter, words))
			}
			results <- Recovered{r.Job, r.Since, err}
		}()
	}
	for range paths {
		each(<-results)
	}
	return nil
}

// recoverOne has a keeper end what the record at path tells; words say how what runs after failed.
func recoverOne(ctx context.Context, path string) (r record, words string, err error) {
	known, err := read(path)
	if errors.Is(err, os.ErrNotExist) {
		return r, "", nil
	}
	if err != nil {
		return r, "", err
	}
	k, err := spawn(path, modeRecover, known.Spec)
	if err != nil {
		return *known, "", err
	}
	defer func() {
		_ = k.in.Close()
		_ = k.out.Close()
	}()
	stop := context.AfterFunc(ctx, func() { _ = k.out.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	t, err := k.read(6*known.Spec.Limit + grace)
	if ctx.Err() != nil {
		return *known, "", errors.Join(ctx.Err(), k.cmd.Process.Release())
	}
	if errors.Is(err, io.EOF) && !strings.Contains(err.Error(), "unexpected") { // the other one has ended it
		err = nil
	}
	return *known, t.After, errors.Join(err, k.cmd.Wait())
}
