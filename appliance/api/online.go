package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
)

// VolumeLine is how one node has a volume, at a moment.
type VolumeLine struct {
	Volume      string `json:"volume"`
	Node        string `json:"node"` // that tells
	State       State  `json:"state"`
	Reason      string `json:"reason,omitempty"`
	Coordinator string `json:"coordinator,omitempty"` // node; empty: none is known
	Epoch       uint64 `json:"epoch,omitempty"`
	End         string `json:"end,omitempty"` // why there is no more to tell: the volume is off line on the node, or gone
}

// String says it for people.
func (l *VolumeLine) String() string {
	if l.End != "" {
		return fmt.Sprintf("%s is off line on %s: %s", l.Volume, l.Node, l.End)
	}
	text := string(l.State)
	if l.Reason != "" {
		text += " (" + l.Reason + ")"
	}
	switch l.Coordinator {
	case "":
		return text + "; no coordinator"
	case l.Node:
		return fmt.Sprintf("%s; coordinated here, on %s, epoch %d", text, l.Node, l.Epoch)
	}
	return fmt.Sprintf("%s; coordinated by %s, epoch %d", text, l.Coordinator, l.Epoch)
}

// OnlineVolume has the node take part in a volume again, and returns when it follows a coordinator.
func (c *Client) OnlineVolume(ctx context.Context, name string) (Volume, error) {
	return call[Volume](ctx, c, http.MethodPost, volumePath(name)+"/online", nil)
}

// OfflineVolume ends the node's part in a volume until OnlineVolume: it hands it over and lets its device go. force is
// needed while initiators are logged in to the volume's LUNs on this node.
func (c *Client) OfflineVolume(ctx context.Context, name string, force bool) error {
	return c.do(ctx, http.MethodPost, volumePath(name)+fmt.Sprintf("/offline?force=%t", force), nil, nil)
}

var errEnd = errors.New("the last line came")

// FollowVolume calls fn with how the node has the volume, now and at each change, until a line with End, which is the
// last, or until ctx ends. A node that ends before is Unreachable.
func (c *Client) FollowVolume(ctx context.Context, name string, fn func(VolumeLine) error) error {
	err := c.stream(ctx, volumePath(name)+"/follow", func(line []byte) error {
		var l VolumeLine
		if err := json.Unmarshal(line, &l); err != nil {
			return Errorf(Failed, "the node's answer cannot be read: %v", err)
		}
		if err := fn(l); err != nil {
			return err
		}
		if l.End != "" {
			return errEnd
		}
		return nil
	})
	switch {
	case errors.Is(err, errEnd):
		return nil
	case err != nil:
		return err
	case ctx.Err() != nil:
		return ctx.Err()
	}
	return Errorf(Unreachable, "the node at %s has stopped", c.socket)
}
