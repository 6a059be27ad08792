package coordinator

import (
	"lunar/datapath/layout"
	"lunar/datapath/layout/protocol"
)

// Layout is what the file system has durably of an image that is open. It does not block.
func (c *Coordinator) Layout(call protocol.Call) (*layout.Layout, error) {
	im, err := c.image(call)
	if err != nil {
		return nil, err
	}
	defer c.calls.Done()
	im.mu.Lock()
	defer im.mu.Unlock()
	return im.layout, nil
}
