package cluster

import (
	"fmt"
	"time"
)

// MaxHooks bounds the hooks of a volume, which are in one record.
const MaxHooks = 256

// Hook is what makes an image's application consistent around a snapshot; package hook runs it.
type Hook struct {
	Node   string        `json:"node"` // where it runs
	Before string        `json:"before,omitempty"`
	After  string        `json:"after,omitempty"`
	Agent  string        `json:"agent,omitempty"` // unix socket of a QEMU guest agent
	Limit  time.Duration `json:"limit"`
}

// SetHook sets the hook of the image at path; nil clears it.
func (v *Volume) SetHook(path string, h *Hook) error {
	if h == nil {
		delete(v.Hooks, path)
		return nil
	}
	if _, has := v.Hooks[path]; !has && len(v.Hooks) >= MaxHooks {
		return fmt.Errorf("%w: a volume has %d hooks at most", ErrFull, MaxHooks)
	}
	if v.Hooks == nil {
		v.Hooks = map[string]Hook{}
	}
	v.Hooks[path] = *h
	return nil
}

// MoveHook gives the hook of the image at one path to that at another, or to none.
func (v *Volume) MoveHook(from, to string) {
	h, ok := v.Hooks[from]
	delete(v.Hooks, from)
	if ok && to != "" {
		v.Hooks[to] = h
	}
}
