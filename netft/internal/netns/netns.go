// Package netns keeps work in the network namespace where it began, whatever thread does it.
//
// The caller closes what Current returns, after the last use.
package netns

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

const own = "/proc/thread-self/ns/net"

// Namespace is a network namespace, held open.
type Namespace struct{ file *os.File }

// Current is the network namespace of the calling thread.
func Current() (*Namespace, error) {
	f, err := os.Open(own)
	if err != nil {
		return nil, fmt.Errorf("netns: %w", err)
	}
	return &Namespace{f}, nil
}

// Close lets go of it.
func (n *Namespace) Close() error { return n.file.Close() }

// Enter moves the calling goroutine into the namespace for the rest of its life. Its thread is locked
// to it and ends with it, so call it only at the start of a goroutine of one's own.
func (n *Namespace) Enter() error {
	runtime.LockOSThread()
	if n.here() {
		return nil
	}
	if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("netns: enter: %w", err)
	}
	return nil
}

// here tells whether the calling thread is in the namespace, where no rights are needed to stay.
func (n *Namespace) here() bool {
	var mine, its unix.Stat_t
	return unix.Stat(own, &mine) == nil && unix.Fstat(int(n.file.Fd()), &its) == nil && mine.Ino == its.Ino && mine.Dev == its.Dev
}

// Do runs f on a thread in the namespace and waits for it.
func (n *Namespace) Do(f func() error) error {
	done := make(chan error, 1)
	go func() {
		err := n.Enter()
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}
