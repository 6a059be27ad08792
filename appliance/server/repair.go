package server

import (
	"context"
	"errors"
	"net/http"

	"lunar/appliance/api"
)

// Repairs checks and repairs volumes.
type Repairs interface {
	// RepairVolume tells each step; it ends with ctx.
	RepairVolume(ctx context.Context, name string, r api.Repair, tell func(api.RepairStep) error) (api.RepairResult, error)
}

func (s *Server) repairRoutes() []route {
	return []route{{"POST /v1/volumes/{volume}/repair", s.repairVolume}}
}

// repairVolume sends a line per step; what fails before the first one is an ordinary refusal.
func (s *Server) repairVolume(w http.ResponseWriter, r *http.Request) error {
	in, err := decode[api.Repair](w, r)
	if err != nil {
		return err
	}
	begun := false
	tell := func(step api.RepairStep) error {
		if !begun {
			w.Header().Set("Content-Type", "application/x-ndjson")
			begun = true
		}
		if err := encode(w, step); err != nil {
			return err
		}
		return http.NewResponseController(w).Flush()
	}
	result, err := s.o.Volumes.RepairVolume(r.Context(), r.PathValue("volume"), in, tell)
	switch {
	case err == nil:
		return tell(api.RepairStep{Phase: "done", Result: &result})
	case begun:
		_ = tell(api.RepairStep{Phase: "failed", Error: asError(err)})
	}
	return err
}

func asError(err error) *api.Error {
	var e *api.Error
	if errors.As(err, &e) {
		return e
	}
	return api.Errorf(api.Failed, "%v", err)
}
