package server

import (
	"context"
	"net/http"

	"lunar/appliance/api"
)

// Transfers lets content in and out.
type Transfers interface {
	// Transfer opens an image, and tells ready where; it returns when the transfer has ended: it was finished or
	// dropped, or ctx has ended, which drops it.
	Transfer(ctx context.Context, r api.Transfer, ready func(api.TransferPoint) error) error
	// FinishTransfer ends one whose content was moved.
	FinishTransfer(ctx context.Context, id string) (api.Image, error)
	// DropTransfer ends one that was given up, and returns when nothing of it is left.
	DropTransfer(ctx context.Context, id string) error
}

func (s *Server) transferRoutes() []route {
	return []route{
		{"POST /v1/transfers", s.openTransfer},
		{"POST /v1/transfers/{id}/finish", answer(s.finishTransfer)},
		{"DELETE /v1/transfers/{id}", perform(s.dropTransfer)},
	}
}

// openTransfer answers with one line, and then lasts as long as the transfer: a caller that dies ends it.
func (s *Server) openTransfer(w http.ResponseWriter, r *http.Request) error {
	in, err := decode[api.Transfer](w, r)
	if err != nil {
		return err
	}
	return s.o.Transfers.Transfer(r.Context(), in, func(p api.TransferPoint) error {
		w.Header().Set("Content-Type", "application/x-ndjson")
		if err := encode(w, p); err != nil {
			return err
		}
		return http.NewResponseController(w).Flush()
	})
}

func (s *Server) finishTransfer(r *http.Request) (api.Image, error) {
	return s.o.Transfers.FinishTransfer(r.Context(), r.PathValue("id"))
}

func (s *Server) dropTransfer(r *http.Request) error {
	return s.o.Transfers.DropTransfer(r.Context(), r.PathValue("id"))
}
