package route

import (
	"errors"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// release lets go of the packets that wait for the next hops of routes which have moved. The kernel queues what is
// sent to a neighbour whose hardware address it does not know, as after a loss of carrier, and gives up after 3 s.
// TCP sends no segment again that still waits in a queue of this machine, so connections would stand still so long.
func (k *Keeper) release(old []netlink.Route) error {
	var failed []error
	for _, r := range old {
		if hop := nextHop(r); hop != nil {
			failed = append(failed, k.forget(r.LinkIndex, hop))
		}
	}
	return errors.Join(failed...)
}

func nextHop(r netlink.Route) net.IP {
	if via, ok := r.Via.(*netlink.Via); ok {
		return via.Addr
	}
	return r.Gw
}

// forget deletes a neighbour that is being searched, and with it the queue.
func (k *Keeper) forget(index int, hop net.IP) error {
	family := netlink.FAMILY_V6
	if hop.To4() != nil {
		family = netlink.FAMILY_V4
	}
	list, err := k.handle.NeighList(index, family)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return fmt.Errorf("route: list neighbours: %w", err)
	}
	for i := range list {
		n := &list[i]
		if !n.IP.Equal(hop) || n.State&netlink.NUD_INCOMPLETE == 0 {
			continue
		}
		if err := k.handle.NeighDel(n); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("route: forget the neighbour %s: %w", hop, err)
		}
	}
	return nil
}
