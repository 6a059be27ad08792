package server

import (
	"context"
	"net/http"

	"lunar/appliance/api"
)

// Traces tells where I/O spends its time. Errors are *api.Error where the user can do something.
type Traces interface {
	// Top looks at the whole cluster for q.Window; q is filled in.
	Top(ctx context.Context, q api.TopQuery) (api.Top, error)
	// TraceIO calls fn each q.Interval, until q.For is over, ctx ends or fn fails; q is filled in.
	TraceIO(ctx context.Context, q api.TraceQuery, fn func(api.TraceIO) error) error
}

func (s *Server) traceRoutes() []route {
	if s.o.Traces == nil {
		return nil
	}
	return []route{
		{"GET /v1/top", answer(s.top)},
		{"GET /v1/trace/io", s.streamTrace},
	}
}

func (s *Server) top(r *http.Request) (api.Top, error) {
	q, err := api.ParseTopQuery(r.URL.Query())
	if err != nil {
		return api.Top{}, err
	}
	return s.o.Traces.Top(r.Context(), q)
}

// streamTrace sends a JSON line per interval.
func (s *Server) streamTrace(w http.ResponseWriter, r *http.Request) error {
	q, err := api.ParseTraceQuery(r.URL.Query())
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	flush := http.NewResponseController(w).Flush
	return s.o.Traces.TraceIO(r.Context(), q, func(t api.TraceIO) error {
		if err := encode(w, t); err != nil {
			return err
		}
		return flush()
	})
}
