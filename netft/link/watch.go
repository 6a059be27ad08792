package link

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"syscall"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"lunar/netft/internal/netns"
	"lunar/netft/network"
)

const (
	// gather is how long changes are gathered after a list was read. The first of a series is told at once.
	gather = 20 * time.Millisecond
	// retryFirst and retryLast bound the wait after the kernel could not be asked.
	retryFirst = 50 * time.Millisecond
	retryLast  = 5 * time.Second
	// receiveBuffer holds the kernel's messages until they are read, in bytes; what does not fit is
	// found by reading all anew.
	receiveBuffer = 256 << 10
)

// Watcher tells of interfaces until it is closed.
type Watcher struct {
	ns      *netns.Namespace
	log     *slog.Logger
	changed func([]network.Interface)
	cancel  context.CancelFunc
	done    chan struct{}
	// buffer is receiveBuffer, less in tests that overrun it.
	buffer int
	// overruns counts lost messages, for tests; only run's reader changes it.
	overruns func()
}

// Watch calls changed with all interfaces but loopback and network.ClusterInterface, by index: once
// before it returns, and after each change. It works in the network namespace of the calling
// thread, and until Close or the end of ctx. The list belongs to changed. The error says why the
// kernel could not be asked at all.
func Watch(ctx context.Context, log *slog.Logger, changed func([]network.Interface)) (*Watcher, error) {
	w := &Watcher{log: log, changed: changed, buffer: receiveBuffer, overruns: func() {}}
	if err := w.start(ctx); err != nil {
		return nil, err
	}
	return w, nil
}

func (w *Watcher) start(ctx context.Context) error {
	ns, err := netns.Current()
	if err != nil {
		return fmt.Errorf("link: %w", err)
	}
	w.ns, w.done = ns, make(chan struct{})
	ctx, w.cancel = context.WithCancel(ctx)
	first := make(chan error, 1)
	go w.run(ctx, first)
	if err := <-first; err != nil {
		w.Close()
		return err
	}
	return nil
}

// Close stops and waits. No callback comes after it.
func (w *Watcher) Close() {
	w.cancel()
	<-w.done
	_ = w.ns.Close()
}

// run follows the changes, and opens everything anew after an error.
func (w *Watcher) run(ctx context.Context, first chan<- error) {
	defer close(w.done)
	told := &told{changed: w.changed}
	err := w.ns.Enter()
	var s *session
	if err == nil {
		s, err = w.open(ctx, told)
	}
	first <- err
	for err == nil {
		why := s.follow(ctx, told)
		s.close()
		if ctx.Err() != nil {
			return
		}
		w.log.Warn("the kernel's messages on network interfaces stopped; asking again", "error", why)
		s, err = w.reopen(ctx, told)
	}
}

// open subscribes and tells the list.
func (w *Watcher) open(ctx context.Context, told *told) (*session, error) {
	sub, err := subscribe(w.buffer, w.overruns)
	if err != nil {
		return nil, err
	}
	r, err := newReader()
	if err != nil {
		sub.close()
		return nil, err
	}
	s := &session{sub, r}
	if err := s.refresh(ctx, told); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// reopen opens until that succeeds or ctx ends.
func (w *Watcher) reopen(ctx context.Context, told *told) (*session, error) {
	for wait := retryFirst; ; wait = min(2*wait, retryLast) {
		if !sleep(ctx, wait) {
			return nil, ctx.Err()
		}
		s, err := w.open(ctx, told)
		if err == nil {
			return s, nil
		}
		w.log.Warn("the kernel does not tell of network interfaces", "error", err, "again after", wait)
	}
}

// session is what is open until the next error.
type session struct {
	*subscription
	reader *reader
}

func (s *session) close() {
	s.subscription.close()
	s.reader.close()
}

// refresh reads the list, again while changes interrupt it, and tells it.
func (s *session) refresh(ctx context.Context, told *told) error {
	for {
		list, err := s.reader.list()
		if err == nil {
			told.tell(list)
			return nil
		}
		if !errors.Is(err, errTorn) {
			return err
		}
		if !sleep(ctx, gather) {
			return ctx.Err()
		}
	}
}

// follow tells each change, until an error.
func (s *session) follow(ctx context.Context, told *told) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-s.broken:
			return err
		case <-s.dirty:
		}
		if err := s.refresh(ctx, told); err != nil {
			return err
		}
		if !sleep(ctx, gather) {
			return ctx.Err()
		}
	}
}

// told remembers what the callback knows.
type told struct {
	changed func([]network.Interface)
	last    []network.Interface
	once    bool
}

func (t *told) tell(list []network.Interface) {
	if t.once && slices.EqualFunc(list, t.last, network.Interface.Equal) {
		return
	}
	t.last, t.once = list, true
	t.changed(slices.Clone(list))
}

func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// subscription is a socket on which the kernel tells of changes, and the goroutine that reads it.
type subscription struct {
	socket   *nl.NetlinkSocket
	dirty    chan struct{} // of one: something changed since it was last taken
	broken   chan error    // of one: why the goroutine ended
	overruns func()
}

func subscribe(buffer int, overruns func()) (*subscription, error) {
	socket, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
		unix.RTNLGRP_IPV6_IFINFO, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("link: subscribe to changes: %w", err)
	}
	if err := socket.SetReceiveBufferSize(buffer, false); err != nil {
		socket.Close()
		return nil, fmt.Errorf("link: receive buffer: %w", err)
	}
	s := &subscription{socket: socket, dirty: make(chan struct{}, 1), broken: make(chan error, 1), overruns: overruns}
	go s.read()
	return s, nil
}

// close ends the goroutine and waits for it.
func (s *subscription) close() {
	s.socket.Close()
	for range s.broken {
	}
}

// emptied is the pause in messages, in µs, after which the socket is empty. The kernel tells once that it lost some, and
// goes on losing them until then.
const emptied = 1000

// read takes messages as fast as they come and only says that there were some.
func (s *subscription) read() {
	defer close(s.broken)
	for {
		messages, _, err := s.socket.Receive()
		switch {
		case errors.Is(err, unix.ENOBUFS):
			s.mark()
			s.overruns()
			err = s.socket.SetReceiveTimeout(&unix.Timeval{Usec: emptied})
		case errors.Is(err, unix.EAGAIN):
			s.mark()
			err = s.socket.SetReceiveTimeout(&unix.Timeval{})
		}
		if err != nil {
			s.broken <- fmt.Errorf("link: receive: %w", err)
			return
		}
		if slices.ContainsFunc(messages, matters) {
			s.mark()
		}
	}
}

func (s *subscription) mark() {
	select {
	case s.dirty <- struct{}{}:
	default:
	}
}

// matters tells whether a message can change the list: of routes only default ones do, and those
// by which routers announce subnets.
func matters(m syscall.NetlinkMessage) bool {
	if m.Header.Type != unix.RTM_NEWROUTE && m.Header.Type != unix.RTM_DELROUTE {
		return true
	}
	if len(m.Data) < unix.SizeofRtMsg {
		return false
	}
	route := nl.DeserializeRtMsg(m.Data)
	return route.Dst_len == 0 || route.Protocol == unix.RTPROT_RA
}
