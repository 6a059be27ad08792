package wire

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"lunar/datapath/layout/protocol"
	"lunar/datapath/wire/wirepb"
)

// Client stands for a volume's coordinator on another node, for one term. It satisfies
// volume.Coordinator; its methods are safe from any goroutine. It connects, and connects again, until
// Close. ErrUnreachable means that there is no connection, or that it was lost or too slow: the call may
// have taken effect, unless it is ErrUnsent. ErrStale means that the other node does not coordinate this term.
type Client struct {
	opts  ClientOptions
	table table
	creds *tls.Config
	ctx   context.Context // ends with Close
	close context.CancelFunc
	group sync.WaitGroup

	running atomic.Int64 // recalls that holders execute

	mu       sync.Mutex // guards what follows
	link     *link      // that calls go over, or nil
	changed  chan struct{}
	refused  error // what the server last said to a Hello, or nil
	session  uint64
	received uint64
	attached map[uint32]*attachment
	last     uint32 // number given to an attachment
	answers  []*wirepb.Returned
	lost     bool // the coordinator has forgotten what was attached
}

// Dial makes a Client; it connects by itself.
func Dial(o ClientOptions) (*Client, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	o.Limits, o.Timing = o.Limits.withDefaults(), o.Timing.withDefaults()
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Dial == nil {
		o.Dial = DialTCP(o.Timing.Silence)
	}
	c := &Client{opts: o, table: newTable(o.Sentinels), creds: o.TLS.Clone(), changed: make(chan struct{}), attached: map[uint32]*attachment{}}
	c.creds.MinVersion = max(c.creds.MinVersion, tls.VersionTLS13)
	c.ctx, c.close = context.WithCancel(context.Background())
	c.group.Go(c.run)
	return c, nil
}

// Close ends the connection and every call under way, and waits for the recalls that holders execute.
// What was attached stays so at the coordinator until it is expelled, or another Client of this node and
// incarnation connects.
func (c *Client) Close() error {
	c.mu.Lock()
	c.close()
	c.mu.Unlock()
	c.group.Wait()
	return nil
}

// Bounds of the time between tries to connect.
const (
	firstRetry = 20 * time.Millisecond
	lastRetry  = 500 * time.Millisecond
)

// run keeps a link up.
func (c *Client) run() {
	wait := firstRetry
	for c.ctx.Err() == nil {
		l := newLink(c)
		err := l.run()
		if l.turn != 0 {
			wait = firstRetry
			c.opts.Log.Info("connection to coordinator lost", "volume", c.opts.Volume, "epoch", c.opts.Epoch, "address", c.opts.Address, "err", err)
		}
		c.without(l, err)
		pause := time.NewTimer(wait/2 + rand.N(wait/2))
		select {
		case <-pause.C:
		case <-c.ctx.Done():
			pause.Stop()
		}
		wait = min(2*wait, lastRetry)
	}
}

// hello describes what this node has.
func (c *Client) hello() *wirepb.FromNode {
	c.mu.Lock()
	defer c.mu.Unlock()
	return &wirepb.FromNode{Received: c.received, Body: &wirepb.FromNode_Hello{Hello: &wirepb.Hello{
		Volume: c.opts.Volume, Epoch: c.opts.Epoch, Node: string(c.opts.Node), Incarnation: c.opts.Incarnation,
		Holders: slices.Sorted(maps.Keys(c.attached)), Session: c.session,
	}}}
}

// welcomed lets calls use l.
func (c *Client) welcomed(l *link, session uint64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if session != c.session {
		for _, a := range c.attached {
			a.mu.Lock()
			c.lost = c.lost || a.granted
			a.mu.Unlock()
		}
		c.session, c.received = session, 0
	}
	if c.lost {
		c.refused = fmt.Errorf("the coordinator has forgotten what this node holds: %w", protocol.ErrStale)
		return c.refused
	}
	c.link, c.refused = l, nil
	c.announce()
	return nil
}

// without takes a link down that ended with err.
func (c *Client) without(l *link, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.link == l {
		c.link = nil
	}
	if f, ok := failure(err); ok {
		if err := c.table.decode(f); !errors.Is(err, protocol.ErrUnreachable) {
			c.refused = err
		}
	}
	c.announce()
}

// announce wakes who waits for a link; mu is locked.
func (c *Client) announce() {
	close(c.changed)
	c.changed = make(chan struct{})
}

