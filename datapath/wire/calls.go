package wire

import (
	"context"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"lunar/datapath/layout"
	"lunar/datapath/layout/protocol"
	"lunar/datapath/wire/wirepb"
)

// statPage is how many images a StatPage has at most: their paths are 4096 bytes long at most.
const statPage = 200

// of is the session that a call in its turn belongs to.
func of(ctx context.Context) (*session, error) {
	t, ok := ctx.Value(turnContext{}).(*turn)
	if !ok {
		return nil, fmt.Errorf("a call outside of a turn: %w", unix.EINVAL)
	}
	return t.s, nil
}

// do runs what only succeeds or fails.
func do(ctx context.Context, fn func(s *session) error) (*wirepb.Done, error) {
	s, err := of(ctx)
	if err == nil {
		err = fn(s)
	}
	if err != nil {
		return nil, err
	}
	return &wirepb.Done{}, nil
}

// Attach implements the service. It returns when the grant was sent.
func (sv *Server) Attach(ctx context.Context, m *wirepb.AttachRequest) (*wirepb.AttachReply, error) {
	s, err := of(ctx)
	if err != nil {
		return nil, err
	}
	if err := acquire(ctx, s.attaches); err != nil {
		return nil, err
	}
	defer func() { <-s.attaches }()
	h, err := s.reserve(m.GetHolder())
	if err != nil {
		return nil, err
	}
	g, id, err := s.coord.Attach(ctx, s.key.node, string(m.GetPath()), h)
	if err != nil {
		s.unreserve(h)
		return nil, err
	}
	if len(g.Extents) > maxExtents {
		err = fmt.Errorf("image %s has %d extents, at most %d: copy it to a new image: %w", m.GetPath(), len(g.Extents), maxExtents, unix.EFBIG)
	} else {
		err = waitSent(ctx, h.start(g, id))
	}
	if err == nil {
		return &wirepb.AttachReply{Image: uint64(g.Image)}, nil
	}
	h.attached(g.Call, id)
	_ = s.detach(context.WithoutCancel(ctx), h) // what fails is tried again at the next Hello
	return nil, err
}

// attached notes what a Detach needs.
func (h *holder) attached(call protocol.Call, id protocol.HolderID) {
	h.s.mu.Lock()
	defer h.s.mu.Unlock()
	h.call, h.id = call, id
}

func waitSent(ctx context.Context, sent <-chan struct{}) error {
	select {
	case <-sent:
		return context.Cause(ctx)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// reserve makes a holder that is not at the coordinator yet.
func (s *session) reserve(number uint32) (*holder, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.over != nil:
		return nil, s.over
	case s.holders[number] != nil || number == 0:
		return nil, fmt.Errorf("holder %d: %w", number, unix.EEXIST)
	case len(s.holders) >= s.limits.Holders:
		return nil, fmt.Errorf("%d holders: close some images: %w", len(s.holders), unix.EMFILE)
	}
	h := &holder{s: s, number: number}
	s.holders[number] = h
	return h, nil
}

func (s *session) unreserve(h *holder) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drop(h, nil)
	delete(s.holders, h.number)
}

// Detach implements the service; a holder that there is not is detached already.
func (sv *Server) Detach(ctx context.Context, m *wirepb.DetachRequest) (*wirepb.Done, error) {
	return do(ctx, func(s *session) error {
		s.mu.Lock()
		h := s.holders[m.GetHolder()]
		attaching := h != nil && !h.started && !h.gone
		s.mu.Unlock()
		switch {
		case h == nil:
			return nil
		case attaching:
			return fmt.Errorf("holder %d is being attached: %w", m.GetHolder(), unix.EBUSY)
		}
		return s.detach(ctx, h)
	})
}

// Acknowledge implements the service.
func (sv *Server) Acknowledge(ctx context.Context, m *wirepb.AcknowledgeRequest) (*wirepb.Done, error) {
	return do(ctx, func(s *session) error { return s.coord.Acknowledge(ctx, s.key.node, m.GetEpoch()) })
}

// CompareAndWrite implements the service.
func (sv *Server) CompareAndWrite(ctx context.Context, m *wirepb.CompareAndWriteRequest) (*wirepb.CompareAndWriteReply, error) {
	s, err := of(ctx)
	if err != nil {
		return nil, err
	}
	call := callIn(m.GetCall())
	call.Once = protocol.Once{Node: s.key.node, Slot: m.GetSlot(), Serial: m.GetSerial()}
	at, err := s.coord.CompareAndWrite(ctx, call, m.GetExpect(), m.GetData(), m.GetOff(), m.GetFua())
	if err != nil {
		return nil, err
	}
	return &wirepb.CompareAndWriteReply{Miscompare: int64(at)}, nil
}

