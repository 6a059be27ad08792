package wire

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"sync"
	"time"

	"golang.org/x/net/netutil"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	"lunar/datapath/layout/protocol"
	"lunar/datapath/wire/wirepb"
)

// turnKey is the metadata that says to which turn a call belongs.
const turnKey = "lunar-turn"

// Flow control windows: a grant of an image with many extents fits.
const (
	streamWindow     = 1 << 20
	connectionWindow = 4 << 20
)

// Server brings the calls of other nodes to the coordinators of this one. Its methods are safe from any
// goroutine.
type Server struct {
	wirepb.UnimplementedLayoutsServer
	opts  ServerOptions
	table table
	grpc  *grpc.Server
	group sync.WaitGroup // of the streams' goroutines

	mu       sync.Mutex // guards what follows
	sessions map[sessionKey]*session
	turns    map[uint64]*turn
	stopped  bool
}

// NewServer makes a Server; Serve starts it.
func NewServer(o ServerOptions) (*Server, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	o.Limits, o.Timing = o.Limits.withDefaults(), o.Timing.withDefaults()
	if o.Log == nil {
		o.Log = slog.Default()
	}
	sv := &Server{opts: o, table: newTable(o.Sentinels), sessions: map[sessionKey]*session{}, turns: map[uint64]*turn{}}
	config := o.TLS.Clone()
	config.MinVersion = max(config.MinVersion, tls.VersionTLS13)
	sv.grpc = grpc.NewServer(
		grpc.Creds(credentials.NewTLS(config)),
		grpc.ConnectionTimeout(o.Timing.Connect),
		grpc.MaxRecvMsgSize(o.Limits.Message), grpc.MaxSendMsgSize(o.Limits.Message),
		grpc.MaxConcurrentStreams(uint32(o.Limits.Calls)+16),
		grpc.MaxHeaderListSize(16<<10),
		grpc.InitialWindowSize(streamWindow), grpc.InitialConnWindowSize(connectionWindow),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionIdle: time.Minute, Timeout: o.Timing.Silence}),
		grpc.WaitForHandlers(true),
		grpc.ChainUnaryInterceptor(sv.unary), grpc.ChainStreamInterceptor(sv.stream),
	)
	wirepb.RegisterLayoutsServer(sv.grpc, sv)
	return sv, nil
}

// Serve answers on l until Stop, and closes it. It may be called for several listeners.
func (sv *Server) Serve(l net.Listener) error {
	l = netutil.LimitListener(&listener{Listener: l, silence: sv.opts.Timing.Silence}, sv.opts.Limits.Connections)
	if err := sv.grpc.Serve(l); err != nil {
		return fmt.Errorf("wire: serve %s: %w", l.Addr(), err)
	}
	return nil
}

// Stop ends every session and call, and returns when none is executed, or ctx ended.
func (sv *Server) Stop(ctx context.Context) error {
	sv.mu.Lock()
	sv.stopped = true
	for _, t := range sv.turns {
		t.end(errStopped)
	}
	for key, s := range sv.sessions {
		s.finish(errStopped)
		delete(sv.sessions, key)
	}
	sv.mu.Unlock()
	done := make(chan struct{})
	go func() {
		defer close(done)
		sv.grpc.Stop()
		sv.group.Wait()
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wire: stop: calls are still executed: %w: %w", unix.ETIMEDOUT, ctx.Err())
	}
}

// End ends what belongs to a coordinator's term: calls and recalls under way fail, as do later ones.
// Lookup knows the term no longer when it is called.
func (sv *Server) End(volume string, epoch uint64) {
	sv.mu.Lock()
	defer sv.mu.Unlock()
	for key, s := range sv.sessions {
		if key.volume == volume && key.epoch == epoch {
			s.finish(errEnded)
			delete(sv.sessions, key)
		}
	}
}

