package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"lunar/appliance/cluster"
	"lunar/netft/network"
)

// The pace at which this node tells of its interfaces: a link that flaps is told of once in publishPause.
const (
	publishPause = time.Second
	publishRetry = 5 * time.Second
)

// known is what the database says of the networks.
type known struct {
	settings []network.Setting
	revision int64 // of the settings
	nodes    []network.Node
	view     network.View // what follows from it, the same on every node
}

// readNetworks reads settings and interfaces; a part that cannot be read is as if it were not there.
func readNetworks(members []cluster.Member, n cluster.Networks) (*known, error) {
	k := &known{revision: n.Revision}
	if len(n.Settings) > 0 {
		if err := json.Unmarshal(n.Settings, &k.settings); err != nil {
			return nil, fmt.Errorf("the settings of networks: %w", err)
		}
	}
	for _, m := range members {
		node := network.Node{Number: m.Number, Name: m.Name}
		if text := n.Interfaces[m.Name]; len(text) > 0 && json.Unmarshal(text, &node.Interfaces) != nil {
			node.Interfaces = nil
		}
		k.nodes = append(k.nodes, node)
	}
	k.view = network.Group(k.nodes, k.settings)
	return k, nil
}

// followNetworks hands to netft what the database says of peers and networks, and gives new networks a name there.
func (m *membership) followNetworks(ctx context.Context) error {
	return m.node.db.WatchNetworks(ctx, func(n cluster.Networks) error {
		members := m.tell(n)
		if len(members) == 0 {
			return nil // WatchMembers comes
		}
		return m.node.settle(ctx, members, n)
	})
}

// tell has netft follow the networks and the members. Two watches call it: members or networks that were read before
// another call would take away again the node that just joined, and with it its way to the database.
func (m *membership) tell(n cluster.Networks) []cluster.Member {
	f := m.node.fabric
	f.telling.Lock()
	defer f.telling.Unlock()
	if n.Read >= f.latest.Read {
		f.latest = n
	}
	members := *m.members.Load()
	if len(members) > 0 {
		m.node.tellFabric(members, f.latest)
	}
	return members
}

// tellFabric needs no database.
func (n *Node) tellFabric(members []cluster.Member, networks cluster.Networks) {
	k, err := readNetworks(members, networks)
	if err != nil {
		n.log.Error("networks keep their settings", "error", err)
		return
	}
	n.networks.Store(k)
	running := n.fabric.running()
	if running == nil {
		return
	}
	var peers []cluster.NetworkPeer
	for _, m := range members {
		if m.Name != n.name {
			peers = append(peers, cluster.NetworkPeer{Name: m.Name, Number: m.Number, Address: m.Address, Interfaces: networks.Interfaces[m.Name]})
		}
	}
	running.SetSettings(k.settings)
	if err := running.SetPeers(peersOf(peers, n.db.Family() != cluster.FamilyByHand)); err != nil {
		n.log.Warn("not every node is watched", "error", err)
	}
	n.tellPortals()
}

// settle stores names and subnets of networks that are new. All nodes come to the same, and the first stores it.
func (n *Node) settle(ctx context.Context, members []cluster.Member, networks cluster.Networks) error {
	k, err := readNetworks(members, networks)
	if err != nil || slices.EqualFunc(k.settings, k.view.Settings, network.Setting.Equal) {
		return nil //nolint:nilerr // said by tellFabric
	}
	err = n.storeSettings(ctx, k.revision, k.view.Settings)
	if errors.Is(err, cluster.ErrConflict) {
		return nil // news comes
	}
	return err
}

func (n *Node) storeSettings(ctx context.Context, revision int64, settings []network.Setting) error {
	text, err := json.Marshal(settings)
	if err != nil {
		return err
	}
	return n.db.StoreNetworks(ctx, revision, text)
}

// networksOf has netft and the networks follow the members.
func (m *membership) networksOf(ctx context.Context) {
	n, err := m.node.db.Networks(ctx)
	if err != nil {
		m.node.log.Warn("the nodes' interfaces are not known yet", "error", err)
		return
	}
	members := m.tell(n)
	if err := m.node.settle(ctx, members, n); err != nil {
		m.node.log.Warn("the networks' names were not stored", "error", err)
	}
}

// keepPublishing tells the others this node's interfaces each time that they change, until ctx ends.
func (m *membership) keepPublishing(ctx context.Context) {
	f := m.node.fabric
	for {
		select {
		case <-f.changed:
		case <-ctx.Done():
			return
		}
		wait := publishPause
		if err := m.publish(ctx); err != nil {
			if ctx.Err() == nil {
				m.node.log.Warn("the others were not told this node's interfaces", "error", err)
			}
			wait = publishRetry
			f.kick()
		}
		if pause(ctx, wait) != nil {
			return
		}
	}
}

func (m *membership) publish(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, databaseTimeout)
	defer cancel()
	interfaces, err := m.node.fabric.Interfaces(ctx)
	if err != nil {
		return err
	}
	return m.node.db.PublishInterfaces(ctx, interfaces)
}

// tellPortals has the other nodes tell initiators where this one is reached now.
func (n *Node) tellPortals() {
	m := n.membership.Load()
	if m == nil {
		return
	}
	select {
	case <-m.ready:
		m.session.SetPortals(n.portalAddresses())
	default: // the session begins with them
	}
}

// portalAddresses are this node's portals as other nodes tell them. A wildcard is its cluster address, if that was
// set by hand; else its addresses on the networks that are for clients.
func (n *Node) portalAddresses() []string {
	var out []string
	for _, a := range n.portals {
		host, port, err := net.SplitHostPort(a.String())
		if ip := net.ParseIP(host); err != nil || ip == nil || !ip.IsUnspecified() {
			out = append(out, a.String())
			continue
		}
		for _, address := range n.addressesForClients() {
			if a := net.JoinHostPort(address, port); !slices.Contains(out, a) {
				out = append(out, a)
			}
		}
	}
	return out
}

func (n *Node) addressesForClients() []string {
	if n.db.Family() == cluster.FamilyByHand {
		if address := n.db.Address(); address != "" {
			return []string{address}
		}
		return nil
	}
	k := n.networks.Load()
	if k == nil {
		return nil
	}
	var out []string
	for _, a := range clientAddresses(k.view.Networks, n.db.Number()) {
		out = append(out, a.String())
	}
	return out
}

// clientAddresses are a node's addresses on networks with role cluster-and-client; where there is no such network,
// on all that have a role.
func clientAddresses(networks []network.Network, number uint16) []netip.Addr {
	open := func(n network.Network) bool { return n.Role == network.RoleClusterAndClient }
	if !slices.ContainsFunc(networks, open) {
		open = func(n network.Network) bool { return n.Role.Enabled() }
	}
	var out []netip.Addr
	for _, n := range networks {
		m, ok := n.Member(number)
		if !ok || !open(n) {
			continue
		}
		for _, p := range m.Interface.Addresses {
			if a := p.Addr(); !a.IsLinkLocalUnicast() {
				out = append(out, a)
			}
		}
	}
	return out
}
