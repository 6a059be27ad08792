package route

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"lunar/netft/internal/netns"
	"lunar/netft/network"
)

// Protocol is the number by which our routes are known (RTA protocol): free in iproute2's rt_protos
// and in linux/rtnetlink.h, where 4 to 18, 42, 84, 99 and 186 to 198 are taken.
const Protocol = 76

const (
	askTimeout = 5 * time.Second
	// settle is the least time between two repairs, so that a contest with another program stays cheap.
	settle = 100 * time.Millisecond
	// reopenAfter is the wait after the kernel's messages stopped.
	reopenAfter = time.Second
)

// ErrClosed says that the Keeper was closed.
var ErrClosed = errors.New("route: closed")

// Route is the way to one peer.
type Route struct {
	Peer   netip.Addr // its cluster address, of the family of our own
	Via    netip.Addr // its address on the network, see network.Path.NextHop
	Index  int        // of our interface on the network
	Metric uint32     // of the network; at least 1
}

// Keeper holds the cluster address and the routes. Its methods may be called from any goroutine.
type Keeper struct {
	cluster netip.Addr
	log     *slog.Logger
	ns      *netns.Namespace
	cancel  context.CancelFunc
	done    chan struct{}

	mu      sync.Mutex // guards all below, and changes of the kernel's state
	handle  *netlink.Handle
	wanted  []Route
	set     bool // Set was called: routes that are not wanted are not ours to keep
	filters filters
	closed  bool
}

// Start gives this node its cluster address, in the network namespace of the calling thread. What an
// earlier process left is used again.
func Start(cluster netip.Addr, log *slog.Logger) (*Keeper, error) {
	if !cluster.IsValid() || cluster.IsUnspecified() || cluster.IsMulticast() {
		return nil, fmt.Errorf("route: %s is no cluster address", cluster)
	}
	ns, err := netns.Current()
	if err != nil {
		return nil, fmt.Errorf("route: %w", err)
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		_ = ns.Close()
		return nil, fmt.Errorf("route: open netlink: %w", err)
	}
	k := &Keeper{cluster: cluster, log: log, ns: ns, handle: h, done: make(chan struct{}), filters: filters{}}
	ctx, cancel := context.WithCancel(context.Background())
	k.cancel = cancel
	if err := errors.Join(h.SetSocketTimeout(askTimeout), k.begin()); err != nil {
		cancel()
		k.free()
		return nil, err
	}
	go k.run(ctx)
	return k, nil
}

// begin makes the address and takes away routes which cannot be of this cluster address.
func (k *Keeper) begin() error {
	if err := k.makeAddress(); err != nil {
		return err
	}
	return k.dropStrangers()
}

// Set makes these the routes, one for each peer, and no others of ours. Interfaces are the names of
// all interfaces by which peers may send to us. A route that the kernel refuses is in the error, and
// is tried again when a link changes; all others hold.
func (k *Keeper) Set(routes []Route, interfaces []string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return ErrClosed
	}
	var bad []error
	k.wanted, k.set = nil, true
	for _, r := range routes {
		if err := k.check(r); err != nil {
			bad = append(bad, err)
			continue
		}
		k.wanted = append(k.wanted, r)
	}
	return errors.Join(append(bad, k.makeAddress(), k.loosen(interfaces), k.reconcile())...)
}

func (k *Keeper) check(r Route) error {
	switch {
	case r.Peer.Is4() != k.cluster.Is4() || !r.Peer.IsValid():
		return fmt.Errorf("route: the peer's cluster address %s is not of the family of ours, %s", r.Peer, k.cluster)
	case r.Peer == k.cluster:
		return fmt.Errorf("route: the peer's cluster address %s is our own", r.Peer)
	case !r.Via.IsValid() || r.Via.Is4() && r.Peer.Is6():
		return fmt.Errorf("route: %s cannot be reached by %s", r.Peer, r.Via)
	case r.Metric < network.MinMetric || r.Index <= 0:
		return fmt.Errorf("route: to %s: metric %d, interface %d", r.Peer, r.Metric, r.Index)
	case slices.ContainsFunc(k.wanted, func(o Route) bool { return o.Peer == r.Peer }):
		return fmt.Errorf("route: two routes to %s", r.Peer)
	}
	return nil
}

// Close takes back the routes and the address, and waits.
func (k *Keeper) Close() error {
	k.mu.Lock()
	if k.closed {
		k.mu.Unlock()
		return nil
	}
	k.closed = true
	k.cancel()
	k.mu.Unlock()
	<-k.done
	k.mu.Lock()
	defer k.mu.Unlock()
	k.wanted, k.set = nil, true
	err := errors.Join(k.reconcile(), k.dropAddress(), k.restore())
	k.free()
	return err
}

func (k *Keeper) free() {
	k.handle.Close()
	_ = k.ns.Close()
}

// run puts back what others take away, until ctx ends.
func (k *Keeper) run(ctx context.Context) {
	defer close(k.done)
	if err := k.ns.Enter(); err != nil {
		k.log.Error("routes to peers are not watched", "error", err)
		return
	}
	for ctx.Err() == nil {
		wait := settle
		// The kernel tells once that messages were lost, and goes on losing them until the socket is empty.
		if err := k.watch(ctx); !errors.Is(err, unix.ENOBUFS) && ctx.Err() == nil {
			k.log.Warn("the kernel's messages on routes stopped; asking again", "error", err)
			wait = reopenAfter
		}
		pause(ctx, wait)
	}
}

// watch repairs at once, and after each message that concerns us, until an error.
func (k *Keeper) watch(ctx context.Context) error {
	socket, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
		unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV6_NETCONF)
	if err != nil {
		return fmt.Errorf("route: subscribe to changes: %w", err)
	}
	stop := context.AfterFunc(ctx, socket.Close)
	defer func() {
		if stop() {
			socket.Close()
		}
	}()
	k.repair() // what went before the subscription
	for {
		messages, _, err := socket.Receive()
		if err != nil {
			return fmt.Errorf("route: receive: %w", err)
		}
		if !slices.ContainsFunc(messages, concerns) {
			continue
		}
		k.repair()
		pause(ctx, settle)
	}
}

// concerns tells whether a message may mean that something of ours went, or can be put back.
func concerns(m syscall.NetlinkMessage) bool {
	switch m.Header.Type {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK, unix.RTM_DELADDR, unix.RTM_NEWNETCONF:
		return true
	case unix.RTM_DELROUTE:
		return len(m.Data) >= unix.SizeofRtMsg && nl.DeserializeRtMsg(m.Data).Protocol == Protocol
	}
	return false
}

func (k *Keeper) repair() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return
	}
	err := k.makeAddress()
	if err == nil && k.set {
		err = k.reconcile()
	}
	if err != nil {
		k.log.Warn("a route to a peer could not be put back", "error", err)
	}
}

func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
