package wire

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"lunar/datapath/layout/protocol"
	"lunar/datapath/wire/wirepb"
)

// Session implements the service: one stream of a node's session, for as long as it lasts.
func (sv *Server) Session(stream wirepb.Layouts_SessionServer) error {
	hello, received, err := sv.hello(stream)
	if err != nil {
		return err
	}
	s, err := sv.enter(sessionKey{hello.GetVolume(), hello.GetEpoch(), protocol.NodeID(hello.GetNode())})
	if err != nil {
		return err
	}
	t := sv.newTurn(stream.Context(), s)
	defer sv.leave(t)
	sv.group.Go(func() { t.end(sv.receive(stream, t)) })
	sv.group.Go(func() { t.end(sv.send(stream, t)) })
	if err := s.takeOver(t.ctx, t, hello, received); err != nil {
		return err
	}
	sv.opts.Log.Info("node connected", "volume", hello.GetVolume(), "epoch", hello.GetEpoch(), "node", hello.GetNode(), "holders", len(hello.GetHolders()))
	<-t.ctx.Done()
	err = context.Cause(t.ctx)
	sv.opts.Log.Info("node disconnected", "volume", hello.GetVolume(), "epoch", hello.GetEpoch(), "node", hello.GetNode(), "why", err)
	return err
}

// hello is the first message, from the node whose certificate the peer has, soon.
func (sv *Server) hello(stream wirepb.Layouts_SessionServer) (*wirepb.Hello, uint64, error) {
	type first struct {
		m   *wirepb.FromNode
		err error
	}
	heard := make(chan first, 1)
	sv.group.Go(func() {
		m, err := stream.Recv()
		heard <- first{m, err}
	})
	limit := time.NewTimer(sv.opts.Timing.Connect)
	defer limit.Stop()
	select {
	case f := <-heard:
		if f.err != nil {
			return nil, 0, f.err
		}
		return f.m.GetHello(), f.m.GetReceived(), sv.check(stream.Context(), f.m.GetHello())
	case <-limit.C:
		return nil, 0, errSilent
	}
}

func (sv *Server) check(ctx context.Context, hello *wirepb.Hello) error {
	node, err := peerNode(ctx)
	switch {
	case err != nil:
		return err
	case hello == nil || hello.GetIncarnation() == 0:
		return fmt.Errorf("%w: a session begins with a Hello: %w", errMalformed, unix.EPROTO)
	case protocol.NodeID(hello.GetNode()) != node:
		return fmt.Errorf("the certificate is node %q's, the Hello node %q's: %w", node, hello.GetNode(), unix.EPERM)
	case len(hello.GetHolders()) > sv.opts.Limits.Holders:
		return fmt.Errorf("%d holders, at most %d: %w", len(hello.GetHolders()), sv.opts.Limits.Holders, unix.E2BIG)
	}
	return nil
}

// receive takes what the node says until the stream ends.
func (sv *Server) receive(stream wirepb.Layouts_SessionServer, t *turn) error {
	for {
		m, err := stream.Recv()
		if err != nil {
			return fmt.Errorf("%w: %w", errBroken, err)
		}
		t.alive.Reset(sv.opts.Timing.Silence)
		if err := sv.take(t, m); err != nil {
			return err
		}
	}
}

func (sv *Server) take(t *turn, m *wirepb.FromNode) error {
	s := t.s
	switch body := m.GetBody().(type) {
	case *wirepb.FromNode_Hello:
		return fmt.Errorf("%w: a second Hello: %w", errMalformed, unix.EPROTO)
	case *wirepb.FromNode_Ping:
		t.mu.Lock()
		t.pong = true
		t.mu.Unlock()
		t.wake()
	case *wirepb.FromNode_Returned:
		var answer error
		if f := body.Returned.GetFailure(); f != nil {
			answer = sv.table.decode(f)
		}
		s.mu.Lock()
		s.out.answered(body.Returned.GetHolder(), body.Returned.GetNumber(), answer)
		s.mu.Unlock()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.turn == t {
		s.out.acknowledged(m.GetReceived())
		t.wake()
	}
	return nil
}

// send says what there is to say until the turn ends.
func (sv *Server) send(stream wirepb.Layouts_SessionServer, t *turn) error {
	welcome := &wirepb.ToNode{Body: &wirepb.ToNode_Welcome{Welcome: &wirepb.Welcome{Turn: t.id, Session: t.s.id}}}
	for {
		select {
		case <-t.alert:
		case <-t.ctx.Done():
			return context.Cause(t.ctx)
		}
		pong, welcomed := t.toSay()
		if pong {
			if err := stream.Send(&wirepb.ToNode{}); err != nil {
				return fmt.Errorf("%w: %w", errBroken, err)
			}
		}
		if !welcomed {
			continue
		}
		if welcome != nil {
			if err := stream.Send(welcome); err != nil {
				return fmt.Errorf("%w: %w", errBroken, err)
			}
			welcome = nil
		}
		if err := sendLetters(stream, t); err != nil {
			return fmt.Errorf("%w: %w", errBroken, err)
		}
	}
}

func (t *turn) toSay() (pong, welcomed bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	pong, t.pong = t.pong, false
	return pong, t.welcomed
}

// sendLetters sends what the outbox lets out now.
func sendLetters(stream wirepb.Layouts_SessionServer, t *turn) error {
	s := t.s
	for {
		s.mu.Lock()
		if s.turn != t {
			s.mu.Unlock()
			return errors.New("superseded")
		}
		l := s.out.next()
		s.mu.Unlock()
		if l == nil {
			return nil
		}
		for _, m := range l.messages(time.Now()) {
			if err := stream.Send(m); err != nil {
				return err
			}
		}
		s.mu.Lock()
		if l.sent != nil {
			close(l.sent)
			l.sent = nil
		}
		s.mu.Unlock()
	}
}
