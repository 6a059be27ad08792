package guest

import (
	"context"
	_ "embed" // for the guest's script
	"errors"
	"fmt"
	"io"
	"regexp"
	"time"
)

//go:embed scripts/guest.sh
var guestScript string

// loginLimit bounds logging in on a busy machine, where an emulated guest loads the modules slowly.
const loginLimit = 3 * time.Minute

// JudgeOptions say how to run the list. Only filters the cases by name; nil runs all. Log gets a line per case.
type JudgeOptions struct {
	Only *regexp.Regexp
	Log  io.Writer
}

// Judge logs the machine's two initiators in to the target and runs the list against it. An error means that the run
// could not go on; the results so far are returned with it.
func Judge(ctx context.Context, m *Machine, t Target, o JudgeOptions) ([]Result, error) {
	if err := enter(ctx, m, t); err != nil {
		return nil, err
	}
	var results []Result
	for _, c := range List() {
		if o.Only != nil && !o.Only.MatchString(c.Name()) {
			continue
		}
		began := time.Now()
		r, err := c.do(ctx, m, t)
		if err != nil {
			return results, err
		}
		results = append(results, r)
		_, _ = fmt.Fprintf(o.Log, "%s %5.1fs %s => %s\n", mark(r.Passed), time.Since(began).Seconds(), r.Command, r)
	}
	return results, nil
}

func mark(passed bool) string {
	if passed {
		return "ok  "
	}
	return "FAIL"
}

// enter hands the guest its script and the target's name, and logs in.
func enter(ctx context.Context, m *Machine, t Target) error {
	steps := []string{
		"cat >/run/guest.sh <<'GUEST'\n" + guestScript + "\nGUEST",
		"modprobe -a iscsi_tcp sg && systemctl start iscsid && . /run/guest.sh && nodes && login",
	}
	err := errors.Join(m.Export(ctx, "PORTAL", t.Portal()), m.Export(ctx, "IQN", t.IQN()))
	if err != nil {
		return fmt.Errorf("initiator: %w", err)
	}
	for _, step := range steps {
		status, output, err := m.Run(ctx, loginLimit, step)
		if err == nil && status != 0 {
			err = fmt.Errorf("exit status %d: %s", status, output)
		}
		if err != nil {
			return fmt.Errorf("initiator: log in to %s at %s: %w", t.IQN(), t.Portal(), err)
		}
	}
	return m.Export(ctx, "BASH_ENV", "/run/guest.sh")
}
