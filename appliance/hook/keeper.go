package hook

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Argument is the first one of a keeper; the second is its record's path.
const Argument = "hook-keeper"

// marker and its values are in a keeper's environment.
const (
	marker      = "LUNAR_HOOK_KEEPER"
	modeRun     = "run"
	modeRecover = "recover" // what another one was to do
)

// told is a line from the keeper.
type told struct {
	Ready  bool   `json:"ready,omitempty"` // what runs before has ended well
	Before string `json:"before,omitempty"`
	Late   string `json:"late,omitempty"`
	After  string `json:"after,omitempty"`
}

// Main returns at once unless this process is a keeper, and then never.
func Main() {
	mode := os.Getenv(marker)
	if len(os.Args) != 3 || os.Args[1] != Argument || mode == "" {
		return
	}
	runtime.LockOSThread() // commands end with the thread that has started them
	_ = os.Unsetenv(marker)
	// Terminals and service managers speak to the daemon. Not ignored, as the commands would inherit that.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGPIPE)
	if err := keep(os.Args[2], mode); err != nil {
		fmt.Fprintln(os.Stderr, "hook:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func keep(path, mode string) error {
	r, err := read(path)
	if mode == modeRecover && errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	held, err := lock(path, 4*r.Spec.Limit)
	if err != nil {
		return err
	}
	defer func() { _ = held.Close() }()
	if mode == modeRecover {
		return recovered(path)
	}
	return r.run(path)
}

// recovered runs what another keeper left.
func recovered(path string) error {
	r, err := read(path) // once more: it had the lock
	if errors.Is(err, fs.ErrNotExist) {
		return os.Remove(path + ".lock")
	}
	if err != nil {
		return err
	}
	if !r.Done {
		_, err := r.resume(resultUnknown)
		r.Words = words(err)
	}
	return errors.Join(tell(told{After: r.Words}), remove(path))
}

// run is the whole of a hook.
func (r *record) run(path string) error {
	frozen, err := r.quiesce()
	out := told{Before: words(err)}
	result := resultFailed
	if err == nil {
		_ = tell(told{Ready: true})
		if result = await(r.Spec.Limit); result == "" {
			result = resultUnknown
			out.Late = fmt.Sprintf("what was stopped went on after %v", r.Spec.Limit)
		}
	}
	thawed, err := r.resume(result)
	out.After = words(err)
	if out.Before == "" && err == nil && thawed != frozen && r.Spec.Agent != "" {
		out.Late = fmt.Sprintf("of %d file systems that the guest had frozen, %d still were", frozen, thawed)
	}
	if tell(out) != nil || result == resultUnknown && out.Late == "" { // nobody is there
		r.Done, r.Words = true, out.After
		return r.replace(path)
	}
	return remove(path)
}

func words(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func tell(t told) error { return json.NewEncoder(os.Stdout).Encode(t) }

// await is how the snapshot ended, resultUnknown when the daemon is gone, and "" when limit has passed.
func await(limit time.Duration) string {
	until := time.Now().Add(limit)
	for {
		left := time.Until(until)
		if left <= 0 {
			return ""
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: 0, Events: unix.POLLIN}}, int(left/time.Millisecond)+1)
		if n == 0 || errors.Is(err, unix.EINTR) {
			continue
		}
		var order [1]byte
		switch n, err := unix.Read(0, order[:]); {
		case errors.Is(err, unix.EINTR):
			continue
		case n != 1 || err != nil:
			return resultUnknown
		}
		if order[0] == orderTaken {
			return resultTaken
		}
		return resultFailed
	}
}

// The orders to a keeper that waits.
const (
	orderTaken  = 't'
	orderFailed = 'f'
)
