package api

import (
	"context"
	"net/http"
)

// Hook is what makes an image's application consistent around a snapshot: commands of a node, or a guest agent.
type Hook struct {
	Image   string `json:"image"`            // VOLUME/PATH
	Node    string `json:"node,omitempty"`   // where it runs; default: the one that is asked
	Before  string `json:"before,omitempty"` // command lines for /bin/sh
	After   string `json:"after,omitempty"`
	Agent   string `json:"agent,omitempty"` // in the place of commands: the unix socket of a QEMU guest agent
	LimitNS int64  `json:"limit_ns,omitempty"`
}

// Hook shows an image's hook; NotFound without one.
func (c *Client) Hook(ctx context.Context, image string) (Hook, error) {
	p, err := hookPath(image)
	if err != nil {
		return Hook{}, err
	}
	return call[Hook](ctx, c, http.MethodGet, p, nil)
}

// SetHook sets an image's hook, in the place of another one.
func (c *Client) SetHook(ctx context.Context, h Hook) (Hook, error) {
	p, err := hookPath(h.Image)
	if err != nil {
		return Hook{}, err
	}
	return call[Hook](ctx, c, http.MethodPut, p, h)
}

// ClearHook takes an image's hook away.
func (c *Client) ClearHook(ctx context.Context, image string) error {
	p, err := hookPath(image)
	if err != nil {
		return err
	}
	return c.do(ctx, http.MethodDelete, p, nil, nil)
}

func hookPath(image string) (string, error) {
	p, err := imagePath(image)
	return p + "/hook", err
}
