package heartbeat

import (
	"errors"
	"fmt"
	"time"
)

// Bounds.
const (
	// MaxPaths is how many (peer, network, family) are stamped: 64 peers on 4 networks by both families.
	MaxPaths = 512
	// MaxInterfaces is how many interfaces can be attached at a time.
	MaxInterfaces = 64
	// MaxKeys is how many keys are accepted at a time: while a key is being replaced, the new one and the old one.
	MaxKeys = 2
	// KeySize is the length of a key in bytes.
	KeySize = 16
	// MinTick and MaxTick bound Options.Tick.
	MinTick = time.Millisecond
	MaxTick = 10 * time.Second
)

// Defaults of Options.
const (
	DefaultTick   = 50 * time.Millisecond
	DefaultSilent = 20
)

// ErrUnsupported is in every error that says that this kernel, or this process, cannot do it: no rights, no BTF, no
// tcx. The caller then goes on without the kernel's help.
var ErrUnsupported = errors.New("the kernel's heartbeat programs cannot be used")

// ErrClosed says that the Heartbeat or the Events was closed.
var ErrClosed = errors.New("heartbeat: closed")

// Options is what Load needs to know.
type Options struct {
	// Number is this node's number, not 0.
	Number uint16
	// Incarnation is this daemon's, higher than that of each daemon before it on this node, not 0.
	Incarnation uint64
	// Keys are the cluster's heartbeat keys: 1 to MaxKeys, all accepted.
	Keys [][KeySize]byte
	// Tick is the period of the kernel's timer; 0 means DefaultTick. A tick late by more than Tick is a late tick.
	Tick time.Duration
	// Silent is after how many ticks without a sign of life a path is reported silent; 0 means DefaultSilent.
	Silent int
	// Deliver passes accepted heartbeats on to the sockets, and leaves the answers to the daemon.
	Deliver bool
	// Pin is a folder in a bpf file system, made if it is missing; "" pins nothing.
	Pin string
	// BTF is the file with the kernel's type information; "" means /sys/kernel/btf/vmlinux.
	BTF string
}

// Validate says what is wrong with o.
func (o *Options) Validate() error {
	switch {
	case o.Number == 0:
		return errors.New("heartbeat: the node number is 0")
	case o.Incarnation == 0:
		return errors.New("heartbeat: the incarnation is 0")
	case o.Tick != 0 && (o.Tick < MinTick || o.Tick > MaxTick):
		return fmt.Errorf("heartbeat: a tick of %v is not between %v and %v", o.Tick, MinTick, MaxTick)
	case o.Silent < 0:
		return fmt.Errorf("heartbeat: silent after %d ticks is negative", o.Silent)
	}
	return validateKeys(o.Keys)
}

func validateKeys(keys [][KeySize]byte) error {
	if len(keys) == 0 || len(keys) > MaxKeys {
		return fmt.Errorf("heartbeat: %d keys, want 1 to %d", len(keys), MaxKeys)
	}
	return nil
}
