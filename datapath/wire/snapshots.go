package wire

import (
	"context"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"lunar/datapath/layout"
	"lunar/datapath/layout/protocol"
	"lunar/datapath/wire/wirepb"
)

// diffPage is how many ranges a DiffPage has at most.
const diffPage = 1 << 14

// Snapshot implements the service.
func (sv *Server) Snapshot(ctx context.Context, m *wirepb.SnapshotRequest) (*wirepb.SnapshotReply, error) {
	meta, err := metaIn(m.GetMeta())
	if err != nil {
		return nil, fmt.Errorf("%w: %w", unix.EINVAL, err)
	}
	s, err := of(ctx)
	if err != nil {
		return nil, err
	}
	paths := make([]string, len(m.GetPaths()))
	for i, p := range m.GetPaths() {
		paths[i] = string(p)
	}
	hold, err := s.coord.Snapshot(ctx, meta, string(m.GetName()), paths)
	if err != nil {
		return nil, err
	}
	return &wirepb.SnapshotReply{HoldNs: int64(hold)}, nil
}

// Snapshots implements the service.
func (sv *Server) Snapshots(_ *wirepb.SnapshotsRequest, stream wirepb.Layouts_SnapshotsServer) error {
	s, err := of(stream.Context())
	if err != nil {
		return err
	}
	all, err := s.coord.Snapshots(stream.Context())
	if err != nil {
		return err
	}
	for page := range slices.Chunk(all, statPage) {
		m := &wirepb.SnapshotPage{}
		for _, one := range page {
			m.Snapshots = append(m.Snapshots, snapshotOut(one))
		}
		if err := stream.Send(m); err != nil {
			return err
		}
	}
	return nil
}

// DeleteSnapshot implements the service.
func (sv *Server) DeleteSnapshot(ctx context.Context, m *wirepb.DeleteSnapshotRequest) (*wirepb.Done, error) {
	return change(ctx, m.GetMeta(), func(s *session, meta protocol.Meta) error {
		return s.coord.DeleteSnapshot(ctx, meta, string(m.GetName()), string(m.GetPath()))
	})
}

// CloneSnapshot implements the service.
func (sv *Server) CloneSnapshot(ctx context.Context, m *wirepb.CloneSnapshotRequest) (*wirepb.Done, error) {
	return change(ctx, m.GetMeta(), func(s *session, meta protocol.Meta) error {
		return s.coord.CloneSnapshot(ctx, meta, string(m.GetName()), string(m.GetPath()), string(m.GetTo()))
	})
}

// Revert implements the service.
func (sv *Server) Revert(ctx context.Context, m *wirepb.RevertRequest) (*wirepb.Done, error) {
	return change(ctx, m.GetMeta(), func(s *session, meta protocol.Meta) error {
		return s.coord.Revert(ctx, meta, string(m.GetName()), string(m.GetPath()))
	})
}

// Diff implements the service.
func (sv *Server) Diff(m *wirepb.DiffRequest, stream wirepb.Layouts_DiffServer) error {
	s, err := of(stream.Context())
	if err != nil {
		return err
	}
	changed, err := s.coord.Diff(stream.Context(), string(m.GetPath()), string(m.GetFrom()), string(m.GetTo()))
	if err != nil {
		return err
	}
	for page := range slices.Chunk(changed, diffPage) {
		out := &wirepb.DiffPage{}
		for _, r := range page {
			out.Changed = append(out.Changed, rangeOut(r))
		}
		if err := stream.Send(out); err != nil {
			return err
		}
	}
	return nil
}

// Snapshot keeps images as they are at one instant; hold is for how long their I/O was held.
func (c *Client) Snapshot(ctx context.Context, m protocol.Meta, name string, paths []string) (hold time.Duration, err error) {
	req := &wirepb.SnapshotRequest{Meta: metaOut(m), Name: []byte(name)}
	for _, p := range paths {
		req.Paths = append(req.Paths, []byte(p))
	}
	err = c.do(ctx, "snapshot "+name, func(ctx context.Context, api wirepb.LayoutsClient) error {
		reply, err := api.Snapshot(ctx, req)
		hold = time.Duration(reply.GetHoldNs())
		return err
	})
	return hold, err
}