// enter is the session that a Hello is for.
func (sv *Server) enter(key sessionKey) (*session, error) {
	c, err := sv.opts.Lookup(key.volume, key.epoch)
	if err != nil {
		return nil, err
	}
	sv.mu.Lock()
	defer sv.mu.Unlock()
	if sv.stopped {
		return nil, errStopped
	}
	if s := sv.sessions[key]; s != nil && s.coord == c {
		return s, nil
	}
	for old, s := range sv.sessions {
		if old.volume == key.volume && old.node == key.node && old.epoch <= key.epoch {
			s.finish(errEnded)
			delete(sv.sessions, old)
		}
	}
	s := newSession(key, c, sv.opts.Limits)
	sv.sessions[key] = s
	return s, nil
}

// newTurn begins a turn of a stream; nothing belongs to it before its session is taken over.
func (sv *Server) newTurn(ctx context.Context, s *session) *turn {
	t := &turn{id: random(), s: s, alert: make(chan struct{}, 1), silence: make(chan struct{})}
	t.ctx, t.abort = context.WithCancelCause(ctx)
	t.alive = time.AfterFunc(sv.opts.Timing.Silence, func() { t.end(errSilent) })
	sv.mu.Lock()
	defer sv.mu.Unlock()
	sv.turns[t.id] = t
	return t
}

// leave ends a turn. Its session stays until the term ends: the node may come back.
func (sv *Server) leave(t *turn) {
	t.alive.Stop()
	t.end(errBroken)
	sv.mu.Lock()
	defer sv.mu.Unlock()
	delete(sv.turns, t.id)
}

// peerNode is the name in the peer's certificate, which the handshake has verified (ServerOptions.TLS).
func peerNode(ctx context.Context) (protocol.NodeID, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return "", fmt.Errorf("no peer: %w", unix.EPERM)
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.PeerCertificates) == 0 {
		return "", fmt.Errorf("no certificate of the cluster's: %w", unix.EPERM)
	}
	return protocol.NodeID(info.State.PeerCertificates[0].Subject.CommonName), nil
}

// turnOf is the turn that a call belongs to.
func (sv *Server) turnOf(ctx context.Context) (*turn, error) {
	node, err := peerNode(ctx)
	if err != nil {
		return nil, err
	}
	values := metadata.ValueFromIncomingContext(ctx, turnKey)
	if len(values) != 1 {
		return nil, fmt.Errorf("a call without its turn: %w", unix.EINVAL)
	}
	id, err := strconv.ParseUint(values[0], 16, 64)
	if err != nil {
		return nil, fmt.Errorf("a call with the turn %q: %w", values[0], unix.EINVAL)
	}
	sv.mu.Lock()
	t := sv.turns[id]
	sv.mu.Unlock()
	if t == nil {
		return nil, errSuperseded
	}
	if t.s.key.node != node {
		return nil, fmt.Errorf("node %s in a turn of another: %w", node, unix.EPERM)
	}
	return t, nil
}

// turnContext finds a call's turn in its context.
type turnContext struct{}

// execute runs a call in its turn.
func (sv *Server) execute(ctx context.Context, method string, run func(ctx context.Context) error) error {
	t, err := sv.turnOf(ctx)
	if err != nil {
		return sv.table.status(err)
	}
	ctx, done, err := t.begin(ctx)
	if err != nil {
		return sv.table.status(err)
	}
	defer done()
	err = run(context.WithValue(ctx, turnContext{}, t))
	if err != nil && t.ctx.Err() != nil {
		sv.opts.Log.Debug("call was abandoned", "method", method, "node", t.s.key.node, "err", err)
		err = context.Cause(t.ctx) //nolint:contextcheck // why the turn ended
	}
	return sv.table.status(err)
}

func (sv *Server) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (res any, err error) {
	err = sv.execute(ctx, info.FullMethod, func(ctx context.Context) (err error) {
		res, err = next(ctx, req)
		return err
	})
	return res, err
}

// inTurn is a stream in its turn's context.
type inTurn struct {
	grpc.ServerStream
	ctx context.Context //nolint:containedctx // how gRPC hands a stream's context on
}

// Context implements grpc.ServerStream.
func (s inTurn) Context() context.Context { return s.ctx }

func (sv *Server) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	if info.FullMethod == wirepb.Layouts_Session_FullMethodName {
		return sv.table.status(next(srv, ss))
	}
	return sv.execute(ss.Context(), info.FullMethod, func(ctx context.Context) error { return next(srv, inTurn{ss, ctx}) })
}