// current is the link that calls go over; it waits for one, not long.
func (c *Client) current(ctx context.Context, operation string) (*link, error) {
	limit := time.NewTimer(c.opts.Timing.Wait)
	defer limit.Stop()
	for {
		c.mu.Lock()
		l, refused, changed := c.link, c.refused, c.changed
		c.mu.Unlock()
		switch {
		case c.ctx.Err() != nil:
			return nil, fmt.Errorf("%s: %w: the client is closed", operation, protocol.ErrUnsent)
		case l != nil && l.ctx.Err() == nil:
			return l, nil
		case refused != nil:
			return nil, fmt.Errorf("%s: %w", operation, refused)
		}
		select {
		case <-changed:
		case <-c.ctx.Done():
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", protocol.ErrUnsent, unreachable(ctx, operation, ctx.Err()))
		case <-limit.C:
			return nil, fmt.Errorf("%s: %w: no connection to %s in %v", operation, protocol.ErrUnsent, c.opts.Address, c.opts.Timing.Wait)
		}
	}
}

// do runs a call on the present link; it ends with the link.
func (c *Client) do(ctx context.Context, operation string, call func(ctx context.Context, api wirepb.LayoutsClient) error) error {
	l, err := c.current(ctx, operation)
	if err != nil {
		return err
	}
	in, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(l.ctx, cancel)() //nolint:contextcheck // the call ends with its link too
	return c.table.fromCall(ctx, operation, call(l.in(in), l.api))
}

// take handles a message of the session, in order.
func (c *Client) take(l *link, m *wirepb.ToNode) error {
	switch body := m.GetBody().(type) {
	case *wirepb.ToNode_Welcome:
		l.turn = body.Welcome.GetTurn()
		return c.welcomed(l, body.Welcome.GetSession())
	case *wirepb.ToNode_Recall:
		if err := c.recall(body.Recall); err != nil {
			return err
		}
		c.progress(l, m)
	case *wirepb.ToNode_Grant:
		done, err := l.parts.add(m.GetNumber(), body.Grant)
		if err != nil || !done {
			return err
		}
		if a := c.attachment(l.parts.holder); a != nil && c.news(m.GetNumber()) {
			a.grant(l.parts.g)
		}
		l.parts.g.Extents = nil
		c.progress(l, m)
	}
	return nil
}

func (c *Client) attachment(number uint32) *attachment {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.attached[number]
}

// news tells whether a message was not taken before.
func (c *Client) news(number uint64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return number > c.received
}

// acknowledgeAfter is how many bytes are acknowledged before the next ping does it.
const acknowledgeAfter = 256 << 10

// progress notes that a message was taken.
func (c *Client) progress(l *link, m *wirepb.ToNode) {
	c.mu.Lock()
	c.received = max(c.received, m.GetNumber())
	c.mu.Unlock()
	if l.taken += proto.Size(m); l.taken >= acknowledgeAfter {
		l.taken = 0
		l.wake()
	}
}

// recall begins one; the answer goes over whatever link there is then.
func (c *Client) recall(m *wirepb.Recall) error {
	r, patience, err := recallIn(m)
	if err != nil {
		return err
	}
	answer := func(err error) { c.answer(m.GetHolder(), r.Number, err) }
	a := c.attachment(m.GetHolder())
	if a == nil { // nothing is held
		answer(nil)
		return nil
	}
	if int(c.running.Load()) >= c.opts.Limits.Recalls {
		return fmt.Errorf("%d recalls at once: %w", c.opts.Limits.Recalls, unix.E2BIG)
	}
	a.recall(c.ctx, r, patience, func(execute func()) {
		c.running.Add(1)
		c.group.Go(func() {
			defer c.running.Add(-1)
			execute()
		})
	}, answer)
	return nil
}

// answer queues the answer to a recall: one at most for each that is open.
func (c *Client) answer(holder uint32, number uint64, err error) {
	m := &wirepb.Returned{Holder: holder, Number: number}
	if err != nil {
		m.Failure = c.table.encode(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.answers = slices.DeleteFunc(c.answers, func(o *wirepb.Returned) bool { return o.Holder == holder && o.Number == number })
	c.answers = append(c.answers, m)
	if c.link != nil {
		c.link.wake()
	}
}

// toSay takes the answers that wait.
func (c *Client) toSay() (answers []*wirepb.Returned, received uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	answers, c.answers = c.answers, nil
	return answers, c.received
}

// options are those of every connection.
func (c *Client) dialOptions() []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithDisableRetry(), grpc.WithDisableServiceConfig(), grpc.WithIdleTimeout(0),
		grpc.WithContextDialer(c.opts.Dial),
		grpc.WithInitialWindowSize(streamWindow), grpc.WithInitialConnWindowSize(connectionWindow),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(c.opts.Limits.Message), grpc.MaxCallSendMsgSize(c.opts.Limits.Message)),
	}
}
