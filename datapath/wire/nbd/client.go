package nbd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"lunar/datapath/layout/protocol"
)

// ClientOptions sets a Client up. Zero is the default.
type ClientOptions struct {
	Address string      // HOST:PORT, or unix:PATH
	TLS     *tls.Config // nil: in the clear
	// Export names the export for the next set of connections; called once per set. Plain for one
	// that has always the same.
	Export      func() string
	Connections int           // of a set, where the server allows several; default 2
	Window      int           // requests under way on a connection; default 64, at most 65535
	DialTimeout time.Duration // for a set to be opened; default 5 s
	CallTimeout time.Duration // an unanswered request this old breaks the set; default 60 s
	Log         *slog.Logger  // default slog.Default()
}

// Plain is an export whose name does not change.
func Plain(name string) func() string { return func() string { return name } }

// Validate tells what is wrong with o.
func (o ClientOptions) Validate() error {
	switch {
	case o.Address == "":
		return fmt.Errorf("nbd: ClientOptions.Address is empty: give HOST:PORT: %w", unix.EINVAL)
	case o.Export == nil:
		return fmt.Errorf("nbd: ClientOptions.Export is missing: %w", unix.EINVAL)
	case o.Connections < 0 || o.Window < 0 || o.Window > 65535 || o.DialTimeout < 0 || o.CallTimeout < 0:
		return fmt.Errorf("nbd: a value out of range in ClientOptions: %w", unix.EINVAL)
	}
	return nil
}

func (o ClientOptions) withDefaults() ClientOptions {
	set(&o.Connections, 2)
	set(&o.Window, 64)
	set(&o.DialTimeout, 5*time.Second)
	set(&o.CallTimeout, time.Minute)
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.TLS != nil {
		o.TLS = forThroughput(o.TLS)
	}
	return o
}

func (o ClientOptions) network() (network, address string) {
	if strings.HasPrefix(o.Address, "unix:") {
		return "unix", strings.TrimPrefix(o.Address, "unix:")
	}
	return "tcp", o.Address
}

// ErrClosed is what calls get after Close.
var ErrClosed = errors.New("nbd: the client is closed")

// Client reaches one export. It connects when it is called, and again after a connection was lost.
// Its methods block and are safe from any goroutine. An error wraps protocol.ErrUnreachable when the
// connection was lost before the answer came (the call may have taken effect), protocol.ErrStale when
// the server says that it is over, else the errno that the server answered.
type Client struct {
	opts ClientOptions
	wg   sync.WaitGroup // dialling, and sets

	mu      sync.Mutex // guards what follows
	set     *connSet   // may be broken; nil before the first
	dialing chan struct{}
	failed  error // of the last dial
	pause   time.Duration
	next    time.Time // no dial before
	closed  bool
	cancel  context.CancelFunc // of the dial under way
}

// maxDials is how often one call tries to get a connection that lasts until it is used.
const maxDials = 3

// Back-off after dials that failed.
const (
	leastPause = 10 * time.Millisecond
	mostPause  = 250 * time.Millisecond
)

// NewClient makes a client; nothing is connected yet.
func NewClient(o ClientOptions) (*Client, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	return &Client{opts: o.withDefaults()}, nil
}

// Connect makes sure that there is a connection, and tells what the server said of the export.
func (c *Client) Connect(ctx context.Context) (size int64, flags Flags, err error) {
	s, err := c.acquire(ctx)
	if err != nil {
		return 0, 0, err
	}
	return s.size, s.flags, nil
}

// acquire returns a set that works, opening one where there is none. All who wait share one dial.
func (c *Client) acquire(ctx context.Context) (*connSet, error) {
	for range maxDials {
		s, dialing, err := c.present() //nolint:contextcheck // the dial is for all who wait, not for this call
		if s != nil || err != nil {
			return s, err
		}
		select {
		case <-dialing:
		case <-ctx.Done():
			return nil, fmt.Errorf("nbd: connect to %s: %w: %w", c.opts.Address, protocol.ErrUnreachable, ctx.Err())
		}
		if err := c.dialError(); err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("nbd: %s accepts connections and drops them: %w", c.opts.Address, protocol.ErrUnreachable)
}

// present is the set that works, or what to wait for.
func (c *Client) present() (s *connSet, dialing chan struct{}, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.closed:
		return nil, nil, ErrClosed
	case c.set != nil && c.set.broken.Load() == nil:
		return c.set, nil, nil
	case c.dialing == nil:
		c.startDial()
	}
	return nil, c.dialing, nil
}

