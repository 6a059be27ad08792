package wire

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// Limits bound what one peer can make a node keep. Zero values take the defaults.
type Limits struct {
	Connections int // to the server; default 1024
	Calls       int // of one session under way; default 256
	Attaches    int // of one session whose grant is not sent yet; default 4
	Holders     int // of one session; default 65,536
	Recalls     int // of one session that wait for their answer; default 4096
	Window      int // bytes told to a node that it has not acknowledged; default 4 MiB
	Message     int // bytes of a message; default 4 MiB
}

func (l Limits) withDefaults() Limits {
	l.Connections = or(l.Connections, 1024)
	l.Calls = or(l.Calls, 256)
	l.Attaches = or(l.Attaches, 4)
	l.Holders = or(l.Holders, 1<<16)
	l.Recalls = or(l.Recalls, 4096)
	l.Window = or(l.Window, 4<<20)
	l.Message = or(l.Message, 4<<20)
	return l
}

func (l Limits) validate() error {
	for _, n := range []int{l.Connections, l.Calls, l.Attaches, l.Holders, l.Recalls, l.Window, l.Message} {
		if n < 0 {
			return fmt.Errorf("wire: a negative bound in Limits: %w", unix.EINVAL)
		}
	}
	return nil
}

// Timing says how a dead peer is noticed. Zero values take the defaults. It is the same on all nodes.
type Timing struct {
	Ping    time.Duration // between signs of life on a session; default 200 ms
	Silence time.Duration // after which a peer is taken for dead, also as TCP_USER_TIMEOUT; default 900 ms
	Connect time.Duration // for a connection up to the first word of the peer; default 2 s
	Wait    time.Duration // of a call for a connection, before it fails with ErrUnreachable; default 1 s
}

func (t Timing) withDefaults() Timing {
	t.Ping = or(t.Ping, 200*time.Millisecond)
	t.Silence = or(t.Silence, 900*time.Millisecond)
	t.Connect = or(t.Connect, 2*time.Second)
	t.Wait = or(t.Wait, time.Second)
	return t
}

func (t Timing) validate() error {
	if t.Ping < 0 || t.Silence < 0 || t.Connect < 0 || t.Wait < 0 {
		return fmt.Errorf("wire: a negative time in Timing: %w", unix.EINVAL)
	}
	if t = t.withDefaults(); t.Silence < 2*t.Ping {
		return fmt.Errorf("wire: Timing.Silence %v is under two Pings of %v: %w", t.Silence, t.Ping, unix.EINVAL)
	}
	return nil
}

func or[T ~int | ~int64](v, def T) T {
	if v == 0 {
		return def
	}
	return v
}
