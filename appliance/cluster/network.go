package cluster

import (
	"context"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// Family says which cluster addresses the nodes have.
type Family string

// The families.
const (
	FamilyByHand Family = ""     // each node has its cluster.address
	FamilyIPv6   Family = "ipv6" // the cluster gives addresses
	FamilyIPv4   Family = "ipv4"
)

// KeyBytes is the length of the key that authenticates heartbeats.
const KeyBytes = 16

// Network is the node's way to the others. It owns the address that the cluster gives to the node, and finds
// the nodes' addresses through whichever network works. Its methods are called one at a time, but for Address.
type Network interface {
	// Address is the cluster address of a node, the zero Addr if the number has none.
	Address(cluster string, number uint16, family Family) netip.Addr
	// IPv6 tells whether this machine can have an IPv6 address.
	IPv6() bool
	// Interfaces describes this machine's interfaces, as JSON that the other nodes' Networks read.
	Interfaces(ctx context.Context) (json.RawMessage, error)
	// Up takes the address and finds the peers. Peers that are not named are those known before, from the state
	// directory. Another Up is after a Down.
	Up(ctx context.Context, s NetworkStart) error
	// Down gives the address back; without an Up it does nothing.
	Down() error
}

// NetworkStart is what a Network needs to begin.
type NetworkStart struct {
	Cluster string // its id
	Node    string
	Number  uint16
	Address netip.Addr // to take; the zero Addr: the node has one by hand
	Key     [KeyBytes]byte
	Peers   []NetworkPeer // the other members; nil: not known yet
}

// NetworkPeer is another node as its Network is told of it.
type NetworkPeer struct {
	Name       string          `json:"name"`
	Number     uint16          `json:"number"`
	Address    string          `json:"address"`
	Interfaces json.RawMessage `json:"interfaces,omitempty"`
}

// Networks is what the database has of the nodes' networks; what the JSON says is the Networks' matter.
type Networks struct {
	Settings   json.RawMessage            // nil: none were stored
	Revision   int64                      // of Settings, for StoreNetworks
	Read       int64                      // the database's when all this was read: higher is later
	Interfaces map[string]json.RawMessage // by node
}

// The keys of networks lie together, so that one watch sees them.
const (
	networkKeys   = root + "network/"
	settingsKey   = networkKeys + "settings"
	interfaceKeys = networkKeys + "interfaces/" // node's name → its interfaces
)

// maxNetworkBytes bounds one node's interfaces, and the settings.
const maxNetworkBytes = 64 << 10

// ErrNetwork says that what is to be stored of networks is too large, or no JSON.
var ErrNetwork = errors.New("the description of networks cannot be stored")

func checkNetwork(description json.RawMessage) error {
	if len(description) > maxNetworkBytes || !json.Valid(description) {
		return fmt.Errorf("%w: %d bytes, at most %d of JSON", ErrNetwork, len(description), maxNetworkBytes)
	}
	return nil
}

// Networks reads the settings of networks and the nodes' interfaces.
func (db *DB) Networks(ctx context.Context) (Networks, error) {
	out := Networks{Interfaces: map[string]json.RawMessage{}}
	records, read, err := list[json.RawMessage](ctx, db, networkKeys)
	if err != nil {
		return out, fmt.Errorf("cluster: networks: %w", err)
	}
	out.Read = read
	for i := range records {
		r := &records[i]
		if r.key == settingsKey {
			out.Settings, out.Revision = r.value, r.revision
		} else if len(r.key) > len(interfaceKeys) {
			out.Interfaces[r.key[len(interfaceKeys):]] = r.value
		}
	}
	return out, nil
}

// WatchNetworks calls fn with the networks as they are now and after every change, until ctx ends or fn fails.
func (db *DB) WatchNetworks(ctx context.Context, fn func(Networks) error) error {
	return db.watchPrefix(ctx, networkKeys, func() error {
		n, err := db.Networks(ctx)
		if err != nil {
			return err
		}
		return fn(n)
	})
}

// StoreNetworks replaces the settings of networks that were read at a revision. ErrConflict: someone was in between.
func (db *DB) StoreNetworks(ctx context.Context, revision int64, settings json.RawMessage) error {
	err := checkNetwork(settings)
	if err == nil {
		var op clientv3.Op
		if op, err = put(settingsKey, settings); err == nil {
			err = db.commitOrConflict(ctx, clientv3.Compare(clientv3.ModRevision(settingsKey), "=", revision), op)
		}
	}
	if err != nil {
		return fmt.Errorf("cluster: store networks: %w", err)
	}
	return nil
}

func (db *DB) commitOrConflict(ctx context.Context, guard clientv3.Cmp, op clientv3.Op) error {
	ok, err := db.commit(ctx, []clientv3.Cmp{guard}, op)
	if err == nil && !ok {
		err = ErrConflict
	}
	return err
}

// PublishInterfaces tells the other nodes this node's interfaces, unless they know them.
func (db *DB) PublishInterfaces(ctx context.Context, interfaces json.RawMessage) error {
	if err := checkNetwork(interfaces); err != nil {
		return fmt.Errorf("cluster: publish interfaces: %w", err)
	}
	key := interfaceKeys + db.node
	was, err := get[json.RawMessage](ctx, db, key)
	if err == nil && string(was.value) == string(interfaces) {
		return nil
	}
	if err == nil || errors.Is(err, ErrNotFound) {
		var op clientv3.Op
		if op, err = put(key, interfaces); err == nil {
			_, err = db.commit(ctx, []clientv3.Cmp{present(memberKeys + db.node)}, op)
		}
	}
	if err != nil {
		return fmt.Errorf("cluster: publish interfaces: %w", err)
	}
	return nil
}

// Address is where the other nodes reach this one; without a cluster, or a cluster's own address, it is cluster.address.
func (db *DB) Address() string {
	if s := db.self.Load(); s != nil {
		if id := s.identity(); id.Family != FamilyByHand {
			return id.Address
		}
	}
	return db.options.Config.Address
}

// Family says which address this node has; without a cluster it is FamilyByHand.
func (db *DB) Family() Family {
	if s := db.self.Load(); s != nil {
		return s.identity().Family
	}
	return FamilyByHand
}

// heartbeatKey is known to every node of the cluster and to nobody else.
func heartbeatKey(id string, secret []byte) (key [KeyBytes]byte, err error) {
	b, err := hkdf.Key(sha256.New, secret, []byte(id), "lunar heartbeat 1", KeyBytes)
	if err != nil {
		return key, err
	}
	return [KeyBytes]byte(b), nil
}

// given tells that the cluster has to give this node its address.
func (db *DB) given() bool { return db.options.Config.Address == "" }

// family is that of the cluster which this node makes.
func (db *DB) family() Family {
	switch {
	case !db.given():
		return FamilyByHand
	case db.options.Network.IPv6():
		return FamilyIPv6
	}
	return FamilyIPv4
}

// addressFor is a node's cluster address: what it has by hand, or what a cluster of that family gives.
func (db *DB) addressFor(c *clusterRecord, number uint16, byHand string) (string, error) {
	if c.Family == FamilyByHand {
		return byHand, nil
	}
	if db.options.Network == nil {
		return "", fmt.Errorf("%w: this node cannot give any", ErrAddress)
	}
	a := db.options.Network.Address(c.ID, number, c.Family)
	if !a.IsValid() {
		return "", fmt.Errorf("%w: there is no %s address for node number %d", ErrFull, c.Family, number)
	}
	return a.String(), nil
}

// networkUp takes the node's address, if the cluster has given one, before anything listens on it.
func (db *DB) networkUp(ctx context.Context, s *self) error {
	net, peers := db.options.Network, db.newPeers
	db.newPeers = nil
	id := s.identity()
	if net == nil {
		if id.Family != FamilyByHand {
			return fmt.Errorf("%w: the cluster has given this node %s, and nothing here can take it", ErrAddress, id.Address)
		}
		return nil
	}
	start := NetworkStart{Cluster: id.ID, Node: id.Node, Number: id.Number, Peers: peers}
	var err error
	if start.Key, err = heartbeatKey(id.ID, db.vault.Load().key); err != nil {
		return err
	}
	if id.Family != FamilyByHand {
		if start.Address, err = netip.ParseAddr(id.Address); err != nil {
			return fmt.Errorf("%w: %q", ErrAddress, id.Address)
		}
	}
	err = net.Up(ctx, start)
	if err != nil && id.Family == FamilyByHand {
		db.log.Warn("this node sends no heartbeats", "err", err)
		return nil
	}
	if err != nil {
		return fmt.Errorf("%w: the cluster's address %s could not be taken: %w", ErrAddress, id.Address, err)
	}
	return nil
}

func (db *DB) networkDown() {
	if db.options.Network == nil {
		return
	}
	if err := db.options.Network.Down(); err != nil {
		db.log.Warn("the cluster address was not given back in order", "err", err)
	}
}

// describeNodes are the members for one that joins.
func (db *DB) describeNodes(ctx context.Context) ([]NetworkPeer, error) {
	members, err := db.Members(ctx)
	if err != nil {
		return nil, err
	}
	networks, err := db.Networks(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]NetworkPeer, len(members))
	for i := range members {
		m := &members[i]
		out[i] = NetworkPeer{m.Name, m.Number, m.Address, networks.Interfaces[m.Name]}
	}
	return out, nil
}
