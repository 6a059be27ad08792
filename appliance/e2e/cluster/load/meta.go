package load

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"lunar/appliance/api"
)

// Order is a node that takes orders about images.
type Order struct {
	Name   string
	Client *api.Client
	// Strikes counts the begins and the ends of times in which the node may fail to do what it is told.
	Strikes *atomic.Int64
}

// Clerk gives orders about images of its own, to all nodes, and knows what has to be there.
type Clerk struct {
	Done, Unknown int

	record *Record
	volume string
	nodes  []Order
	random *rand.Rand
	sizes  map[string]int64 // of what is there for certain
	gone   map[string]bool  // what is not there for certain
	next   int
}

// The bounds of a clerk.
const (
	maxImages  = 20
	unit       = 1 << 20
	orderLimit = 15 * time.Second
	orderPause = 10 * time.Millisecond
)

// NewClerk owns the images VOLUME/clerk/….
func NewClerk(r *Record, volume string, seed uint64, nodes ...Order) *Clerk {
	return &Clerk{record: r, volume: volume, nodes: nodes, random: rand.New(rand.NewPCG(seed, 2)), sizes: map[string]int64{}, gone: map[string]bool{}}
}

// Run gives orders until stop is closed. A refusal by a node that is well is an error.
func (c *Clerk) Run(ctx context.Context, stop <-chan struct{}) error {
	for {
		select {
		case <-stop:
			return nil
		case <-time.After(orderPause):
		}
		if err := c.step(ctx); err != nil {
			return err
		}
	}
}

func (c *Clerk) step(ctx context.Context) error {
	name, ok := c.any()
	n := c.random.IntN(10)
	switch {
	case !ok || len(c.sizes) < maxImages && n < 4:
		return c.create(ctx)
	case n < 6 && len(c.sizes) < maxImages:
		return c.clone(ctx, name)
	case n < 8:
		return c.resize(ctx, name)
	}
	return c.remove(ctx, name)
}

// any is one of the images that are there.
func (c *Clerk) any() (string, bool) {
	for name := range c.sizes {
		return name, true
	}
	return "", false
}

func (c *Clerk) fresh() string {
	c.next++
	return fmt.Sprintf("%s/clerk/%d", c.volume, c.next)
}

func (c *Clerk) create(ctx context.Context) error {
	name, size := c.fresh(), unit*int64(1+c.random.IntN(8))
	done, err := c.order(ctx, "create "+name, func(ctx context.Context, o *api.Client) error {
		_, err := o.CreateImage(ctx, api.CreateImage{Image: name, Size: size})
		return err
	})
	if done {
		c.sizes[name] = size
	}
	return err
}

func (c *Clerk) clone(ctx context.Context, from string) error {
	name := c.fresh()
	done, err := c.order(ctx, "clone "+name, func(ctx context.Context, o *api.Client) error {
		_, err := o.CreateImage(ctx, api.CreateImage{Image: name, From: from})
		return err
	})
	if done {
		c.sizes[name] = c.sizes[from]
	}
	return err
}

func (c *Clerk) resize(ctx context.Context, name string) error {
	size := unit * int64(1+c.random.IntN(16))
	done, err := c.order(ctx, "resize "+name, func(ctx context.Context, o *api.Client) error {
		_, err := o.ChangeImage(ctx, name, api.ChangeImage{Size: size, Force: true})
		return err
	})
	delete(c.sizes, name)
	if done {
		c.sizes[name] = size
	}
	return err
}

func (c *Clerk) remove(ctx context.Context, name string) error {
	done, err := c.order(ctx, "delete "+name, func(ctx context.Context, o *api.Client) error { return o.DeleteImage(ctx, name, true) })
	delete(c.sizes, name)
	if done {
		c.gone[name] = true
	}
	return err
}

// order has one node do something; not done and no error means that it may have been done.
func (c *Clerk) order(ctx context.Context, what string, do func(context.Context, *api.Client) error) (done bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, orderLimit)
	defer cancel()
	o := c.nodes[c.random.IntN(len(c.nodes))]
	strikes := o.Strikes.Load()
	begun := c.record.Begin(Metadata, o.Name)
	err = do(ctx, o.Client)
	if err == nil {
		c.record.End(begun, Metadata, o.Name)
		c.Done++
		return true, nil
	}
	c.record.Drop(begun)
	c.Unknown++
	if strikes%2 != 0 || o.Strikes.Load() != strikes || errors.Is(ctx.Err(), context.Canceled) {
		return false, nil
	}
	return false, fmt.Errorf("node %s: %s: after %v: %w", o.Name, what, time.Since(begun.Start).Round(time.Millisecond), err)
}

// Verify compares what a node lists with what was acknowledged.
func (c *Clerk) Verify(ctx context.Context, o *api.Client) error {
	all, err := o.Images(ctx, c.volume)
	if err != nil {
		return err
	}
	there := map[string]int64{}
	for i := range all {
		there[all[i].Name()] = all[i].Size
	}
	var errs []error
	for name, size := range c.sizes {
		if got, ok := there[name]; !ok || got != size {
			errs = append(errs, fmt.Errorf("LOST: image %s of %d bytes: there %v, %d bytes", name, size, ok, got))
		}
	}
	for name := range c.gone {
		if _, ok := there[name]; ok {
			errs = append(errs, fmt.Errorf("image %s was deleted and is there", name))
		}
	}
	return errors.Join(errs...)
}
