package iscsi

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Errors of the server's life.
var (
	ErrClosed    = errors.New("iscsi: the server is closed")
	ErrNoSession = errors.New("iscsi: no session of this handle")
)

// Server is an iSCSI target node: its portals, its targets and their sessions. All methods may be
// called from any goroutine that is not a lane.
type Server struct {
	opts     Options
	reactors []*reactor
	sessions *registry
	lobby    *lobby
	exports  atomic.Pointer[map[string]*Export] // by lower-case name; replaced, never changed
	portals  atomic.Pointer[[]*portal]          // replaced, never changed
	peers    atomic.Pointer[[]Peer]             // replaced, never changed
	group    atomic.Uint32                      // of the portals that name none
	open     atomic.Int64                       // connections
	lent     atomic.Int64                       // bytes of connections' Pages
	totals   totals

	mu     sync.Mutex // guards closed and the replacing of exports and portals
	closed bool
	stop   chan struct{} // closed by Close
}

// New makes a server on opts.Lanes; it has no portal and no target yet. The error wraps ErrOptions.
func New(opts Options) (*Server, error) {
	if err := opts.Validate(); err != nil {
		return nil, err
	}
	opts.fill()
	s := &Server{opts: opts, sessions: newRegistry(), lobby: newLobby(opts.MaxPending), stop: make(chan struct{})}
	s.exports.Store(&map[string]*Export{})
	s.portals.Store(&[]*portal{})
	s.peers.Store(&[]Peer{})
	s.group.Store(DefaultGroup)
	for _, l := range opts.Lanes {
		r := newReactor(s, l)
		if err := l.Post(r.install); err != nil {
			return nil, fmt.Errorf("iscsi: lane %d: %w", l.Index(), err)
		}
		s.reactors = append(s.reactors, r)
	}
	return s, nil
}

// AddPortal starts to accept on p.Listener, which the server closes from then on, also when
// AddPortal fails.
func (s *Server) AddPortal(p Portal) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return errors.Join(ErrClosed, p.Listener.Close())
	}
	own := &portal{Portal: p, server: s}
	all := append(slices.Clone(*s.portals.Load()), own)
	s.portals.Store(&all)
	own.ended.Add(1)
	go own.serve()
	return nil
}

// RemovePortal stops to accept at addr, an address that Portals gives. Its sessions stay.
func (s *Server) RemovePortal(addr net.Addr) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := slices.Clone(*s.portals.Load())
	i := slices.IndexFunc(all, func(p *portal) bool { return p.Listener.Addr().String() == addr.String() })
	if i < 0 {
		return fmt.Errorf("iscsi: remove portal %s: %w", addr, net.ErrClosed)
	}
	gone := all[i]
	all = slices.Delete(all, i, i+1)
	s.portals.Store(&all)
	return gone.close()
}

// Portals are the listeners' addresses.
func (s *Server) Portals() []net.Addr {
	var addrs []net.Addr
	for _, p := range *s.portals.Load() {
		addrs = append(addrs, p.Listener.Addr())
	}
	return addrs
}

// AddTarget lets initiators see and use a target. The error wraps ErrTargetExists, ErrBadName or
// ErrBadCredential.
func (s *Server) AddTarget(e Export) error {
	e.Name = strings.ToLower(e.Name)
	if err := e.validate(); err != nil {
		return fmt.Errorf("iscsi: add target: %w", err)
	}
	return s.replaceExports(func(m map[string]*Export) error {
		if m[e.Name] != nil {
			return fmt.Errorf("%w: %s", ErrTargetExists, e.Name)
		}
		m[e.Name] = &e
		return nil
	})
}

// SetAccess changes who may log in to a target from now on; sessions that exist stay.
func (s *Server) SetAccess(name string, a Access) error {
	return s.replaceExports(func(m map[string]*Export) error {
		old := m[strings.ToLower(name)]
		if old == nil {
			return fmt.Errorf("%w: %s", ErrNoTarget, name)
		}
		e := *old
		e.Access = a
		m[e.Name] = &e
		return e.validate()
	})
}

// RemoveTarget hides a target, asks its initiators to log out, and returns when its last session
// has ended. It drops those that stay longer than Options.LogoutTime. When ctx ends first the
// target is hidden, and its sessions still go.
func (s *Server) RemoveTarget(ctx context.Context, name string) error {
	name = strings.ToLower(name)
	err := s.replaceExports(func(m map[string]*Export) error {
		if m[name] == nil {
			return fmt.Errorf("%w: %s", ErrNoTarget, name)
		}
		delete(m, name)
		return nil
	})
	if err != nil {
		return err
	}
	return s.endSessions(ctx, name)
}

