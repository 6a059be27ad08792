package api

import (
	"context"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// CreateSnapshot keeps images of one volume as they are at one instant.
type CreateSnapshot struct {
	Images []string `json:"images"`         // VOLUME/PATH each
	Name   string   `json:"name,omitempty"` // default: the time

	NoHooks bool `json:"no_hooks,omitempty"` // the images' hooks are not run
}

// SnapshotSet is a snapshot that was taken.
type SnapshotSet struct {
	Volume string   `json:"volume"`
	Name   string   `json:"name"`
	Images []string `json:"images"`  // VOLUME/PATH each
	HoldNS int64    `json:"hold_ns"` // for which the images' I/O was held

	Hooks    int      `json:"hooks,omitempty"`    // that were run
	Warnings []string `json:"warnings,omitempty"` // of hooks after it
}

// Snapshot is one image of a snapshot.
type Snapshot struct {
	Volume    string    `json:"volume"`
	Path      string    `json:"path"`
	Name      string    `json:"name"`
	Size      int64     `json:"size"`      // bytes that a guest saw
	Exclusive int64     `json:"exclusive"` // bytes that it alone occupies
	Taken     time.Time `json:"taken"`
	HoldNS    int64     `json:"hold_ns"`
}

// FullName is VOLUME/PATH@NAME.
func (s *Snapshot) FullName() string { return s.Volume + "/" + s.Path + "@" + s.Name }

// RevertImage makes an image what it was in a snapshot; Force loses what was written since.
type RevertImage struct {
	Path  string `json:"path"`
	Force bool   `json:"force,omitempty"`
}

// SnapshotDiff tells where an image differs between two snapshots.
type SnapshotDiff struct {
	Image   string      `json:"image"` // VOLUME/PATH
	From    string      `json:"from"`
	To      string      `json:"to"`
	Bytes   int64       `json:"bytes"` // in all
	Changed []ByteRange `json:"changed"`
}

// ByteRange is a range of an image, in bytes.
type ByteRange struct {
	Offset int64 `json:"offset"`
	Length int64 `json:"length"`
}

// SplitSnapshot cuts VOLUME/PATH@NAME, or VOLUME@NAME for all of a snapshot, at its last @.
func SplitSnapshot(name string) (volume, path, snapshot string, err error) {
	i := strings.LastIndexByte(name, '@')
	if i > 0 && i < len(name)-1 {
		volume, path, _ = strings.Cut(name[:i], "/")
		snapshot = name[i+1:]
	}
	if volume == "" || strings.HasSuffix(name[:max(0, i)], "/") {
		return "", "", "", Errorf(Invalid, "%q does not name a snapshot", name).WithHint("write it as VOLUME/PATH@SNAPSHOT, such as Volume1/web.img@monday")
	}
	return volume, path, snapshot, nil
}

// Snapshots lists the snapshots of one volume, or of all with an empty name.
func (c *Client) Snapshots(ctx context.Context, volume string) ([]Snapshot, error) {
	return call[[]Snapshot](ctx, c, http.MethodGet, "/v1/snapshots?volume="+url.QueryEscape(volume), nil)
}

// CreateSnapshot takes a snapshot.
func (c *Client) CreateSnapshot(ctx context.Context, r CreateSnapshot) (SnapshotSet, error) {
	return call[SnapshotSet](ctx, c, http.MethodPost, "/v1/snapshots", r)
}

// DeleteSnapshot removes VOLUME/PATH@NAME, or all of a snapshot by VOLUME@NAME; force is needed when it has
// data that nothing else has.
func (c *Client) DeleteSnapshot(ctx context.Context, name string, force bool) error {
	volume, path, snapshot, err := SplitSnapshot(name)
	if err != nil {
		return err
	}
	q := url.Values{"path": {path}}
	if force {
		q.Set("force", "true")
	}
	return c.do(ctx, http.MethodDelete, snapshotPath(volume, snapshot)+"?"+q.Encode(), nil, nil)
}

// Revert makes the image of VOLUME/PATH@NAME what it was in the snapshot.
func (c *Client) Revert(ctx context.Context, name string, force bool) (Image, error) {
	volume, path, snapshot, err := SplitSnapshot(name)
	if err != nil {
		return Image{}, err
	}
	return call[Image](ctx, c, http.MethodPost, snapshotPath(volume, snapshot)+"/revert", RevertImage{Path: path, Force: force})
}

// Diff compares two snapshots of one image, VOLUME/PATH@A and VOLUME/PATH@B.
func (c *Client) Diff(ctx context.Context, from, to string) (SnapshotDiff, error) {
	volume, path, a, err := SplitSnapshot(from)
	if err != nil {
		return SnapshotDiff{}, err
	}
	other, same, b, err := SplitSnapshot(to)
	if err != nil {
		return SnapshotDiff{}, err
	}
	if other != volume || same != path || path == "" {
		return SnapshotDiff{}, Errorf(Invalid, "%s and %s are not two snapshots of one image", from, to).
			WithHint("name one image twice: VOLUME/PATH@A VOLUME/PATH@B")
	}
	q := url.Values{"path": {path}, "from": {a}, "to": {b}}
	return call[SnapshotDiff](ctx, c, http.MethodGet, "/v1/snapshots/"+url.PathEscape(volume)+"/diff?"+q.Encode(), nil)
}

func snapshotPath(volume, snapshot string) string {
	return "/v1/snapshots/" + url.PathEscape(volume) + "/" + url.PathEscape(snapshot)
}
