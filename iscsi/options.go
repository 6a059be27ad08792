package iscsi

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"lunar/iscsi/pdu"
	"lunar/iscsi/scsi"
)

// ErrOptions says that options make no sense; the message names the field.
var ErrOptions = errors.New("iscsi: invalid options")

// Options configure a Server. Lanes and Buffers are needed, the rest has defaults.
type Options struct {
	Lanes   []Lane
	Buffers Buffers

	// MaxConnections bounds the connections of all portals, those that are logging in included;
	// one more pushes out the oldest one that has not logged in, of the address that has most of
	// those; when all have, it is refused with "out of resources". Default 1,024.
	MaxConnections int
	// MaxPending bounds the connections from one address (IPv4), or one /64 (IPv6), that have not
	// logged in; one more ends the oldest of them. Default 256.
	MaxPending int
	// QueueDepth is the number of commands that one session may have under way. Default 128.
	QueueDepth int
	// ConnectionBytes bounds the command buffers that one connection holds. Default 16 MiB.
	ConnectionBytes int
	// LendMin is the length, in bytes, from which on a read's data is sent without a copy if the socket can; initiators
	// that take shorter segments get copies. Default 64 KiB.
	LendMin int
	// LendBytes bounds the memory for that, 8 MiB for each connection that reads so, in bytes. Default 128 MiB.
	LendBytes int
	// ReceiveBuffer is the size of a session's receive buffer in bytes. Default 64 KiB.
	ReceiveBuffer int

	// MaxRecvData is the MaxRecvDataSegmentLength declared to initiators. Default 256 KiB.
	MaxRecvData int
	// MaxBurst and FirstBurst bound what is negotiated. Defaults 1 MiB and 256 KiB.
	MaxBurst, FirstBurst int
	// MaxR2T bounds MaxOutstandingR2T, 1 to MaxR2TLimit. Default 4.
	MaxR2T int

	// LoginTime bounds a login phase. Default 15 s.
	LoginTime time.Duration
	// IdleTime is the silence after which the target sends a NOP-In. Default 15 s.
	IdleTime time.Duration
	// StallTime bounds every wait for a peer: for the answer to a NOP-In, for Data-Out that was
	// asked for, for room to send. Default 30 s.
	StallTime time.Duration
	// LogoutTime is how long Close and RemoveTarget let initiators log out by themselves. Default 2 s.
	LogoutTime time.Duration

	// DiscoveryCHAP asks for CHAP in discovery sessions; nil does not.
	DiscoveryCHAP *Credentials
	// Clock times the commands of a lane; nil times none.
	Clock func(lane int) Clock
	Log   *slog.Logger
}

// MaxR2TLimit bounds Options.MaxR2T.
const MaxR2TLimit = 8

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

func (o *Options) fill() {
	setDefault(&o.MaxConnections, 1024)
	setDefault(&o.MaxPending, 256)
	setDefault(&o.QueueDepth, 128)
	setDefault(&o.ConnectionBytes, 16<<20)
	setDefault(&o.LendMin, 64<<10)
	setDefault(&o.LendBytes, 128<<20)
	setDefault(&o.ReceiveBuffer, 64<<10)
	setDefault(&o.MaxRecvData, 256<<10)
	setDefault(&o.MaxBurst, 1<<20)
	setDefault(&o.FirstBurst, 256<<10)
	setDefault(&o.MaxR2T, 4)
	setDefault(&o.LoginTime, 15*time.Second)
	setDefault(&o.IdleTime, 15*time.Second)
	setDefault(&o.StallTime, 30*time.Second)
	setDefault(&o.LogoutTime, 2*time.Second)
	setDefault(&o.Log, slog.New(slog.DiscardHandler))
}

// Validate tells what is wrong after the defaults are filled in; the error wraps ErrOptions.
func (o Options) Validate() error {
	o.fill()
	if len(o.Lanes) == 0 || o.Buffers == nil {
		return fmt.Errorf("%w: Lanes and Buffers are needed", ErrOptions)
	}
	for _, c := range []struct {
		name       string
		value      int
		low, upper int
	}{
		{"MaxConnections", o.MaxConnections, 1, 65534},
		{"MaxPending", o.MaxPending, 1, 65534},
		{"QueueDepth", o.QueueDepth, 1, 4096},
		{"ConnectionBytes", o.ConnectionBytes, scsi.MaxData, 1 << 34},
		{"LendMin", o.LendMin, 1, pdu.MaxDataLen},
		{"LendBytes", o.LendBytes, 1, 1 << 34},
		{"ReceiveBuffer", o.ReceiveBuffer, minReceiveBuffer, 1 << 24},
		{"MaxRecvData", o.MaxRecvData, 512, pdu.MaxDataLen},
		{"MaxBurst", o.MaxBurst, 512, pdu.MaxDataLen},
		{"FirstBurst", o.FirstBurst, 512, o.MaxBurst},
		{"MaxR2T", o.MaxR2T, 1, MaxR2TLimit},
	} {
		if c.value < c.low || c.value > c.upper {
			return fmt.Errorf("%w: %s is %d, not within %d to %d", ErrOptions, c.name, c.value, c.low, c.upper)
		}
	}
	return o.DiscoveryCHAP.check()
}
