package server

import (
	"context"
	"net/http"
	"slices"

	"lunar/appliance/api"
)

// Web manages who may sign in at the web console. Errors are *api.Error where the user can do something.
type Web interface {
	Web(ctx context.Context) (api.Web, error)
	WebUsers(ctx context.Context) ([]api.WebUser, error)
	AddWebUser(ctx context.Context, r api.AddWebUser) (api.WebUser, error)
	SetWebPassword(ctx context.Context, name, password string) error
	RemoveWebUser(ctx context.Context, name string) error
}

func (s *Server) webRoutes() []route {
	if s.o.Web == nil {
		return nil
	}
	return []route{
		{"GET /v1/web", answer(func(r *http.Request) (api.Web, error) { return s.o.Web.Web(r.Context()) })},
		{"GET /v1/web/users", answer(func(r *http.Request) ([]api.WebUser, error) { return s.o.Web.WebUsers(r.Context()) })},
		{"POST /v1/web/users", answerTo(func(r *http.Request, in api.AddWebUser) (api.WebUser, error) {
			return s.o.Web.AddWebUser(r.Context(), in)
		})},
		{"PUT /v1/web/users/{user}/password", performTo(func(r *http.Request, in api.SetWebPassword) error {
			return s.o.Web.SetWebPassword(r.Context(), r.PathValue("user"), in.Password)
		})},
		{"DELETE /v1/web/users/{user}", perform(func(r *http.Request) error {
			return s.o.Web.RemoveWebUser(r.Context(), r.PathValue("user"))
		})},
	}
}

// allRoutes is the whole API of this node.
func (s *Server) allRoutes() []route {
	return slices.Concat(s.routes(), s.snapshotRoutes(), s.lineRoutes(), s.webRoutes(), s.traceRoutes())
}

// Patterns are those of all calls, as http.ServeMux writes them.
func (s *Server) Patterns() []string {
	var out []string
	for _, r := range s.allRoutes() {
		out = append(out, r.pattern)
	}
	slices.Sort(out)
	return out
}
