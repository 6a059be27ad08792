package api

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
)

// Version asks a node for its version.
func (c *Client) Version(ctx context.Context) (Version, error) {
	return call[Version](ctx, c, http.MethodGet, "/v1/version", nil)
}

// Volumes lists the volumes, ordered by name.
func (c *Client) Volumes(ctx context.Context) ([]Volume, error) {
	return call[[]Volume](ctx, c, http.MethodGet, "/v1/volumes", nil)
}

// AddVolume makes a device a volume and brings it on line.
func (c *Client) AddVolume(ctx context.Context, r AddVolume) (Volume, error) {
	return call[Volume](ctx, c, http.MethodPost, "/v1/volumes", r)
}

// Volume shows one volume.
func (c *Client) Volume(ctx context.Context, name string) (VolumeDetail, error) {
	return call[VolumeDetail](ctx, c, http.MethodGet, volumePath(name), nil)
}

// RenameVolume gives a volume another name; exports follow.
func (c *Client) RenameVolume(ctx context.Context, name, to string) error {
	return c.do(ctx, http.MethodPost, volumePath(name)+"/rename", RenameVolume{to}, nil)
}

// RedirectVolume switches redirected I/O on or off.
func (c *Client) RedirectVolume(ctx context.Context, name string, on bool) error {
	return c.do(ctx, http.MethodPost, volumePath(name)+"/redirect", RedirectVolume{on}, nil)
}

// MoveVolume makes another node the coordinator, and returns when it serves; an empty to leaves the choice.
func (c *Client) MoveVolume(ctx context.Context, name, to string) (MovedVolume, error) {
	return call[MovedVolume](ctx, c, http.MethodPost, volumePath(name)+"/move", MoveVolume{to})
}

// EjectVolume unmounts a volume and forgets it; its files stay on the device.
func (c *Client) EjectVolume(ctx context.Context, name string) error {
	return c.do(ctx, http.MethodDelete, volumePath(name), nil, nil)
}

// Images lists the images of one volume, or of all with an empty name.
func (c *Client) Images(ctx context.Context, volume string) ([]Image, error) {
	return call[[]Image](ctx, c, http.MethodGet, "/v1/images?volume="+url.QueryEscape(volume), nil)
}

// CreateImage makes or clones an image.
func (c *Client) CreateImage(ctx context.Context, r CreateImage) (Image, error) {
	return call[Image](ctx, c, http.MethodPost, "/v1/images", r)
}

// Image shows the image VOLUME/PATH.
func (c *Client) Image(ctx context.Context, name string) (Image, error) {
	path, err := imagePath(name)
	if err != nil {
		return Image{}, err
	}
	return call[Image](ctx, c, http.MethodGet, path, nil)
}

// ChangeImage resizes or renames an image.
func (c *Client) ChangeImage(ctx context.Context, name string, r ChangeImage) (Image, error) {
	path, err := imagePath(name)
	if err != nil {
		return Image{}, err
	}
	return call[Image](ctx, c, http.MethodPatch, path, r)
}

// DeleteImage removes an image; force is needed when it holds data.
func (c *Client) DeleteImage(ctx context.Context, name string, force bool) error {
	path, err := imagePath(name)
	if err != nil {
		return err
	}
	return c.do(ctx, http.MethodDelete, path+fmt.Sprintf("?force=%t", force), nil, nil)
}

func imagePath(name string) (string, error) {
	volume, path, err := SplitImage(name)
	return "/v1/images/" + url.PathEscape(volume) + "/" + url.PathEscape(path), err
}

// Targets lists the targets, ordered by name.
func (c *Client) Targets(ctx context.Context) ([]Target, error) {
	return call[[]Target](ctx, c, http.MethodGet, "/v1/targets", nil)
}

// CreateTarget makes a target and offers it on every portal.
func (c *Client) CreateTarget(ctx context.Context, name string) (Target, error) {
	return call[Target](ctx, c, http.MethodPost, "/v1/targets", CreateTarget{name})
}

// DeleteTarget removes a target; force is needed while sessions or LUNs are there.
func (c *Client) DeleteTarget(ctx context.Context, name string, force bool) error {
	return c.do(ctx, http.MethodDelete, targetPath(name)+fmt.Sprintf("?force=%t", force), nil, nil)
}

// Map exports an image in a target.
func (c *Client) Map(ctx context.Context, target string, r Map) (LUN, error) {
	return call[LUN](ctx, c, http.MethodPost, targetPath(target)+"/luns", r)
}

// Unmap takes a LUN out of a target.
func (c *Client) Unmap(ctx context.Context, target string, lun uint16) error {
	return c.do(ctx, http.MethodDelete, fmt.Sprintf("%s/luns/%d", targetPath(target), lun), nil, nil)
}

// Allow lets an initiator log in, with the first one all others are shut out; "all" lets every one in.
func (c *Client) Allow(ctx context.Context, target, initiator string) error {
	return c.do(ctx, http.MethodPut, targetPath(target)+"/allow/"+url.PathEscape(initiator), nil, nil)
}

// Disallow takes an initiator off the list.
func (c *Client) Disallow(ctx context.Context, target, initiator string) error {
	return c.do(ctx, http.MethodDelete, targetPath(target)+"/allow/"+url.PathEscape(initiator), nil, nil)
}

// SetCHAP sets or removes a target's credentials.
func (c *Client) SetCHAP(ctx context.Context, target string, r SetCHAP) error {
	return c.do(ctx, http.MethodPut, targetPath(target)+"/chap", r, nil)
}

// Sessions lists the iSCSI sessions of all nodes.
func (c *Client) Sessions(ctx context.Context) (Sessions, error) {
	return call[Sessions](ctx, c, http.MethodGet, "/v1/sessions", nil)
}

// Log calls fn with each event, oldest first, of one volume or of all with an empty name; with
// follow it goes on until ctx ends.
func (c *Client) Log(ctx context.Context, volume string, follow bool, fn func(Event) error) error {
	path := fmt.Sprintf("/v1/log?follow=%t&volume=%s", follow, url.QueryEscape(volume))
	return c.stream(ctx, path, func(line []byte) error {
		var e Event
		if err := json.Unmarshal(line, &e); err != nil {
			return Errorf(Failed, "the node's answer cannot be read: %v", err)
		}
		return fn(e)
	})
}

func volumePath(name string) string { return "/v1/volumes/" + url.PathEscape(name) }

func targetPath(name string) string { return "/v1/targets/" + url.PathEscape(name) }
