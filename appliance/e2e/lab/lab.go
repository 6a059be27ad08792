package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
)

// Lab is a folder and what runs in it. Its methods may be called from several goroutines.
type Lab struct {
	// Dir holds state, logs and disks.
	Dir string
	// Bin holds lunard and lunarctl.
	Bin string

	mu       sync.Mutex
	closers  []func() error // guarded by mu; ended in reverse order
	launched int            // guarded by mu; numbers the log files
}

// Open makes dir, which must be short enough for a unix socket below it, and returns its Lab.
func Open(dir, bin string) (*Lab, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("lab: loop devices and mounts need root: run it as root")
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	if err := os.MkdirAll(abs, 0o700); err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	absBin, err := filepath.Abs(bin)
	if err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	return &Lab{Dir: abs, Bin: absBin}, nil
}

// Path is a path in the lab's folder.
func (l *Lab) Path(name string) string { return filepath.Join(l.Dir, name) }

// Close ends what the lab owns, newest first, and reports every failure. The folder stays.
func (l *Lab) Close() error {
	var errs []error
	for {
		l.mu.Lock()
		n := len(l.closers)
		if n == 0 {
			l.mu.Unlock()
			return errors.Join(errs...)
		}
		last := l.closers[n-1]
		l.closers = l.closers[:n-1]
		l.mu.Unlock()
		errs = append(errs, last())
	}
}

func (l *Lab) own(closer func() error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closers = append(l.closers, closer)
}

func (l *Lab) logPath(name string) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.launched++
	return l.Path(fmt.Sprintf("%02d-%s.log", l.launched, filepath.Base(name)))
}
