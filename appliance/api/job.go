package api

import (
	"context"
	"net/http"
	"time"
)

// Job is a long operation that is under way on a node.
type Job struct {
	Kind   string    `json:"kind"`            // as in the event that will tell its end
	Object string    `json:"object"`          // VOLUME/PATH, or a device's path
	Done   int64     `json:"done,omitempty"`  // bytes
	Total  int64     `json:"total,omitempty"` // bytes; 0: it is not known how far it is
	Since  time.Time `json:"since"`
}

// Jobs lists what is under way, the oldest first.
func (c *Client) Jobs(ctx context.Context) ([]Job, error) {
	return call[[]Job](ctx, c, http.MethodGet, "/v1/jobs", nil)
}
