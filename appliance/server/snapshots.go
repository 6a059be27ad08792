package server

import (
	"context"
	"net/http"

	"lunar/appliance/api"
)

// Snapshots manages snapshots of images.
type Snapshots interface {
	Hooks

	Snapshots(ctx context.Context, volume string) ([]api.Snapshot, error)
	CreateSnapshot(ctx context.Context, r api.CreateSnapshot) (api.SnapshotSet, error)
	DeleteSnapshot(ctx context.Context, volume, path, name string, force bool) error // an empty path: all of it
	Revert(ctx context.Context, volume, path, name string, force bool) (api.Image, error)
	Diff(ctx context.Context, volume, path, from, to string) (api.SnapshotDiff, error)
}

func (s *Server) snapshotRoutes() []route {
	return append(s.hookRoutes(), []route{
		{"GET /v1/snapshots", answer(s.listSnapshots)},
		{"POST /v1/snapshots", answerTo(s.createSnapshot)},
		{"GET /v1/snapshots/{volume}/diff", answer(s.diffSnapshots)},
		{"DELETE /v1/snapshots/{volume}/{name}", perform(s.deleteSnapshot)},
		{"POST /v1/snapshots/{volume}/{name}/revert", answerTo(s.revertImage)},
	}...)
}

func (s *Server) listSnapshots(r *http.Request) ([]api.Snapshot, error) {
	return s.o.Images.Snapshots(r.Context(), r.FormValue("volume"))
}

func (s *Server) createSnapshot(r *http.Request, in api.CreateSnapshot) (api.SnapshotSet, error) {
	return s.o.Images.CreateSnapshot(r.Context(), in)
}

func (s *Server) diffSnapshots(r *http.Request) (api.SnapshotDiff, error) {
	return s.o.Images.Diff(r.Context(), r.PathValue("volume"), r.FormValue("path"), r.FormValue("from"), r.FormValue("to"))
}

func (s *Server) deleteSnapshot(r *http.Request) error {
	force, err := boolean(r, "force")
	if err != nil {
		return err
	}
	return s.o.Images.DeleteSnapshot(r.Context(), r.PathValue("volume"), r.FormValue("path"), r.PathValue("name"), force)
}

func (s *Server) revertImage(r *http.Request, in api.RevertImage) (api.Image, error) {
	return s.o.Images.Revert(r.Context(), r.PathValue("volume"), in.Path, r.PathValue("name"), in.Force)
}
