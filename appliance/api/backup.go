package api

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"time"
)

// Bounds and defaults of a backup, of which the request says nothing.
const (
	BackupLimit    = 24 * time.Hour // after which a backup is ended
	MaxBackupLimit = 7 * 24 * time.Hour
	BackupWait     = 30 * time.Second // of a change of the volume's images, before it fails
	MaxBackupWait  = 10 * time.Minute
)

// BeginBackup asks for a volume's images as they are at one instant, to be read by NBD.
type BeginBackup struct {
	Volume   string   `json:"volume"`
	Images   []string `json:"images,omitempty"`   // VOLUME/PATH each; default: all
	Node     string   `json:"node,omitempty"`     // that coordinates and serves; default: the one that is asked
	Snapshot string   `json:"snapshot,omitempty"` // name under which it stays when the backup has ended in order
	Since    string   `json:"since,omitempty"`    // snapshot of the last backup: what has changed since is told
	Redirect bool     `json:"redirect,omitempty"` // all nodes' I/O goes through the coordinator meanwhile
	NoHooks  bool     `json:"no_hooks,omitempty"` // do not run the images' hooks around the snapshot
	Attached bool     `json:"attached,omitempty"` // it ends with the caller's connection
	Listen   string   `json:"listen,omitempty"`   // ADDRESS:PORT for NBD by TLS too

	LimitNS int64  `json:"limit_ns,omitempty"` // default BackupLimit
	WaitNS  *int64 `json:"wait_ns,omitempty"`  // default BackupWait; 0: changes fail at once
}

// Backup is one that is under way.
type Backup struct {
	ID       string        `json:"id"`
	Volume   string        `json:"volume"`
	Node     string        `json:"node"` // that coordinates and serves
	Snapshot string        `json:"snapshot"`
	Since    string        `json:"since,omitempty"`
	Keep     bool          `json:"keep"` // the snapshot stays when it ends in order
	Redirect bool          `json:"redirect"`
	Attached bool          `json:"attached"`
	Begun    time.Time     `json:"begun"`
	Until    time.Time     `json:"until"`              // when it is ended at the latest
	WaitNS   int64         `json:"wait_ns"`            // of a change, before it fails
	HoldNS   int64         `json:"hold_ns"`            // for which the images' I/O was held
	Hooks    int           `json:"hooks,omitempty"`    // of its images, which were run around the snapshot
	Warnings []string      `json:"warnings,omitempty"` // of hooks after it
	Socket   string        `json:"socket"`             // a unix socket on the node
	Address  string        `json:"address,omitempty"`
	Images   []BackupImage `json:"images"`
	Keys     *BackupKeys   `json:"keys,omitempty"`   // in the answer to its begin alone
	Silent   string        `json:"silent,omitempty"` // why the node does not tell more of it
}

// BackupImage is one image of a backup, read-only by NBD.
type BackupImage struct {
	Image   string `json:"image"`             // VOLUME/PATH
	Export  string `json:"export"`            // name of the NBD export
	URI     string `json:"uri"`               // by the unix socket
	TLSURI  string `json:"tls_uri,omitempty"` // by TLS, but the keys
	Size    int64  `json:"size"`              // bytes
	Data    int64  `json:"data"`              // bytes that are allocated
	Changed *int64 `json:"changed,omitempty"` // bytes since the other snapshot, at most
	Bitmap  string `json:"bitmap,omitempty"`  // metadata context that tells what has changed
	Read    int64  `json:"read"`              // bytes that were served
}

// BackupKeys let a tool in by TLS, in PEM: they are of this backup alone.
type BackupKeys struct {
	CA   string `json:"ca"`
	Cert string `json:"cert"`
	Key  string `json:"key"`
}

// BackupEnd is the last line to a caller that is attached.
type BackupEnd struct {
	Reason string `json:"reason"`
}

// Backups lists the backups that are under way on all nodes.
func (c *Client) Backups(ctx context.Context) ([]Backup, error) {
	return call[[]Backup](ctx, c, http.MethodGet, "/v1/backups", nil)
}

// BeginBackup begins a backup that lasts until it is ended or its limit has come.
func (c *Client) BeginBackup(ctx context.Context, r BeginBackup) (Backup, error) {
	r.Attached = false
	return call[Backup](ctx, c, http.MethodPost, "/v1/backups", r)
}

// EndBackup ends the backup of a volume, by its name or the backup's ID.
func (c *Client) EndBackup(ctx context.Context, name string) error {
	return c.do(ctx, http.MethodDelete, "/v1/backups/"+url.PathEscape(name), nil, nil)
}

// AttachedBackup begins a backup that ends with ctx or the caller's process, tells begun of it, and returns when it has
// ended, with the reason.
func (c *Client) AttachedBackup(ctx context.Context, r BeginBackup, begun func(Backup) error) (reason string, err error) {
	r.Attached = true
	err = c.exchange(ctx, http.MethodPost, "/v1/backups", r, func(body io.Reader) error {
		lines := bufio.NewReader(body)
		var b Backup
		if err := c.line(ctx, lines, &b); err != nil {
			return err
		}
		if err := begun(b); err != nil {
			return err
		}
		var end BackupEnd
		err := c.line(ctx, lines, &end)
		reason = end.Reason
		return err
	})
	return reason, err
}

// line reads one line of JSON.
func (c *Client) line(ctx context.Context, r *bufio.Reader, out any) error {
	data, err := r.ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(data, out)
	}
	if err != nil {
		return c.unreachable(ctx, err)
	}
	return nil
}