// Targets are the names of the targets, sorted.
func (s *Server) Targets() []string { return slices.Sorted(maps.Keys(*s.exports.Load())) }

func (s *Server) replaceExports(change func(map[string]*Export) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return ErrClosed
	}
	m := maps.Clone(*s.exports.Load())
	if err := change(m); err != nil {
		return err
	}
	s.exports.Store(&m)
	return nil
}

func (s *Server) export(name string) *Export { return (*s.exports.Load())[strings.ToLower(name)] }

func (s *Server) endSessions(ctx context.Context, target string) error {
	left := func() bool {
		all := s.sessions.list(target)
		for _, x := range all {
			if x.asked.CompareAndSwap(false, true) {
				x.conn.post(x.conn.askToLeave)
			}
		}
		return len(all) == 0
	}
	if err := s.await(ctx, left); err != nil {
		return fmt.Errorf("iscsi: sessions of %s are still ending: %w", target, err)
	}
	return nil
}

// Close stops accepting, asks every initiator to log out, lets commands under way finish and
// closes the connections. It returns when the last one is gone or when ctx ends; connections that
// are left then were cut, and only their backends' answers are outstanding.
func (s *Server) Close(ctx context.Context) error {
	if !s.shut() {
		return ErrClosed
	}
	var errs []error
	for _, p := range *s.portals.Load() {
		errs = append(errs, p.close())
	}
	s.onReactors((*reactor).askAllToLeave)
	none := func() bool { return s.open.Load() == 0 }
	if err := s.await(ctx, none); err != nil {
		s.onReactors((*reactor).cutAll)
		errs = append(errs, fmt.Errorf("iscsi: close: %d connections were cut: %w", s.open.Load(), err))
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		errs = append(errs, s.await(last, none))
	}
	return errors.Join(errs...)
}

func (s *Server) shut() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.closed = true
	close(s.stop)
	s.sessions.close()
	return true
}

func (s *Server) onReactors(fn func(*reactor)) {
	for _, r := range s.reactors {
		_ = r.lane.Post(func() { fn(r) })
	}
}

// awaitStep is how often await looks.
const awaitStep = 5 * time.Millisecond

func (s *Server) await(ctx context.Context, done func() bool) error {
	t := time.NewTicker(awaitStep)
	defer t.Stop()
	for !done() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
		}
	}
	return nil
}

// pause waits between two failed accepts.
func (s *Server) pause(d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-s.stop:
	}
}

// refusals is how many connections beyond MaxConnections are kept just long enough to be told so.
const refusals = 64

// adopt takes an accepted connection over from the net package.
func (s *Server) adopt(p *portal, nc net.Conn) {
	remote, local := nc.RemoteAddr(), nc.LocalAddr()
	fd, err := detach(nc)
	if err != nil {
		s.opts.Log.Warn("iscsi: connection lost at accept", "remote", remote, "error", err)
		return
	}
	s.admit(p, fd, remote, local)
}

// admit hands a connection, its descriptor included, to the least loaded lane.
func (s *Server) admit(p *portal, fd int, remote, local net.Addr) {
	n := int(s.open.Add(1))
	if n > s.opts.MaxConnections+refusals {
		s.dropped(fd)
		return
	}
	tune(fd, s.opts.StallTime)
	r := slices.MinFunc(s.reactors, func(a, b *reactor) int { return int(a.load.Load() - b.load.Load()) })
	r.load.Add(1)
	c := newConn(r, p, remote, local)
	c.refused = n > s.opts.MaxConnections && !s.pushOut(s.lobby.makeRoom())
	if !c.refused {
		s.pushOut(s.lobby.enter(c))
	}
	if err := r.lane.Post(func() { c.open(fd) }); err != nil {
		_ = unix.Close(fd)
		c.leaveServer()
	}
}

// pushOut ends the connection that has to make room; false when there is none.
func (s *Server) pushOut(c *conn) bool {
	if c == nil {
		return false
	}
	s.totals.refused.Add(1)
	c.pushOut()
	return true
}

func (s *Server) dropped(fd int) {
	_ = unix.Close(fd)
	s.open.Add(-1)
}
