package server

import (
	"context"
	"net/http"

	"lunar/appliance/api"
)

// Backups holds volumes for backup tools.
type Backups interface {
	Backups(ctx context.Context) ([]api.Backup, error)
	BeginBackup(ctx context.Context, r api.BeginBackup) (api.Backup, error)
	// AwaitBackup returns when an attached backup has ended, with the reason; when ctx ends before, it ends the backup.
	AwaitBackup(ctx context.Context, b api.Backup) string
	// EndBackup ends a backup in order, by its ID or its volume's name.
	EndBackup(ctx context.Context, name string) error
}

func (s *Server) backupRoutes() []route {
	return []route{
		{"GET /v1/backups", answer(func(r *http.Request) ([]api.Backup, error) { return s.o.Backups.Backups(r.Context()) })},
		{"POST /v1/backups", s.beginBackup},
		{"DELETE /v1/backups/{name}", perform(func(r *http.Request) error { return s.o.Backups.EndBackup(r.Context(), r.PathValue("name")) })},
	}
}

// beginBackup answers an attached caller with a line, and with another one at the backup's end.
func (s *Server) beginBackup(w http.ResponseWriter, r *http.Request) error {
	in, err := decode[api.BeginBackup](w, r)
	if err != nil {
		return err
	}
	b, err := s.o.Backups.BeginBackup(r.Context(), in)
	if err != nil {
		return err
	}
	if !in.Attached {
		return reply(w, b)
	}
	ctx, gone := context.WithCancel(r.Context())
	defer gone()
	w.Header().Set("Content-Type", "application/x-ndjson")
	if err := encode(w, b); err != nil || http.NewResponseController(w).Flush() != nil {
		gone()
	}
	return encode(w, api.BackupEnd{Reason: s.o.Backups.AwaitBackup(ctx, b)})
}
