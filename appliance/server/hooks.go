package server

import (
	"context"
	"net/http"

	"lunar/appliance/api"
)

// Hooks manages what makes images consistent around a snapshot.
type Hooks interface {
	Hook(ctx context.Context, volume, path string) (api.Hook, error)
	SetHook(ctx context.Context, volume, path string, h api.Hook) (api.Hook, error)
	ClearHook(ctx context.Context, volume, path string) error
}

func (s *Server) hookRoutes() []route {
	return []route{
		{"GET /v1/images/{volume}/{path}/hook", answer(s.showHook)},
		{"PUT /v1/images/{volume}/{path}/hook", answerTo(s.setHook)},
		{"DELETE /v1/images/{volume}/{path}/hook", perform(s.clearHook)},
	}
}

func (s *Server) showHook(r *http.Request) (api.Hook, error) {
	return s.o.Images.Hook(r.Context(), r.PathValue("volume"), r.PathValue("path"))
}

func (s *Server) setHook(r *http.Request, in api.Hook) (api.Hook, error) {
	return s.o.Images.SetHook(r.Context(), r.PathValue("volume"), r.PathValue("path"), in)
}

func (s *Server) clearHook(r *http.Request) error {
	return s.o.Images.ClearHook(r.Context(), r.PathValue("volume"), r.PathValue("path"))
}
