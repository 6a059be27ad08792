package cluster

import (
	"context"
	"crypto/x509"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

// callGuard stands before every call that another node makes to this node's etcd member: it refuses
// certificates that were revoked after the connection was made, and it ends all calls at once when
// the member stops, which etcd would wait for.
type callGuard struct {
	refused func(*x509.Certificate) bool
	stopped context.Context
	end     context.CancelFunc
}

func newCallGuard(refused func(*x509.Certificate) bool) *callGuard {
	g := &callGuard{refused: refused}
	g.stopped, g.end = context.WithCancel(context.Background())
	return g
}

func (g *callGuard) options() []grpc.ServerOption {
	return []grpc.ServerOption{grpc.ChainUnaryInterceptor(g.unary), grpc.ChainStreamInterceptor(g.stream)}
}

func (g *callGuard) check(ctx context.Context) error {
	if g.stopped.Err() != nil {
		return status.Error(codes.Unavailable, "this member stops")
	}
	p, ok := peer.FromContext(ctx)
	if !ok {
		return status.Error(codes.Unauthenticated, "no peer")
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.PeerCertificates) == 0 {
		return status.Error(codes.Unauthenticated, "no certificate")
	}
	if g.refused(info.State.PeerCertificates[0]) {
		return status.Error(codes.PermissionDenied, "this node was evicted from the cluster")
	}
	return nil
}

// bind makes a context that also ends with the guard.
func (g *callGuard) bind(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancel(ctx)
	release := context.AfterFunc(g.stopped, cancel)
	return ctx, func() { release(); cancel() }
}

func (g *callGuard) unary(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	if err := g.check(ctx); err != nil {
		return nil, err
	}
	ctx, release := g.bind(ctx)
	defer release()
	return handler(ctx, req)
}

func (g *callGuard) stream(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	if err := g.check(ss.Context()); err != nil {
		return err
	}
	ctx, release := g.bind(ss.Context())
	defer release()
	return handler(srv, &guardedStream{ServerStream: ss, ctx: ctx, guard: g})
}

// guardedStream checks every message, since a watch or a lease's stream outlives a revocation.
type guardedStream struct {
	grpc.ServerStream
	ctx   context.Context
	guard *callGuard
}

// Context implements grpc.ServerStream.
func (s *guardedStream) Context() context.Context { return s.ctx }

// RecvMsg implements grpc.ServerStream.
func (s *guardedStream) RecvMsg(m any) error {
	if err := s.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	return s.guard.check(s.ServerStream.Context())
}

// SendMsg implements grpc.ServerStream.
func (s *guardedStream) SendMsg(m any) error {
	if err := s.guard.check(s.ServerStream.Context()); err != nil {
		return err
	}
	return s.ServerStream.SendMsg(m)
}
