package wire

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"lunar/datapath/layout/protocol"
	"lunar/datapath/wire/wirepb"
)

// table translates errors: a sentinel goes over by its name, an errno by its number.
type table []sentinel

type sentinel struct {
	name string
	err  error
}

func newTable(more []error) table {
	t := table{
		{"stale", protocol.ErrStale},
		{"unreachable", protocol.ErrUnreachable},
		{"outcome", protocol.ErrOutcome},
		{"deadline", context.DeadlineExceeded},
	}
	for _, err := range more {
		t = append(t, sentinel{err.Error(), err})
	}
	return t
}

// Bounds of a Failure: an error's words are cut, and a tree of joined errors may repeat an errno.
const (
	maxText   = 4096
	maxCauses = 64
)

// encode describes err, which is not nil.
func (t table) encode(err error) *wirepb.Failure {
	f := &wirepb.Failure{Text: strings.ToValidUTF8(err.Error(), "\uFFFD")}
	if len(f.Text) > maxText {
		f.Text = strings.ToValidUTF8(f.Text[:maxText], "")
	}
	for _, s := range t {
		if errors.Is(err, s.err) {
			f.Sentinels = append(f.Sentinels, s.name)
		}
	}
	f.Errnos = appendErrnos(nil, err)
	return f
}

// appendErrnos collects what err wraps.
func appendErrnos(found []uint32, err error) []uint32 {
	if len(found) >= maxCauses {
		return found
	}
	var errno syscall.Errno
	switch e := err.(type) { //nolint:errorlint // it walks the tree itself
	case syscall.Errno:
		if errno = e; !slices.Contains(found, uint32(errno)) {
			found = append(found, uint32(errno))
		}
	case interface{ Unwrap() error }:
		if inner := e.Unwrap(); inner != nil {
			found = appendErrnos(found, inner)
		}
	case interface{ Unwrap() []error }:
		for _, inner := range e.Unwrap() {
			found = appendErrnos(found, inner)
		}
	}
	return found
}

// remote is an error of the peer.
type remote struct {
	text   string
	causes []error
}

// Error implements error.
func (e *remote) Error() string { return e.text }

// Unwrap is what the error is, of what both sides know.
func (e *remote) Unwrap() []error { return e.causes }

// decode is the error that f describes.
func (t table) decode(f *wirepb.Failure) error {
	e := &remote{text: f.GetText()}
	for _, name := range f.GetSentinels() {
		if i := slices.IndexFunc(t, func(s sentinel) bool { return s.name == name }); i >= 0 && len(e.causes) < maxCauses {
			e.causes = append(e.causes, t[i].err)
		}
	}
	for _, errno := range f.GetErrnos() {
		if errno > 0 && errno < 4096 && len(e.causes) < 2*maxCauses {
			e.causes = append(e.causes, syscall.Errno(errno))
		}
	}
	return e
}

// status makes an error of a handler gRPC's.
func (t table) status(err error) error {
	if err == nil {
		return nil
	}
	f := t.encode(err)
	s, detailErr := status.New(codes.FailedPrecondition, f.Text).WithDetails(f)
	if detailErr != nil {
		return status.Error(codes.FailedPrecondition, f.Text)
	}
	return s.Err()
}

// failure is the Failure in an error of gRPC, if it has one.
func failure(err error) (*wirepb.Failure, bool) {
	s, ok := status.FromError(err)
	if !ok {
		return nil, false
	}
	for _, d := range s.Details() {
		if f, ok := d.(*wirepb.Failure); ok {
			return f, true
		}
	}
	return nil, false
}

// byCode are gRPC's own refusals that trying again does not cure.
var byCode = map[codes.Code]error{
	codes.ResourceExhausted: unix.EMSGSIZE,
	codes.Unimplemented:     unix.EOPNOTSUPP,
	codes.InvalidArgument:   unix.EINVAL,
	codes.PermissionDenied:  unix.EPERM,
}

// fromCall makes an error of a gRPC call what the caller of that operation expects.
func (t table) fromCall(ctx context.Context, operation string, err error) error {
	if err == nil {
		return nil
	}
	if f, ok := failure(err); ok {
		return t.decode(f)
	}
	if errno, ok := byCode[status.Code(err)]; ok {
		return fmt.Errorf("%s: %s: %w", operation, status.Convert(err).Message(), errno)
	}
	return unreachable(ctx, operation, err)
}

// unreachable says that nobody knows whether the operation took effect.
func unreachable(ctx context.Context, operation string, err error) error {
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return fmt.Errorf("%s: %w: %w: %w", operation, protocol.ErrUnreachable, unix.ETIMEDOUT, ctx.Err())
	case ctx.Err() != nil:
		return fmt.Errorf("%s: %w: %w", operation, protocol.ErrUnreachable, ctx.Err())
	}
	return fmt.Errorf("%s: %w: %s", operation, protocol.ErrUnreachable, status.Convert(err).Message())
}
