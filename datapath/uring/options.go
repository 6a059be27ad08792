package uring

import (
	"fmt"
	"log/slog"
	"time"
)

// Limits that Options are checked against.
const (
	MaxRings    = 64
	MaxInFlight = 8192
	MaxSockets  = 8192
	MaxFiles    = 16384
	// MaxPosts bounds the functions that wait for a ring in Post.
	MaxPosts = 1 << 16
)

// Options sizes an Engine. The zero value of a field stands for its default.
type Options struct {
	Rings     int           // rings, each a thread; default 1
	Entries   int           // submission queue entries per ring, a power of two; default 256
	InFlight  int           // operations in the kernel per ring; default 256
	Queue     int           // operations that wait behind them per ring; default 4096
	Sockets   int           // attached sockets per ring; default 2048
	Files     int           // registered files; default 1024
	PoolBytes int64         // size of the buffer pool, a multiple of 1 MiB; default 64 MiB
	Deadline  time.Duration // of an Op that sets none; default 30 s
	Grace     time.Duration // from a cancellation to reporting an operation as held; default 1 s
	Spin      time.Duration // busy wait for completions before a ring sleeps; default 0: none
	Log       *slog.Logger  // default slog.Default()
	// Clock times the operations of a ring; nil times none.
	Clock func(ring int) Clock
}

// withDefaults fills the fields that are zero.
func (o Options) withDefaults() Options {
	o.Rings = orInt(o.Rings, 1)
	o.Entries = orInt(o.Entries, 256)
	o.InFlight = orInt(o.InFlight, 256)
	o.Queue = orInt(o.Queue, 4096)
	o.Sockets = orInt(o.Sockets, 2048)
	o.Files = orInt(o.Files, 1024)
	o.PoolBytes = orInt(o.PoolBytes, 64<<20)
	o.Deadline = orInt(o.Deadline, 30*time.Second)
	o.Grace = orInt(o.Grace, time.Second)
	if o.Log == nil {
		o.Log = slog.Default()
	}
	return o
}

func orInt[T ~int | ~int64](v, def T) T {
	if v == 0 {
		return def
	}
	return v
}

// Validate tells what is wrong with o, zero fields counting as their defaults.
func (o Options) Validate() error {
	o = o.withDefaults()
	for _, f := range [...]struct {
		name          string
		value, lo, hi int64
	}{
		{"Rings", int64(o.Rings), 1, MaxRings},
		{"Entries", int64(o.Entries), 8, 32768},
		{"InFlight", int64(o.InFlight), 1, MaxInFlight},
		{"Queue", int64(o.Queue), 1, 1 << 20},
		{"Sockets", int64(o.Sockets), 1, MaxSockets},
		{"Files", int64(o.Files), 1, MaxFiles},
		{"PoolBytes", o.PoolBytes, slabSize, 1 << 40},
		{"Deadline", int64(o.Deadline), int64(time.Millisecond), int64(24 * time.Hour)},
		{"Grace", int64(o.Grace), int64(time.Millisecond), int64(time.Hour)},
		{"Spin", int64(o.Spin), 0, int64(time.Millisecond)},
	} {
		if f.value < f.lo || f.value > f.hi {
			return fmt.Errorf("uring: Options.%s is %d: give %d to %d: %w", f.name, f.value, f.lo, f.hi, ErrInvalid)
		}
	}
	if o.Entries&(o.Entries-1) != 0 {
		return fmt.Errorf("uring: Options.Entries is %d: give a power of two: %w", o.Entries, ErrInvalid)
	}
	if o.PoolBytes%slabSize != 0 {
		return fmt.Errorf("uring: Options.PoolBytes is %d: give a multiple of %d: %w", o.PoolBytes, slabSize, ErrInvalid)
	}
	return nil
}
