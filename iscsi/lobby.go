package iscsi

import (
	"container/list"
	"net"
	"net/netip"
	"sync"
)

// lobby knows the connections that have not logged in, by where they come from. Whoever opens too
// many of them pushes out its own oldest; when the server is full, the largest crowd makes room.
type lobby struct {
	limit int // of one crowd

	mu     sync.Mutex // guards crowds, their lists and conn.waits
	crowds map[netip.Prefix]*list.List
}

func newLobby(limit int) *lobby {
	return &lobby{limit: limit, crowds: map[netip.Prefix]*list.List{}}
}

// origin is what a crowd has in common: an IPv4 address, or the 64 bits that an IPv6 site is given.
// Connections that have no address are one crowd.
func origin(a net.Addr) netip.Prefix {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.Prefix{}
	}
	ip := tcp.AddrPort().Addr().Unmap()
	bits := ip.BitLen()
	if ip.Is6() {
		bits = 64
	}
	p, _ := ip.Prefix(bits)
	return p
}

// enter adds a connection and returns the one that has to go for it, if any.
func (l *lobby) enter(c *conn) *conn {
	l.mu.Lock()
	defer l.mu.Unlock()
	crowd := l.crowds[c.origin]
	if crowd == nil {
		crowd = list.New()
		l.crowds[c.origin] = crowd
	}
	c.waits = crowd.PushBack(c)
	if crowd.Len() > l.limit {
		return l.push(crowd)
	}
	return nil
}

// makeRoom takes the oldest connection out of the largest crowd, nil when everyone is logged in.
func (l *lobby) makeRoom() *conn {
	l.mu.Lock()
	defer l.mu.Unlock()
	var largest *list.List
	for _, crowd := range l.crowds {
		if largest == nil || crowd.Len() > largest.Len() {
			largest = crowd
		}
	}
	if largest == nil {
		return nil
	}
	return l.push(largest)
}

// push takes out a crowd's oldest; mu is locked.
func (l *lobby) push(crowd *list.List) *conn {
	c, _ := crowd.Front().Value.(*conn)
	l.remove(c)
	return c
}

// leave takes out a connection that has logged in or ended. It may be called again.
func (l *lobby) leave(c *conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.waits != nil {
		l.remove(c)
	}
}

func (l *lobby) remove(c *conn) {
	crowd := l.crowds[c.origin]
	crowd.Remove(c.waits)
	c.waits = nil
	if crowd.Len() == 0 {
		delete(l.crowds, c.origin)
	}
}