func (c *Client) dialError() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.failed
}

// startDial begins a dial after the back-off; mu is locked.
func (c *Client) startDial() {
	done := make(chan struct{})
	ctx, cancel := context.WithCancel(context.Background())
	c.dialing, c.cancel = done, cancel
	old, wait := c.set, time.Until(c.next)
	c.wg.Add(1)
	go func() {
		defer c.wg.Done()
		defer cancel()
		s, err := c.dial(ctx, old, wait)
		c.mu.Lock()
		defer c.mu.Unlock()
		c.dialed(s, err)
		close(done)
	}()
}

// dial opens a set, when nothing uses the earlier one any more.
func (c *Client) dial(ctx context.Context, old *connSet, wait time.Duration) (*connSet, error) {
	if old != nil {
		old.wg.Wait()
	}
	if wait > 0 {
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil, ErrClosed
		}
	}
	ctx, cancel := context.WithTimeout(ctx, c.opts.DialTimeout)
	defer cancel()
	return openSet(ctx, c.opts)
}

// dialed keeps what a dial led to; mu is locked.
func (c *Client) dialed(s *connSet, err error) {
	c.dialing, c.failed, c.set = nil, err, s
	if err == nil && c.closed {
		s.fail(ErrClosed)
	}
	if err != nil {
		c.pause = min(max(2*c.pause, leastPause), mostPause)
		c.next = time.Now().Add(c.pause)
		return
	}
	c.pause, c.next = 0, time.Now().Add(leastPause)
}

// Close ends the calls under way with an error, and waits until nothing of the client is left.
func (c *Client) Close() error {
	c.mu.Lock()
	c.closed = true
	s, cancel := c.set, c.cancel
	c.mu.Unlock()
	if cancel != nil {
		cancel()
	}
	if s != nil {
		s.disconnect()
	}
	c.wg.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.set != nil {
		c.set.wg.Wait()
	}
	return nil
}

// Read fills p from off.
func (c *Client) Read(ctx context.Context, p []byte, off int64) error {
	return c.pieces(ctx, cmdRead, 0, p, off)
}

// Write stores p at off; with fua it is durable on return.
func (c *Client) Write(ctx context.Context, p []byte, off int64, fua bool) error {
	var flags uint16
	if fua {
		flags = cmdFUA
	}
	return c.pieces(ctx, cmdWrite, flags, p, off)
}

// pieces splits what is more than a request may move.
func (c *Client) pieces(ctx context.Context, command, flags uint16, p []byte, off int64) error {
	for len(p) > MaxPayload {
		if err := c.do(ctx, command, flags, p[:MaxPayload], off, MaxPayload); err != nil {
			return err
		}
		p, off = p[MaxPayload:], off+MaxPayload
	}
	return c.do(ctx, command, flags, p, off, len(p))
}

// Flush makes durable what was written before.
func (c *Client) Flush(ctx context.Context) error { return c.do(ctx, cmdFlush, 0, nil, 0, 0) }

// maxRange is the most that a request without payload is about; a multiple of every block size.
const maxRange = 1 << 30

// Unmap gives a range back; afterwards it reads as zeroes.
func (c *Client) Unmap(ctx context.Context, off, n int64) error {
	for n > 0 {
		k := min(n, maxRange)
		if err := c.do(ctx, cmdWriteZeroes, 0, nil, off, int(k)); err != nil {
			return err
		}
		off, n = off+k, n-k
	}
	return nil
}

// do makes one call.
func (c *Client) do(ctx context.Context, command, flags uint16, p []byte, off int64, n int) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if off < 0 || n < 0 {
		return fmt.Errorf("nbd: %d bytes at %d: %w", n, off, unix.EINVAL)
	}
	s, err := c.acquire(ctx)
	if err != nil {
		return err
	}
	return s.pick().do(ctx, request{flags: flags, command: command, off: uint64(off), length: uint32(n)}, p)
}
