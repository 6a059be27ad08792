package load

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"lunar/appliance/e2e/lab"
)

// ChainRegion is how many bytes of each image a chain uses, the first chain from the image's begin on.
const ChainRegion = chainSlots * Block * 4

const (
	chainSlots    = 64               // of a chain in each image: older records are overwritten
	chainPatience = 30 * time.Second // of one command
)

// Chains are writers of numbered records: each record is durable (FUA) before the next one of its chain begins, in the next
// image. So a copy of all images as they were at one instant has no record whose predecessor is missing.
type Chains struct {
	all     []*chain
	end     chan struct{}
	running sync.WaitGroup
	finish  func() error
}

// chain is one writer.
type chain struct {
	id       int
	sessions []*Session   // one per image
	last     atomic.Int64 // record that was acknowledged
	slowest  time.Duration
	err      error
}

// StartChains has n chains write to images, LUN 0 of each target, through the nodes in turn. The caller calls Finish, also
// after an error of its own.
func StartChains(ctx context.Context, n int, targets []string, on ...*lab.ClusterNode) (*Chains, error) {
	c := &Chains{end: make(chan struct{})}
	c.finish = sync.OnceValue(c.stop)
	for id := range n {
		one := &chain{id: id}
		c.all = append(c.all, one)
		if err := one.login(ctx, targets, on[id%len(on)]); err != nil {
			return nil, errors.Join(err, c.Finish())
		}
	}
	for _, one := range c.all {
		c.running.Go(func() { one.err = one.run(c.end) })
	}
	return c, nil
}

func (c *chain) login(ctx context.Context, targets []string, n *lab.ClusterNode) error {
	for i, target := range targets {
		s, err := Login(ctx, n.Portal(), target, fmt.Sprintf("iqn.2026-01.lunar.test:chain-%d", c.id), uint32(c.id*1000+i+1), chainPatience)
		if err != nil {
			return err
		}
		c.sessions = append(c.sessions, s)
	}
	return nil
}

// Finish ends all, and tells what went wrong in them.
func (c *Chains) Finish() error { return c.finish() }

func (c *Chains) stop() error {
	close(c.end)
	c.running.Wait()
	var errs []error
	for _, one := range c.all {
		errs = append(errs, one.err)
		for _, s := range one.sessions {
			s.Close()
		}
	}
	return errors.Join(errs...)
}

// GoOn returns when each chain has so many records more; an error after a minute.
func (c *Chains) GoOn(more int64) error {
	var from []int64
	for _, one := range c.all {
		from = append(from, one.last.Load())
	}
	return lab.Poll(time.Minute, func() error {
		for i, one := range c.all {
			if got := one.last.Load() - from[i]; got < more {
				return fmt.Errorf("chain %d has written %d records of %d", i, got, more)
			}
		}
		return nil
	})
}

// String tells what was written, after Finish.
func (c *Chains) String() string {
	var out strings.Builder
	for _, one := range c.all {
		fmt.Fprintf(&out, "chain %d: %d records, the slowest took %v\n", one.id, one.last.Load(), one.slowest)
	}
	return out.String()
}

// Judge looks in copies of all images, of one instant, for chains without a record and for records whose predecessor is
// missing.
func (c *Chains) Judge(copies [][]byte) error {
	var errs []error
	for id := range c.all {
		errs = append(errs, judge(id, copies))
	}
	return errors.Join(errs...)
}

func judge(id int, copies [][]byte) error {
	images := int64(len(copies))
	at := func(n int64) int64 {
		return int64(binary.LittleEndian.Uint64(copies[n%images][place(id, n, images)+16:]))
	}
	all, last := images*chainSlots, int64(0)
	for n := range all {
		last = max(last, at(n))
	}
	if last == 0 {
		return fmt.Errorf("there is no record of chain %d", id)
	}
	for n := last; n > max(0, last-all); n-- {
		if got := at(n); got != n {
			return fmt.Errorf("chain %d: record %d is there, and its predecessor %d is not: %d", id, last, n, got)
		}
	}
	return nil
}

// place is where a record lies in its image.
func place(id int, n, images int64) int64 {
	return int64(id)*ChainRegion + n/images%chainSlots*Block*4
}

func (c *chain) run(end <-chan struct{}) error {
	images := int64(len(c.sessions))
	for n := int64(1); ; n++ {
		select {
		case <-end:
			return nil
		default:
		}
		p := make([]byte, Block)
		binary.LittleEndian.PutUint64(p[8:], uint64(c.id))
		binary.LittleEndian.PutUint64(p[16:], uint64(n))
		began := time.Now()
		if err := put(c.sessions[n%images], place(c.id, n, images), p); err != nil {
			return fmt.Errorf("chain %d, record %d: %w", c.id, n, err)
		}
		c.slowest = max(c.slowest, time.Since(began))
		c.last.Store(n)
	}
}

// put repeats what a unit attention has interrupted.
func put(s *Session, off int64, p []byte) error {
	const unitAttention = 6
	for try := 0; ; try++ {
		a, err := s.Do(Write(off, int64(len(p)), true), p, 0)
		if err != nil {
			return err
		}
		if err := a.Err(); err == nil || a.Key() != unitAttention || try > 8 {
			return err
		}
	}
}
