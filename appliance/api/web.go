package api

import (
	"context"
	"net/http"
	"net/url"
	"time"
)

// The roles of who signs in at the web console.
const (
	WebAdmin    = "admin"     // sees and changes
	WebReadOnly = "read-only" // sees
)

// WebUser may sign in at the web console of every node.
type WebUser struct {
	Name    string    `json:"name"`
	Role    string    `json:"role"` // WebAdmin or WebReadOnly
	Changed time.Time `json:"changed"`
}

// AddWebUser makes a user.
type AddWebUser struct {
	Name     string `json:"name"`
	Role     string `json:"role"`
	Password string `json:"password"`
}

// SetWebPassword gives a user another password; who is signed in by the old one has to do it anew.
type SetWebPassword struct {
	Password string `json:"password"`
}

// Web is the web console of a node.
type Web struct {
	Node        string          `json:"node"`
	Address     string          `json:"address,omitempty"` // where it listens; empty: nowhere
	TLS         bool            `json:"tls"`
	Certificate *WebCertificate `json:"certificate,omitempty"`
	Sessions    int             `json:"sessions"`         // that are signed in
	Reason      string          `json:"reason,omitempty"` // why it does not listen
}

// WebCertificate is what browsers are shown.
type WebCertificate struct {
	Subject  string    `json:"subject"`
	Issuer   string    `json:"issuer"`
	Names    []string  `json:"names"`  // and addresses for which it is good
	SHA256   string    `json:"sha256"` // fingerprint, as browsers show it
	NotAfter time.Time `json:"notAfter"`
}

// Web tells how the node's web console is.
func (c *Client) Web(ctx context.Context) (Web, error) {
	return call[Web](ctx, c, http.MethodGet, "/v1/web", nil)
}

// WebUsers lists who may sign in, ordered by name.
func (c *Client) WebUsers(ctx context.Context) ([]WebUser, error) {
	return call[[]WebUser](ctx, c, http.MethodGet, "/v1/web/users", nil)
}

// AddWebUser lets one more sign in.
func (c *Client) AddWebUser(ctx context.Context, r AddWebUser) (WebUser, error) {
	return call[WebUser](ctx, c, http.MethodPost, "/v1/web/users", r)
}

// SetWebPassword changes a user's password.
func (c *Client) SetWebPassword(ctx context.Context, name, password string) error {
	return c.do(ctx, http.MethodPut, "/v1/web/users/"+url.PathEscape(name)+"/password", SetWebPassword{password}, nil)
}

// RemoveWebUser removes a user and ends their sessions.
func (c *Client) RemoveWebUser(ctx context.Context, name string) error {
	return c.do(ctx, http.MethodDelete, "/v1/web/users/"+url.PathEscape(name), nil, nil)
}