// Snapshots describes every image of every snapshot.
func (c *Client) Snapshots(ctx context.Context) (all []protocol.Snapshot, err error) {
	err = c.do(ctx, "list snapshots", func(ctx context.Context, api wirepb.LayoutsClient) error {
		stream, err := api.Snapshots(ctx, &wirepb.SnapshotsRequest{})
		if err != nil {
			return err
		}
		return drain(stream.Recv, func(p *wirepb.SnapshotPage) {
			for _, s := range p.GetSnapshots() {
				all = append(all, snapshotIn(s))
			}
		})
	})
	if err != nil {
		return nil, err
	}
	return all, nil
}

// DeleteSnapshot removes one image of a snapshot, or with an empty path all of it.
func (c *Client) DeleteSnapshot(ctx context.Context, m protocol.Meta, name, path string) error {
	return c.do(ctx, "delete snapshot "+name, func(ctx context.Context, api wirepb.LayoutsClient) error {
		_, err := api.DeleteSnapshot(ctx, &wirepb.DeleteSnapshotRequest{Meta: metaOut(m), Name: []byte(name), Path: []byte(path)})
		return err
	})
}

// CloneSnapshot makes a new image from one of a snapshot.
func (c *Client) CloneSnapshot(ctx context.Context, m protocol.Meta, name, path, to string) error {
	return c.do(ctx, "clone "+path+"@"+name, func(ctx context.Context, api wirepb.LayoutsClient) error {
		_, err := api.CloneSnapshot(ctx, &wirepb.CloneSnapshotRequest{Meta: metaOut(m), Name: []byte(name), Path: []byte(path), To: []byte(to)})
		return err
	})
}

// Revert makes an image what it was in a snapshot.
func (c *Client) Revert(ctx context.Context, m protocol.Meta, name, path string) error {
	return c.do(ctx, "revert "+path, func(ctx context.Context, api wirepb.LayoutsClient) error {
		_, err := api.Revert(ctx, &wirepb.RevertRequest{Meta: metaOut(m), Name: []byte(name), Path: []byte(path)})
		return err
	})
}

// Diff tells which ranges of an image differ between two snapshots.
func (c *Client) Diff(ctx context.Context, path, from, to string) (changed []layout.Range, err error) {
	req := &wirepb.DiffRequest{Path: []byte(path), From: []byte(from), To: []byte(to)}
	err = c.do(ctx, "diff "+path, func(ctx context.Context, api wirepb.LayoutsClient) error {
		stream, err := api.Diff(ctx, req)
		if err != nil {
			return err
		}
		return drain(stream.Recv, func(p *wirepb.DiffPage) {
			for _, r := range p.GetChanged() {
				changed = append(changed, layout.Range{Off: r.GetOff(), Len: r.GetLen()})
			}
		})
	})
	if err != nil {
		return nil, err
	}
	return changed, nil
}

func snapshotOut(s protocol.Snapshot) *wirepb.ImageSnapshot {
	return &wirepb.ImageSnapshot{Name: []byte(s.Name), Path: []byte(s.Path), Id: uint64(s.ID), Set: uint64(s.Set),
		Size: s.Size, Exclusive: s.Exclusive, TakenNs: s.Taken, HoldNs: s.Hold}
}

func snapshotIn(m *wirepb.ImageSnapshot) protocol.Snapshot {
	return protocol.Snapshot{Name: string(m.GetName()), Path: string(m.GetPath()), ID: protocol.ImageID(m.GetId()),
		Set: protocol.ImageID(m.GetSet()), Size: m.GetSize(), Exclusive: m.GetExclusive(), Taken: m.GetTakenNs(), Hold: m.GetHoldNs()}
}