// Copy implements the service.
func (sv *Server) Copy(ctx context.Context, m *wirepb.CopyRequest) (*wirepb.Done, error) {
	return do(ctx, func(s *session) error {
		r := layout.Range{Off: m.GetRange().GetOff(), Len: m.GetRange().GetLen()}
		return s.coord.Copy(ctx, callIn(m.GetTo()), m.GetOff(), callIn(m.GetFrom()), r)
	})
}

// Create implements the service.
func (sv *Server) Create(m *wirepb.CreateRequest, stream wirepb.Layouts_CreateServer) error {
	ctx := stream.Context()
	s, err := of(ctx)
	if err != nil {
		return err
	}
	meta, err := metaIn(m.GetMeta())
	if err != nil {
		return fmt.Errorf("%w: %w", unix.EINVAL, err)
	}
	o := protocol.CreateOptions{Size: m.GetSize(), Thick: m.GetThick(), Eager: m.GetEager()}
	if m.GetProgress() {
		o.Progress = func(n int64) { _ = stream.Send(&wirepb.Progress{Bytes: n}) } // ctx tells when nobody listens
	}
	return s.coord.Create(ctx, meta, string(m.GetPath()), o)
}

// change runs a change of the name space.
func change(ctx context.Context, m *wirepb.Meta, fn func(s *session, meta protocol.Meta) error) (*wirepb.Done, error) {
	meta, err := metaIn(m)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", unix.EINVAL, err)
	}
	return do(ctx, func(s *session) error { return fn(s, meta) })
}

// Delete implements the service.
func (sv *Server) Delete(ctx context.Context, m *wirepb.DeleteRequest) (*wirepb.Done, error) {
	return change(ctx, m.GetMeta(), func(s *session, meta protocol.Meta) error {
		return s.coord.Delete(ctx, meta, string(m.GetPath()))
	})
}

// Rename implements the service.
func (sv *Server) Rename(ctx context.Context, m *wirepb.RenameRequest) (*wirepb.Done, error) {
	return change(ctx, m.GetMeta(), func(s *session, meta protocol.Meta) error {
		return s.coord.Rename(ctx, meta, string(m.GetFrom()), string(m.GetTo()))
	})
}

// Resize implements the service.
func (sv *Server) Resize(ctx context.Context, m *wirepb.ResizeRequest) (*wirepb.Done, error) {
	return change(ctx, m.GetMeta(), func(s *session, meta protocol.Meta) error {
		return s.coord.Resize(ctx, meta, string(m.GetPath()), m.GetSize(), m.GetForce())
	})
}

// Clone implements the service.
func (sv *Server) Clone(ctx context.Context, m *wirepb.CloneRequest) (*wirepb.Done, error) {
	return change(ctx, m.GetMeta(), func(s *session, meta protocol.Meta) error {
		return s.coord.Clone(ctx, meta, string(m.GetFrom()), string(m.GetTo()))
	})
}

// List implements the service.
func (sv *Server) List(_ *wirepb.ListRequest, stream wirepb.Layouts_ListServer) error {
	s, err := of(stream.Context())
	if err != nil {
		return err
	}
	all, err := s.coord.List(stream.Context())
	if err != nil {
		return err
	}
	for page := range slices.Chunk(all, statPage) {
		m := &wirepb.StatPage{}
		for _, st := range page {
			m.Images = append(m.Images, statOut(st))
		}
		if err := stream.Send(m); err != nil {
			return err
		}
	}
	return nil
}

// Stat implements the service.
func (sv *Server) Stat(ctx context.Context, m *wirepb.StatRequest) (*wirepb.ImageStat, error) {
	s, err := of(ctx)
	if err != nil {
		return nil, err
	}
	st, err := s.coord.Stat(ctx, string(m.GetPath()))
	if err != nil {
		return nil, err
	}
	return statOut(st), nil
}

// Space implements the service.
func (sv *Server) Space(ctx context.Context, _ *wirepb.SpaceRequest) (*wirepb.SpaceReply, error) {
	s, err := of(ctx)
	if err != nil {
		return nil, err
	}
	space, err := s.coord.Space(ctx)
	if err != nil {
		return nil, err
	}
	return &wirepb.SpaceReply{Size: space.Size, Free: space.Free}, nil
}
