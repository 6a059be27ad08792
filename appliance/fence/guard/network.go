package guard

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Bounds of what other nodes may ask of a guard.
const (
	maxCallers  = 16               // connections at a time; more are closed
	hearLimit   = 2 * time.Second  // for a handshake and the line
	proveLimit  = 60 * time.Second // for the answer
	bindPause   = 20 * time.Millisecond
	bindTries   = 10 // between two complaints in the log: 1, 10, 100 …
	maxWordWait = time.Second
)

// network answers other nodes. Its goroutines end with the process.
type network struct {
	s        *server
	log      *slog.Logger
	identity atomic.Pointer[identity]
	places   chan struct{} // one token per connection that may be open

	mu      sync.Mutex // guards earlier
	earlier answer     // what the guard of the daemon before said of its incarnations
}

// answerOthers begins to answer other nodes, or goes on with other credentials.
func (s *server) answerOthers(c *Credentials) error {
	if c == nil {
		return errors.New("no credentials came with the request")
	}
	id, err := c.identity()
	if err != nil {
		return err
	}
	if s.net == nil {
		n := &network{s: s, log: s.log, places: make(chan struct{}, maxCallers)}
		n.identity.Store(id)
		s.net = n
		go n.run(id.address)
		return nil
	}
	if was := s.net.identity.Load(); was.address != id.address || was.name != id.name {
		return fmt.Errorf("the guard answers as %s on %s already", was.name, was.address)
	}
	s.net.identity.Store(id)
	return nil
}

func (n *network) run(address string) {
	l := n.bind(address)
	n.log.Info("the guard answers other nodes", "address", address)
	for {
		c, err := l.Accept()
		if err != nil {
			time.Sleep(bindPause) // out of descriptors or memory, for a moment
			continue
		}
		select {
		case n.places <- struct{}{}:
			go func() {
				defer func() { <-n.places }()
				n.answer(c)
			}()
		default:
			_ = c.Close()
		}
	}
}

// bind has the port in the end: its other holder is the guard of this node's daemon before, which gives it up when
// that daemon's writes have ended, or some time after its death in any case.
func (n *network) bind(address string) net.Listener {
	for try, complain := 1, 1; ; try++ {
		l, err := net.Listen("tcp", address)
		if err == nil {
			return l
		}
		if errors.Is(err, unix.EADDRINUSE) {
			err = errors.Join(err, n.takeOver(address))
		}
		if try == complain {
			n.log.Warn("the guard cannot answer other nodes yet", "address", address, "error", err)
			complain *= bindTries
		}
		time.Sleep(bindPause)
	}
}

// takeOver asks the holder of the port for it, and keeps what it says of the incarnations before. It does so when its own
// daemon has an incarnation: from then on what is said of others can be told from that.
func (n *network) takeOver(address string) error {
	if first, _ := n.s.word.incarnations(); first == 0 {
		return errors.New("the daemon has no session yet")
	}
	ctx, cancel := context.WithTimeout(context.Background(), proveLimit)
	defer cancel()
	a, err := call(ctx, address, n.identity.Load().clientTLS(), order{verb: verbYield})
	if err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.earlier = a
	return nil
}

// inherited is what the guard before has said of an incarnation. It says nothing of those of this guard's own daemon, from
// first on, whatever their numbers: a database that was put back gives numbers again.
func (n *network) inherited(incarnation, first uint64) (answer, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	a := n.earlier
	if a.latest == 0 || first == 0 {
		return a, false
	}
	a.latest = min(a.latest, first-1)
	return a, a.first <= incarnation && incarnation <= a.latest
}

// answer serves one connection, for one order.
func (n *network) answer(plain net.Conn) {
	id := n.identity.Load()
	c := tls.Server(plain, id.serverTLS())
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(hearLimit))
	line, err := readLine(c)
	if err != nil {
		n.log.Warn("a caller was not understood", "from", c.RemoteAddr().String(), "error", err)
		return
	}
	o, err := parseOrder(line)
	if err != nil {
		_, _ = c.Write([]byte(answer{words: err.Error()}.line()))
		return
	}
	_ = c.SetDeadline(time.Now().Add(proveLimit + maxWordWait))
	ctx, cancel := context.WithTimeout(context.Background(), proveLimit)
	defer cancel()
	left := make(chan struct{})
	go func() { // the caller says nothing more: this ends when it goes, or at our Close
		defer close(left)
		_, _ = c.Read(make([]byte, 1))
		cancel()
	}()
	a := n.s.decide(ctx, o, c.ConnectionState().PeerCertificates[0].Subject.CommonName)
	_ = c.SetWriteDeadline(time.Now().Add(maxWordWait))
	_, err = c.Write([]byte(a.line()))
	_ = c.Close()
	<-left
	if n.log.Warn("another node was answered", "from", c.RemoteAddr().String(), "order", o.verb, "incarnation", o.incarnation, "answer", a.line(), "error", errorText(err)); o.verb == verbYield && a.latest != 0 {
		n.s.yield.Do(func() { close(n.s.yielded) })
	}
}

// remain keeps the guard after its daemon's end, to answer other nodes: until a later guard of this node takes its
// place, the time is over, or it is told to go by SIGTERM.
func (s *server) remain() {
	if _, latest := s.word.incarnations(); s.net == nil || latest == 0 {
		return
	}
	go s.proveSoon()
	told := make(chan os.Signal, 1)
	signal.Notify(told, syscall.SIGTERM)
	s.log.Info("the guard remains to answer other nodes", "for", s.linger)
	select {
	case <-told:
	case <-s.yielded:
	case <-time.After(s.linger):
	}
}

// proveSoon sees the end before anyone asks: the next daemon of this node may mount the device soon.
func (s *server) proveSoon() {
	ctx, cancel := context.WithTimeout(context.Background(), proveLimit)
	defer cancel()
	s.log.Info("the devices were looked at", "error", errorText(s.prove(ctx)))
}
