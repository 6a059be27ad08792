package server

import (
	"context"
	"encoding/json"
	"net/http"

	"lunar/appliance/api"
)

// Lines switches a node's part in a volume. Errors are *api.Error where the user can do something.
type Lines interface {
	OnlineVolume(ctx context.Context, name string) (api.Volume, error)
	OfflineVolume(ctx context.Context, name string, force bool) error
	// FollowVolume calls fn at once and at each change, until a line with End or until ctx or the node ends.
	FollowVolume(ctx context.Context, name string, fn func(api.VolumeLine) error) error
}

func (s *Server) lineRoutes() []route {
	if s.o.Lines == nil {
		return nil
	}
	return []route{
		{"POST /v1/volumes/{volume}/online", answer(s.onlineVolume)},
		{"POST /v1/volumes/{volume}/offline", perform(s.offlineVolume)},
		{"GET /v1/volumes/{volume}/follow", s.followVolume},
	}
}

func (s *Server) onlineVolume(r *http.Request) (api.Volume, error) {
	return s.o.Lines.OnlineVolume(r.Context(), r.PathValue("volume"))
}

func (s *Server) offlineVolume(r *http.Request) error {
	force, err := boolean(r, "force")
	if err != nil {
		return err
	}
	return s.o.Lines.OfflineVolume(r.Context(), r.PathValue("volume"), force)
}

// followVolume sends a JSON line per change, each at once.
func (s *Server) followVolume(w http.ResponseWriter, r *http.Request) error {
	w.Header().Set("Content-Type", "application/x-ndjson")
	flush := http.NewResponseController(w).Flush
	return s.o.Lines.FollowVolume(r.Context(), r.PathValue("volume"), func(l api.VolumeLine) error {
		if err := json.NewEncoder(w).Encode(l); err != nil {
			return err
		}
		return flush()
	})
}
