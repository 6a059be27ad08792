package wire

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"

	"lunar/datapath/layout/protocol"
	"lunar/datapath/wire/wirepb"
)

// link is one connection of a Client, with one stream of its session.
type link struct {
	c     *Client
	api   wirepb.LayoutsClient
	ctx   context.Context // ends with the link
	abort context.CancelCauseFunc
	alert chan struct{} // of one: there is something to say

	// The receiver's:
	turn  uint64
	parts assembler
	taken int // bytes since the last acknowledgement
}

func newLink(c *Client) *link {
	l := &link{c: c, alert: make(chan struct{}, 1)}
	l.ctx, l.abort = context.WithCancelCause(c.ctx)
	return l
}

func (l *link) wake() {
	select {
	case l.alert <- struct{}{}:
	default:
	}
}

// in is a call's context on this link.
func (l *link) in(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, turnKey, l.turnText())
}

func (l *link) turnText() string { return strconv.FormatUint(l.turn, 16) }

// run connects, and returns when the connection has ended.
func (l *link) run() error {
	defer l.abort(nil)
	o := append(l.c.dialOptions(), grpc.WithTransportCredentials(credentials.NewTLS(l.c.creds)))
	conn, err := grpc.NewClient("passthrough:///"+l.c.opts.Address, o...)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	l.api = wirepb.NewLayoutsClient(conn)
	alive := time.AfterFunc(l.c.opts.Timing.Connect, func() { l.abort(errSilent) })
	defer alive.Stop()
	stream, err := l.api.Session(l.ctx)
	if err == nil {
		err = stream.Send(l.c.hello())
	}
	if err != nil {
		return l.why(err)
	}
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		l.abort(l.send(stream))
	}()
	err = l.why(l.receive(stream, alive))
	l.abort(err)
	<-sent
	return err
}

// why is what ended the link, the server's word first.
func (l *link) why(err error) error {
	if _, ok := failure(err); ok {
		return err
	}
	if cause := context.Cause(l.ctx); cause != nil && !errors.Is(cause, context.Canceled) {
		return cause
	}
	return err
}

func (l *link) receive(stream wirepb.Layouts_SessionClient, alive *time.Timer) error {
	for {
		m, err := stream.Recv()
		if err != nil {
			return err
		}
		alive.Reset(l.c.opts.Timing.Silence)
		if err := l.c.take(l, m); err != nil {
			l.c.opts.Log.Warn("coordinator's message refused", "volume", l.c.opts.Volume, "epoch", l.c.opts.Epoch, "err", err)
			return err
		}
	}
}

// send pings, acknowledges and answers.
func (l *link) send(stream wirepb.Layouts_SessionClient) error {
	ping := time.NewTicker(l.c.opts.Timing.Ping)
	defer ping.Stop()
	for {
		var beat bool
		select {
		case <-l.ctx.Done():
			return context.Cause(l.ctx)
		case <-l.alert:
		case <-ping.C:
			beat = true
		}
		answers, received := l.c.toSay()
		for _, a := range answers {
			m := &wirepb.FromNode{Received: received, Body: &wirepb.FromNode_Returned{Returned: a}}
			if err := stream.Send(m); err != nil {
				return fmt.Errorf("%w: %w", protocol.ErrUnreachable, err)
			}
		}
		m := &wirepb.FromNode{Received: received}
		if beat {
			m.Body = &wirepb.FromNode_Ping{Ping: &wirepb.Ping{}}
		}
		if err := stream.Send(m); err != nil {
			return fmt.Errorf("%w: %w", protocol.ErrUnreachable, err)
		}
	}
}
