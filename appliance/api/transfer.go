package api

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"time"
)

// Transfer opens an image for the one who asks, to be filled or to be read whole, by NBD.
type Transfer struct {
	Image  string `json:"image"`            // VOLUME/PATH
	Export bool   `json:"export,omitempty"` // read it as it is now; else a new image is filled

	// Of an import.
	Size  int64 `json:"size,omitempty"`  // bytes that a guest sees
	Data  int64 `json:"data,omitempty"`  // bytes of them that will be written, as far as is known
	Thick bool  `json:"thick,omitempty"` // allocate everything first
	Force bool  `json:"force,omitempty"` // take the place of an image that is there
}

// TransferPoint is where an image of a transfer is served.
type TransferPoint struct {
	ID     string    `json:"id"`
	Socket string    `json:"socket"` // a unix socket on the node, of the node's user
	Name   string    `json:"name"`   // of the NBD export
	Size   int64     `json:"size"`   // bytes
	Taken  time.Time `json:"taken"`  // an export shows the image as it was then
}

// endLimit bounds the wait for the end of a transfer that was given up.
const endLimit = 30 * time.Second

// Transfer opens an image and has use move its content. When use returns without an error, an import's image gets
// its name; else, and when the caller dies, nothing of it stays.
func (c *Client) Transfer(ctx context.Context, r Transfer, use func(context.Context, TransferPoint) error) (out Image, err error) {
	held, release := context.WithCancel(context.WithoutCancel(ctx)) // the node ends the transfer with this call
	defer release()
	stop := context.AfterFunc(ctx, release) // only until it is open: then DELETE waits until nothing is left
	err = c.exchange(held, http.MethodPost, "/v1/transfers", r, func(body io.Reader) error {
		var p TransferPoint
		if err := json.NewDecoder(body).Decode(&p); err != nil {
			return c.unreachable(ctx, err)
		}
		if stop() {
			err = use(ctx, p)
		} else {
			err = ctx.Err()
		}
		if err != nil {
			limited, cancel := context.WithTimeout(held, endLimit)
			defer cancel()
			return c.given(err, c.do(limited, http.MethodDelete, transferPath(p.ID), nil, nil))
		}
		out, err = call[Image](held, c, http.MethodPost, transferPath(p.ID)+"/finish", nil)
		return err
	})
	if errors.Is(err, context.Canceled) && ctx.Err() != nil {
		return out, ctx.Err()
	}
	return out, err
}

// given is why a transfer was given up; what was left behind is told too.
func (c *Client) given(why, left error) error {
	if left == nil || CodeOf(left) == NotFound || CodeOf(left) == Unreachable {
		return why
	}
	return Errorf(Failed, "%v; %v", why, left)
}

func transferPath(id string) string { return "/v1/transfers/" + url.PathEscape(id) }
