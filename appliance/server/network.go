package server

import (
	"context"
	"net/http"

	"lunar/appliance/api"
)

// Networks tells of the cluster's networks. Errors are *api.Error where the user can do something.
type Networks interface {
	Networks(ctx context.Context) (api.Networks, error)
	SetNetwork(ctx context.Context, name string, r api.SetNetwork) (api.Network, error)
	Heartbeats(ctx context.Context) (api.Heartbeats, error)
	ValidateCluster(ctx context.Context) (api.Validation, error)
}

func (s *Server) networkRoutes() []route {
	return []route{
		{"GET /v1/networks", answer(func(r *http.Request) (api.Networks, error) { return s.o.Networks.Networks(r.Context()) })},
		{"PATCH /v1/networks/{network}", answerTo(s.setNetwork)},
		{"GET /v1/heartbeats", answer(func(r *http.Request) (api.Heartbeats, error) { return s.o.Networks.Heartbeats(r.Context()) })},
		{"POST /v1/cluster/validate", answer(func(r *http.Request) (api.Validation, error) {
			return s.o.Networks.ValidateCluster(r.Context())
		})},
	}
}

func (s *Server) setNetwork(r *http.Request, in api.SetNetwork) (api.Network, error) {
	return s.o.Networks.SetNetwork(r.Context(), r.PathValue("network"), in)
}
