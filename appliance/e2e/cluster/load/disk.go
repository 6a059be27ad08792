package load

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"lunar/iscsi/scsi"
)

// Path is a way to the LUN: a node's portal.
type Path struct {
	Name   string // of the node
	Portal string // host:port
}

// The bounds of an initiator's patience.
const (
	commandLimit = 8 * time.Second        // of one command on one path; then the path is taken for lost
	giveUp       = 60 * time.Second       // without any path
	loginPause   = 100 * time.Millisecond // between two tries
)

// Disk is an initiator's LUN with several paths, home first; one goroutine uses it. It stays with a path
// until that is lost.
type Disk struct {
	target, name string
	isid         uint32
	paths        []Path
	at           int
	session      *Session
	record       *Record
	retries      int // commands that were asked to come again
	wanted       atomic.Bool
}

// isids gives each session of this process another nexus.
var isids atomic.Uint32

// NewDisk is not connected yet.
func NewDisk(r *Record, target, name string, paths ...Path) *Disk {
	return &Disk{target: target, name: name, isid: isids.Add(1), paths: paths, record: r}
}

// Close ends the session.
func (d *Disk) Close() {
	if d.session != nil {
		d.session.Close()
		d.session = nil
	}
}

// At is the node whose path is used now.
func (d *Disk) At() string { return d.paths[d.at].Name }

// GoHome has the next command take the home path again. Any goroutine may call it.
func (d *Disk) GoHome() { d.wanted.Store(true) }

// Do runs a command until a target has answered with GOOD, by any path. An error is an I/O error, or the end
// of ctx.
func (d *Disk) Do(ctx context.Context, kind Kind, cdb, out []byte, want int) ([]byte, error) {
	if d.wanted.Swap(false) && d.at != 0 {
		d.Close()
		d.at = 0
	}
	o := d.record.Begin(kind, d.At())
	data, lost, err := d.do(ctx, o.Start, cdb, out, want)
	switch {
	case err != nil:
		d.record.Drop(o)
	case lost:
		d.record.End(o, Moved, d.At())
	default:
		d.record.End(o, kind, d.At())
	}
	return data, err
}

// do tells too whether a path was lost on the way.
func (d *Disk) do(ctx context.Context, start time.Time, cdb, out []byte, want int) (data []byte, lost bool, err error) {
	for {
		if err := d.connect(ctx); err != nil {
			return nil, lost, err
		}
		a, err := d.session.Do(cdb, out, want)
		switch {
		case errors.Is(err, ErrPath):
			lost = true
			d.next()
			if ctx.Err() != nil {
				return nil, lost, ctx.Err()
			}
		case err != nil:
			return nil, lost, err
		case a.Status == scsi.Good:
			return a.Data, lost, nil
		case again(&a):
			d.retries++
			time.Sleep(time.Millisecond)
		default:
			return nil, lost, fmt.Errorf("I/O error through %s, command %02x, after %v: %w", d.At(), cdb[0], time.Since(start).Round(time.Millisecond), a.Err())
		}
		if time.Since(start) > giveUp {
			return nil, lost, fmt.Errorf("command %02x has not ended within %v", cdb[0], giveUp)
		}
	}
}

// again tells the answers after which an initiator sends the command anew.
func again(a *Answer) bool {
	return a.Status == scsi.Busy || a.Status == scsi.TaskSetFull || a.Status == scsi.CheckCondition && a.Key() == keyUnitAttention
}

// next leaves a path that was lost.
func (d *Disk) next() {
	d.Close()
	d.at = (d.at + 1) % len(d.paths)
}

func (d *Disk) connect(ctx context.Context) error {
	for start := time.Now(); d.session == nil; {
		s, err := Login(ctx, d.paths[d.at].Portal, d.target, d.name, d.isid, commandLimit)
		if err == nil {
			d.session = s
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if time.Since(start) > giveUp {
			return fmt.Errorf("no path within %v: %w", giveUp, err)
		}
		d.next()
		time.Sleep(loginPause / time.Duration(len(d.paths)))
	}
	return nil
}
