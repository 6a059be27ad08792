package nbd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"lunar/datapath/layout"
	"lunar/datapath/layout/protocol"
)

// DataPathOptions sets a DataPath up. Zero is the default where one is named.
type DataPathOptions struct {
	Address     string // of the coordinator's Server, HOST:PORT
	TLS         *tls.Config
	Volume      string
	Node        protocol.NodeID // this node
	Incarnation uint64          // of this process
	Connections int             // per image; default 2
	Window      int             // per connection; default 64
	Idle        time.Duration   // without a call, an image's connections are closed; default 1 min
	DialTimeout time.Duration   // default 5 s
	CallTimeout time.Duration   // default 60 s
	Log         *slog.Logger
}

// Validate tells what is wrong with o.
func (o DataPathOptions) Validate() error {
	if o.Volume == "" || o.Node == "" || o.Idle < 0 {
		return fmt.Errorf("nbd: DataPathOptions need a Volume, a Node and an Idle that is not negative: %w", unix.EINVAL)
	}
	return ClientOptions{Address: o.Address, Export: Plain(""), Connections: o.Connections, Window: o.Window,
		DialTimeout: o.DialTimeout, CallTimeout: o.CallTimeout}.Validate()
}

// DataPath takes a volume's redirected I/O to one coordinator: a Client per image and epoch, opened by
// the first call. Its methods block and are safe from any goroutine; errors are those of Client. There
// is one DataPath at a time per volume and process: a second one's connections supersede the first's.
type DataPath struct {
	opts DataPathOptions
	set  atomic.Uint64 // number of the last set of connections

	mu     sync.Mutex // guards what follows
	paths  map[path]*imagePath
	open   map[*imagePath]struct{} // not closed yet: those of paths, and detached ones in use
	closed bool
	wg     sync.WaitGroup // clients that are being closed
}

// path is what a Client is for; a Call's Retry does not matter.
type path struct {
	image protocol.ImageID
	epoch uint64
}

// imagePath is a Client while it is in use, and for a time after that.
type imagePath struct {
	client *Client
	users  int
	timer  *time.Timer // closes it; stopped while there are users
	gone   bool        // detached: closed by its last user
}

// NewDataPath makes a data path; nothing is connected yet.
func NewDataPath(o DataPathOptions) (*DataPath, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	set(&o.Idle, time.Minute)
	return &DataPath{opts: o, paths: map[path]*imagePath{}, open: map[*imagePath]struct{}{}}, nil
}

// Read fills p from off.
func (d *DataPath) Read(ctx context.Context, call protocol.Call, p []byte, off int64) error {
	return d.with(call, func(c *Client) error { return c.Read(ctx, p, off) })
}

// Write stores p at off; with fua it is durable on return.
func (d *DataPath) Write(ctx context.Context, call protocol.Call, p []byte, off int64, fua bool) error {
	return d.with(call, func(c *Client) error { return c.Write(ctx, p, off, fua) })
}

// Flush makes durable what was written and changed before.
func (d *DataPath) Flush(ctx context.Context, call protocol.Call) error {
	return d.with(call, func(c *Client) error { return c.Flush(ctx) })
}

// Unmap gives ranges back; afterwards they read as zeroes.
func (d *DataPath) Unmap(ctx context.Context, call protocol.Call, ranges []layout.Range) error {
	return d.with(call, func(c *Client) error {
		for _, r := range ranges {
			if err := c.Unmap(ctx, r.Off, r.Len); err != nil {
				return err
			}
		}
		return nil
	})
}

func (d *DataPath) with(call protocol.Call, do func(*Client) error) error {
	ip, err := d.enter(path{call.Image, call.Epoch})
	if err != nil {
		return err
	}
	defer d.leave(path{call.Image, call.Epoch}, ip)
	return do(ip.client)
}

func (d *DataPath) enter(at path) (*imagePath, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil, ErrClosed
	}
	ip := d.paths[at]
	if ip == nil {
		client, err := NewClient(d.clientOptions(at))
		if err != nil {
			return nil, err
		}
		ip = &imagePath{client: client}
		d.paths[at] = ip
		d.open[ip] = struct{}{}
	}
	if ip.timer != nil {
		ip.timer.Stop()
	}
	ip.users++
	return ip, nil
}

func (d *DataPath) clientOptions(at path) ClientOptions {
	o := d.opts
	return ClientOptions{
		Address: o.Address, TLS: o.TLS, Connections: o.Connections, Window: o.Window, DialTimeout: o.DialTimeout, CallTimeout: o.CallTimeout, Log: o.Log,
		Export: func() string {
			return Name{Volume: o.Volume, Image: at.image, Node: o.Node, Epoch: at.epoch, Incarnation: o.Incarnation, Set: d.nextSet()}.String()
		},
	}
}

// nextSet numbers a set of connections: greater than every earlier number of this process, also those
// of an earlier DataPath, because it follows the machine's clock since boot.
func (d *DataPath) nextSet() uint64 {
	var now unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &now) // never fails
	for {
		last := d.set.Load()
		if next := max(last+1, uint64(now.Nano())); d.set.CompareAndSwap(last, next) {
			return next
		}
	}
}

func (d *DataPath) leave(at path, ip *imagePath) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if ip.users--; ip.users > 0 {
		return
	}
	switch {
	case ip.gone:
		d.close(ip)
	case ip.timer == nil:
		ip.timer = time.AfterFunc(d.opts.Idle, func() { d.expire(at, ip) })
	default:
		ip.timer.Reset(d.opts.Idle)
	}
}

func (d *DataPath) expire(at path, ip *imagePath) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if ip.users == 0 && !ip.gone {
		d.forget(at, ip)
	}
}

// forget takes a client out of use; its last user closes it. mu is locked.
func (d *DataPath) forget(at path, ip *imagePath) {
	delete(d.paths, at)
	ip.gone = true
	if ip.timer != nil {
		ip.timer.Stop()
	}
	if ip.users == 0 {
		d.close(ip)
	}
}

// close closes a client that nobody uses, in its own goroutine. mu is locked.
func (d *DataPath) close(ip *imagePath) {
	if d.closed {
		return // Close does
	}
	delete(d.open, ip)
	d.wg.Go(func() { _ = ip.client.Close() })
}

// Detach closes an image's connections, when the calls under way have ended.
func (d *DataPath) Detach(call protocol.Call) {
	d.mu.Lock()
	defer d.mu.Unlock()
	at := path{call.Image, call.Epoch}
	if ip := d.paths[at]; ip != nil {
		d.forget(at, ip)
	}
}

// Close ends every call with an error, closes all connections, and waits until nothing is left.
func (d *DataPath) Close() error {
	d.mu.Lock()
	d.closed = true
	var all []*Client
	for ip := range d.open {
		all = append(all, ip.client)
	}
	for at, ip := range d.paths {
		d.forget(at, ip)
	}
	d.mu.Unlock()
	var errs []error
	for _, c := range all {
		errs = append(errs, c.Close())
	}
	d.wg.Wait()
	return errors.Join(errs...)
}
