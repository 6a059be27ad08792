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

	"lunar/appliance/api"
)

// restore is how lunard is called, which does the work: no node answers then.
type restore struct {
	config, stateDir string
	force            bool
}

func (o *restore) args(file string) []string {
	args := []string{"--restore", file}
	if o.config != "" {
		args = append(args, "--config", o.config)
	}
	if o.stateDir != "" {
		args = append(args, "--state-dir", o.stateDir)
	}
	if o.force {
		args = append(args, "--force")
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
		return "", api.Errorf(api.NotFound, "lunard, which does the restore, was not found").WithHint("add its folder to PATH")
	}
	return path, nil
}

func (c *cli) restore(ctx context.Context, o *restore, file string) error {
	path, err := lunard()
	if err != nil {
		return err
	}
	var out, complaint bytes.Buffer
	cmd := exec.CommandContext(ctx, path, o.args(file)...)
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := cmd.Run(); err != nil {
		return restoreError(err, complaint.String())
	}
	var saved api.Saved
	if err := json.Unmarshal(out.Bytes(), &saved); err != nil {
		return api.Errorf(api.Failed, "lunard's answer cannot be read: %v", err).WithHint("check that lunarctl and lunard are of one version")
	}
	return c.printOne(saved, "restored: what node %s saved at %s, revision %d; start lunard now, and let the other nodes leave with --force and join anew",
		saved.Node, when(saved.Time), saved.Revision)
}

// restoreError is what lunard says last, as JSON.
func restoreError(err error, complaint string) error {
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
