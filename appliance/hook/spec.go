package hook

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"
)

// Bounds of a hook.
const (
	DefaultLimit = 15 * time.Second
	MinLimit     = time.Second
	MaxLimit     = 5 * time.Minute
	MaxCommand   = 1024 // bytes of a command
	maxOutput    = 1024 // bytes of what a command prints that an error tells
	maxPath      = 107  // bytes of a unix socket's path
)

// Errors of Start and End; each wraps the reason.
var (
	ErrBefore = errors.New("the hook before the snapshot failed") // what was stopped goes on
	ErrLate   = errors.New("the hook's limit was reached before the snapshot was taken")
	ErrAfter  = errors.New("the hook after the snapshot failed")
)

// Spec is an image's hook: commands for /bin/sh, or the unix socket of a QEMU guest agent, which freezes the guest's
// file systems. Limit bounds what runs before, the time until what runs after begins, and that.
type Spec struct {
	Before string        `json:"before,omitempty"`
	After  string        `json:"after,omitempty"`
	Agent  string        `json:"agent,omitempty"`
	Limit  time.Duration `json:"limit"`
}

// Validate tells what is wrong with s.
func (s Spec) Validate() error {
	switch {
	case s.Agent == "" && s.Before == "" && s.After == "":
		return errors.New("a hook needs a command before, a command after, or a guest agent's socket")
	case s.Agent != "" && s.Before+s.After != "":
		return errors.New("a hook is either commands or a guest agent")
	case s.Agent != "" && (!filepath.IsAbs(s.Agent) || len(s.Agent) > maxPath):
		return fmt.Errorf("guest agent %q: give the absolute path of its unix socket, of %d bytes at most", s.Agent, maxPath)
	case max(len(s.Before), len(s.After)) > MaxCommand || strings.ContainsRune(s.Before+s.After, 0):
		return fmt.Errorf("a command has %d bytes at most, and no NUL: put the rest into a script", MaxCommand)
	case s.Limit < MinLimit || s.Limit > MaxLimit:
		return fmt.Errorf("a limit of %v: give %v to %v", s.Limit, MinLimit, MaxLimit)
	}
	return nil
}

// Job is what a hook runs for. Commands find it in their environment.
type Job struct {
	Volume   string `json:"volume"`
	Image    string `json:"image"` // VOLUME/PATH
	Snapshot string `json:"snapshot"`
}

func (j Job) environment(phase, result string) []string {
	return []string{
		"LUNAR_VOLUME=" + j.Volume, "LUNAR_IMAGE=" + j.Image, "LUNAR_SNAPSHOT=" + j.Snapshot,
		"LUNAR_PHASE=" + phase, "LUNAR_RESULT=" + result,
	}
}
