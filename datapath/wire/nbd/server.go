package nbd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Peer is who connected.
type Peer struct {
	Name    string // the common name of its certificate, "" in the clear
	Address string
}

// Limits bound a server. Zero is the default.
type Limits struct {
	Connections int           // default 1024; more are closed at once
	Handshakes  int           // of those, in the handshake: the oldest makes room; default 128
	Window      int           // requests of a connection under way; default 64
	Memory      int64         // bytes of payload in all; default 256 MiB, at least MaxPayload
	Handshake   time.Duration // for all of it, an earlier set's end included; default 10 s
	Stall       time.Duration // without progress in the middle of a message; default 30 s
}

func (l Limits) withDefaults() Limits {
	set(&l.Connections, 1024)
	set(&l.Handshakes, 128)
	set(&l.Window, 64)
	set(&l.Memory, 256<<20)
	set(&l.Handshake, 10*time.Second)
	set(&l.Stall, 30*time.Second)
	return l
}

func set[T int | int64 | uint64 | time.Duration](v *T, to T) {
	if *v == 0 {
		*v = to
	}
}

// Options sets a Server up.
type Options struct {
	TLS        *tls.Config // for STARTTLS; nil refuses it
	RequireTLS bool        // nothing but STARTTLS and ABORT before TLS
	// Open finds an export for a connection. An error that wraps ENOENT says that there is none,
	// protocol.ErrStale that it is elsewhere by now. Close is called on what it returns.
	Open func(ctx context.Context, name string, peer Peer) (Export, error)
	// List names the exports that a peer may see; nil refuses the question.
	List   func(ctx context.Context, peer Peer) []string
	Limits Limits
	Log    *slog.Logger // default slog.Default()
}

// Validate tells what is wrong with o.
func (o Options) Validate() error {
	l := o.Limits
	switch {
	case o.Open == nil:
		return fmt.Errorf("nbd: Options.Open is missing: %w", unix.EINVAL)
	case o.RequireTLS && o.TLS == nil:
		return fmt.Errorf("nbd: Options.RequireTLS without a Options.TLS: %w", unix.EINVAL)
	case l.Connections < 0 || l.Handshakes < 0 || l.Window < 0 || l.Memory < 0 || l.Handshake < 0 || l.Stall < 0:
		return fmt.Errorf("nbd: a negative value in Options.Limits: %w", unix.EINVAL)
	}
	return nil
}

// ErrStopped is what Serve returns after Stop.
var ErrStopped = errors.New("nbd: the server was stopped")

// Server serves exports. Its methods are safe from any goroutine.
type Server struct {
	opts   Options
	pool   *pool
	sets   registry
	crowd  crowd
	ctx    context.Context // of all connections; ended when Stop runs out of patience
	cancel context.CancelFunc
	wg     sync.WaitGroup // a connection each
	quiet  chan struct{}  // closed when Stop has seen everything answered

	quietOnce sync.Once

	mu        sync.Mutex // guards what follows
	stopped   bool
	listeners map[net.Listener]struct{}
	conns     map[*serverConn]struct{}
	young     []*serverConn // in the handshake, oldest first
}

// NewServer makes a server; Serve makes it work.
func NewServer(o Options) (*Server, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.TLS != nil {
		o.TLS = forThroughput(o.TLS)
	}
	o.Limits = o.Limits.withDefaults()
	s := &Server{opts: o, quiet: make(chan struct{}), pool: newPool(o.Limits.Memory), listeners: map[net.Listener]struct{}{}, conns: map[*serverConn]struct{}{}}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s, nil
}

// Serve accepts connections until Stop, which makes it return ErrStopped, or an error of l. It closes l.
func (s *Server) Serve(l net.Listener) error {
	if !s.listen(l) {
		return errors.Join(ErrStopped, l.Close())
	}
	defer s.unlisten(l)
	for {
		c, err := l.Accept()
		switch {
		case err == nil:
			s.start(c)
		case s.isStopped():
			return ErrStopped
		case errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || errors.Is(err, unix.ECONNABORTED) || errors.Is(err, unix.ENOBUFS):
			s.opts.Log.Warn("nbd: accept", "error", err)
			time.Sleep(acceptPause)
		default:
			return fmt.Errorf("nbd: accept: %w", err)
		}
	}
}

// acceptPause is for the machine to get descriptors or memory back.
const acceptPause = 50 * time.Millisecond

func (s *Server) listen(l net.Listener) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return false
	}
	s.listeners[l] = struct{}{}
	return true
}

func (s *Server) unlisten(l net.Listener) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.listeners, l)
	_ = l.Close()
}

func (s *Server) isStopped() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stopped
}

// start gives a connection its goroutine, unless there are too many.
func (s *Server) start(c net.Conn) {
	sc := newServerConn(s, c)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped || len(s.conns) >= s.opts.Limits.Connections {
		sc.cancel()
		_ = c.Close()
		return
	}
	if len(s.young) >= s.opts.Limits.Handshakes {
		_ = s.young[0].raw.Close()
		s.young = s.young[1:]
	}
	s.conns[sc] = struct{}{}
	s.young = append(s.young, sc)
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		defer s.ended(sc)
		sc.serve()
	}()
}

// grown takes a connection off those in the handshake.
func (s *Server) grown(sc *serverConn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forget(sc)
}

func (s *Server) forget(sc *serverConn) {
	for i, y := range s.young {
		if y == sc {
			s.young = append(s.young[:i:i], s.young[i+1:]...)
			return
		}
	}
}

func (s *Server) ended(sc *serverConn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forget(sc)
	delete(s.conns, sc)
}

// Connections is the number of connections, those in the handshake included.
func (s *Server) Connections() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns)
}

// Stop takes no more requests, waits until those under way have been answered, and closes. When ctx
// ends first they are cancelled; Stop still waits for them, because they use Exports.
func (s *Server) Stop(ctx context.Context) error {
	conns := s.closing()
	for _, sc := range conns {
		sc.finish()
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for _, sc := range conns {
			<-sc.muted
		}
		s.quietOnce.Do(func() { close(s.quiet) })
		s.wg.Wait()
	}()
	select {
	case <-done:
		s.cancel()
		return nil
	case <-ctx.Done():
	}
	s.cancel()
	for _, sc := range s.closing() {
		_ = sc.raw.Close()
	}
	<-done
	return fmt.Errorf("nbd: stop: requests were cut off: %w", ctx.Err())
}

// closing takes nothing new, and returns the connections there are.
func (s *Server) closing() []*serverConn {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopped = true
	for l := range s.listeners {
		_ = l.Close()
	}
	conns := make([]*serverConn, 0, len(s.conns))
	for sc := range s.conns {
		conns = append(conns, sc)
	}
	return conns
}

// End ends every connection of a node to a volume's images, and waits until none of their operations
// runs: for a node that was expelled.
func (s *Server) End(ctx context.Context, volume, node string) error {
	return s.sets.end(ctx, volume, node)
}
