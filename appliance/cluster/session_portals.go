package cluster

import "slices"

// SetPortals publishes where initiators reach this node's targets now. It returns before others know.
func (s *Session) SetPortals(portals []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if slices.Equal(s.options.Portals, portals) {
		return
	}
	s.options.Portals, s.dirty = slices.Clone(portals), true
	select {
	case s.wake <- struct{}{}:
	default:
	}
}
