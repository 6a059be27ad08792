package load

import (
	"context"
	"fmt"
	"sync"

	"lunar/appliance/e2e/lab"
)

// Fleet is initiators at work through all of a cluster's nodes: per node some writers over what is allocated,
// and a churner over holes. The caller ends it with Finish or Abandon.
type Fleet struct {
	Record *Record

	target   string
	paths    []Path
	writers  []*Writer
	churners []*Churner
	disks    []*Disk
	stop     chan struct{}
	cancel   context.CancelFunc
	running  sync.WaitGroup
}

// The image: each writer's share of what was written beforehand, then each churner's share of holes.
const (
	perNode    = 3       // writers
	share      = 2 << 20 // bytes
	churnShare = 16 << 20
)

// Allocated is how many of the image's first bytes are to be written before Start.
func Allocated(nodes int) int64 { return int64(nodes) * perNode * share }

// StartFleet allocates what the writers of a fleet write over, and starts it on a cluster's LUN, which is served.
func StartFleet(ctx context.Context, c *lab.Cluster) (*Fleet, error) {
	fill := fmt.Sprintf("write -P 0 0 %d", Allocated(len(c.Nodes)))
	if _, err := lab.QemuIO(ctx, c.Nodes[0].URL(lab.ClusterTarget), fill); err != nil {
		return nil, err
	}
	var paths []Path
	for _, n := range c.Nodes {
		paths = append(paths, Path{Name: n.Name, Portal: n.Portal()})
	}
	f := NewFleet(lab.ClusterTarget, paths...)
	f.Start(ctx)
	return f, nil
}

// NewFleet is at rest; the paths are one per node.
func NewFleet(target string, paths ...Path) *Fleet {
	return &Fleet{Record: NewRecord(), target: target, paths: paths}
}

// Disk is an initiator whose home is the i-th path, and which can go to the others. Not while Finish runs.
func (f *Fleet) Disk(i int) *Disk {
	var paths []Path
	for k := range f.paths {
		paths = append(paths, f.paths[(i+k)%len(f.paths)])
	}
	d := NewDisk(f.Record, f.target, fmt.Sprintf("iqn.2026-01.lunar.test:writer-%d", i%len(f.paths)), paths...)
	f.disks = append(f.disks, d)
	return d
}

// Start begins the work.
func (f *Fleet) Start(ctx context.Context) {
	ctx, f.cancel = context.WithCancel(ctx)
	f.stop = make(chan struct{})
	f.running.Go(func() { f.Record.Pulse(f.stop) })
	nodes, id := len(f.paths), 0
	for i := range f.paths {
		for range perNode {
			w := NewWriter(f.Record, uint32(id+1), Direct, f.Disk(i), f.Disk(i+1), int64(id)*share, share/Block)
			f.writers = append(f.writers, w)
			id++
		}
		base := Allocated(nodes) + int64(i)*churnShare
		f.churners = append(f.churners, NewChurner(f.Record, uint32(1000+i), f.Disk(i), f.Disk(i+1), base, churnShare/chunk))
	}
	for _, w := range f.writers {
		f.running.Go(func() { w.Run(ctx, f.stop) })
	}
	for _, c := range f.churners {
		f.running.Go(func() { c.Run(ctx, f.stop) })
	}
}

// Go runs something beside the writers until they stop; its error is noted as one of theirs.
func (f *Fleet) Go(ctx context.Context, do func(ctx context.Context, stop <-chan struct{}) error) {
	f.running.Go(func() {
		if err := do(ctx, f.stop); err != nil && ctx.Err() == nil {
			f.Record.Fail(err)
		}
	})
}

// GoHome has every initiator use its first path again.
func (f *Fleet) GoHome() {
	for _, d := range f.disks {
		d.GoHome()
	}
}

// Abandon ends the work at once; a second end does nothing.
func (f *Fleet) Abandon() {
	if f.stop == nil {
		return
	}
	f.cancel()
	f.end()
}

func (f *Fleet) end() {
	close(f.stop)
	f.running.Wait()
	f.cancel()
	f.stop = nil
	for _, d := range f.disks {
		d.Close()
	}
}

// Finish ends the work in order, and reads through every node all that was acknowledged. What was wrong then
// or before is in the record.
func (f *Fleet) Finish(ctx context.Context) {
	f.end()
	for i := range f.paths {
		for _, w := range f.writers {
			d := f.Disk(i)
			f.running.Go(func() {
				defer d.Close()
				if err := w.Verify(ctx, d); err != nil {
					f.Record.Fail(err)
				}
			})
		}
		f.running.Wait()
	}
}

// Acknowledged counts the writers' writes.
func (f *Fleet) Acknowledged() int {
	n := 0
	for _, w := range f.writers {
		n += w.Acknowledged
	}
	return n
}

// String sums it up; after Finish.
func (f *Fleet) String() string {
	return fmt.Sprintf("%d writes acknowledged, each read through every node; %d redirected and %d metadata operations; %d commands went on by another path; %d errors",
		f.Acknowledged(), f.Record.Count(Redirected), f.Record.Count(Metadata), f.Record.Count(Moved), len(f.Record.Errors()))
}
