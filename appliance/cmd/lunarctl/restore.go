package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"lunar/appliance/api"
)

// offLine is how lunard is called for what is done while no node answers.
type offLine struct{ config, stateDir string }

func (o *offLine) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&o.config, "config", "", "configuration file of a lunard that does not run (default: lunard's own)")
	cmd.Flags().StringVar(&o.stateDir, "state-dir", "", "its state directory (default: as configured)")
}

func (o *offLine) args(args ...string) []string {
	if o.config != "" {
		args = append(args, "--config", o.config)
	}
	if o.stateDir != "" {
		args = append(args, "--state-dir", o.stateDir)
	}
	return args
}

// lunard is the daemon's binary: beside this one, in its place in a package, or on the PATH.
func lunard() (string, error) {
	places := []string{"/usr/sbin/lunard", "/usr/local/sbin/lunard"}
	if self, err := os.Executable(); err == nil {
		places = append([]string{filepath.Join(filepath.Dir(self), "lunard")}, places...)
	}
	for _, path := range places {
		if _, err := exec.LookPath(path); err == nil {
			return path, nil
		}
	}
	path, err := exec.LookPath("lunard")
	if err != nil {
		return "", api.Errorf(api.NotFound, "lunard, which does that, was not found").WithHint("add its folder to PATH")
	}
	return path, nil
}

// call runs lunard and reads its answer.
func (o *offLine) call(ctx context.Context, answer any, args ...string) error {
	path, err := lunard()
	if err != nil {
		return err
	}
	var out, complaint bytes.Buffer
	cmd := exec.CommandContext(ctx, path, o.args(args...)...)
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := cmd.Run(); err != nil {
		return complaintOf(err, complaint.String())
	}
	if err := json.Unmarshal(out.Bytes(), answer); err != nil {
		return api.Errorf(api.Failed, "lunard's answer cannot be read: %v", err).WithHint("check that lunarctl and lunard are of one version")
	}
	return nil
}

func (c *cli) restore(ctx context.Context, o *offLine, force bool, file string) error {
	args := []string{"--restore", file}
	if force {
		args = append(args, "--force")
	}
	var saved api.Saved
	if err := o.call(ctx, &saved, args...); err != nil {
		return err
	}
	return c.printOne(saved, "restored: what node %s saved at %s, revision %d; start lunard now, and let the other nodes leave with --force and join anew",
		saved.Node, when(saved.Time), saved.Revision)
}

// complaintOf is what lunard says last, as JSON.
func complaintOf(err error, complaint string) error {
	lines := strings.Split(strings.TrimSpace(complaint), "\n")
	refused := &api.Error{}
	if json.Unmarshal([]byte(lines[len(lines)-1]), refused) == nil && refused.Message != "" {
		return refused
	}
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return err
	}
	return api.Errorf(api.Failed, "lunard: %v: %s", err, strings.TrimSpace(complaint))
}
