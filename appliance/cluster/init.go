package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"lunar/appliance/config"
)

// Init turns this node into a cluster of one: what its database holds stays. Other nodes reach it by
// cluster.address from then on, or by an address that the cluster gives. Calls and watches in progress go on
// after a short wait. ErrMember: it is in a cluster already. ErrAddress: there is no address, or it cannot be
// used. An Init that was cut short may be repeated.
func (db *DB) Init(ctx context.Context) error {
	db.change.Lock()
	defer db.change.Unlock()
	if err := db.mayEnter(); err != nil {
		return fmt.Errorf("cluster: init: %w", err)
	}
	n, err := db.found(ctx)
	if err != nil {
		return fmt.Errorf("cluster: init: %w", err)
	}
	if err := n.store(db.options.Dir); err != nil {
		return fmt.Errorf("cluster: init: %w", err)
	}
	if err := db.restart(ctx, false); err != nil {
		return fmt.Errorf("cluster: init: %w", errors.Join(err, db.undo(ctx)))
	}
	if err := db.publish(ctx); err != nil {
		db.log.Warn("the node's interfaces were not recorded", "err", err)
	}
	if err := db.Append(ctx, Event{Kind: "cluster.init", Text: "cluster " + n.ID + " made"}); err != nil {
		db.log.Warn("the event was not recorded", "err", err)
	}
	return nil
}

// undo makes this a node without a cluster again, after an Init whose last step failed.
func (db *DB) undo(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), startTimeout)
	defer cancel()
	if err := db.halt(false); err != nil {
		db.log.Warn("the database did not stop in order", "err", err)
	}
	if err := os.RemoveAll(filepath.Join(db.options.Dir, identityDir)); err != nil {
		return err
	}
	db.self.Store(nil)
	return db.open(ctx)
}

// mayEnter is for Init and Join: both need a node outside any cluster, with an address.
func (db *DB) mayEnter() error {
	if db.shut {
		return fmt.Errorf("%w: it is closed", ErrUnavailable)
	}
	if db.self.Load() != nil {
		return fmt.Errorf("%w; see `lunarctl cluster status`, or leave it first with `lunarctl cluster leave`", ErrMember)
	}
	if db.given() {
		return db.mayBeGiven()
	}
	ip, err := netip.ParseAddr(db.options.Config.Address)
	if err != nil || ip.IsUnspecified() {
		return fmt.Errorf("%w: set cluster.address in the configuration to the IP address by which the other nodes reach this one, "+
			"and restart lunard", ErrAddress)
	}
	return db.portsFree()
}

// mayBeGiven is for a node to which the cluster gives its address.
func (db *DB) mayBeGiven() error {
	if db.options.Network == nil {
		return fmt.Errorf("%w: set cluster.address in the configuration to the IP address by which the other nodes reach this one, "+
			"and restart lunard", ErrAddress)
	}
	l, err := net.Listen("tcp", hostPort(db.options.joins, nodePort))
	if err != nil {
		return addressError(err, "all addresses")
	}
	return l.Close()
}

// publish records this node's interfaces.
func (db *DB) publish(ctx context.Context) error {
	if db.options.Network == nil {
		return nil
	}
	interfaces, err := db.options.Network.Interfaces(ctx)
	if err != nil {
		return err
	}
	return db.PublishInterfaces(ctx, interfaces)
}

// portsFree finds out before anything changes whether this node can listen.
func (db *DB) portsFree() error {
	ports := []uint16{nodePort, clientPort, peerPort}
	if len(db.options.Config.Endpoints) > 0 {
		ports = ports[:1]
	}
	address := db.options.Config.Address
	for _, port := range ports {
		l, err := net.Listen("tcp", hostPort(address, port))
		if err != nil {
			return addressError(err, address)
		}
		if err := l.Close(); err != nil {
			return err
		}
	}
	return nil
}

// found makes the cluster in the database, or takes up what an interrupted Init left there.
func (db *DB) found(ctx context.Context) (*newcomer, error) {
	r, err := db.clusterRecord(ctx)
	switch {
	case errors.Is(err, ErrAlone):
		if r, err = db.writeCluster(ctx); err != nil {
			return nil, err
		}
	case err != nil:
		return nil, err
	}
	members, err := db.Members(ctx)
	if err != nil {
		return nil, err
	}
	if len(members) > 1 || len(members) == 1 && members[0].Name != db.node {
		return nil, fmt.Errorf("%w: the database is of cluster %s, which has members; join it instead", ErrMember, r.value.ID)
	}
	ca, err := db.authority(&r.value)
	if err != nil {
		return nil, err
	}
	return db.firstMember(ctx, r, ca)
}

func (db *DB) writeCluster(ctx context.Context) (record[clusterRecord], error) {
	now := time.Now()
	c := clusterRecord{ID: newID(), Next: 1, Family: db.family(), Created: now.UTC()}
	ca, err := newAuthority(c.ID, now)
	if err != nil {
		return record[clusterRecord]{}, err
	}
	key, err := keyPEM(ca.key)
	if err != nil {
		return record[clusterRecord]{}, err
	}
	c.CA, c.CAKey = certPEM(ca.cert), db.vault.Load().seal(key, caUse)
	op, err := put(clusterKey, &c)
	if err != nil {
		return record[clusterRecord]{}, err
	}
	if _, err := db.commit(ctx, []clientv3.Cmp{absent(clusterKey)}, op); err != nil {
		return record[clusterRecord]{}, err
	}
	return db.clusterRecord(ctx)
}

// firstMember gives this node a certificate and its record, and its etcd member its address.
func (db *DB) firstMember(ctx context.Context, r record[clusterRecord], ca *authority) (*newcomer, error) {
	c, key := &db.options.Config, newKey()
	caKey, err := keyPEM(ca.key)
	if err != nil {
		return nil, err
	}
	n := &newcomer{ca: ca.cert, caKey: caKey, key: key, secret: db.vault.Load().key}
	address, err := db.addressFor(&r.value, r.value.Next, c.Address)
	if err != nil {
		return nil, err
	}
	n.membership = membership{
		ID: r.value.ID, Node: db.node, Address: address, Family: r.value.Family, Role: c.Role, External: len(c.Endpoints) > 0,
	}
	if n.Role == "" {
		n.Role = config.RoleNode
	}
	if n.cert, err = ca.issue(db.node, address, key.Public(), time.Now()); err != nil {
		return nil, err
	}
	if n.crl, err = ca.revocations(nil, time.Now()); err != nil {
		return nil, err
	}
	m, err := db.addMember(ctx, &r, &n.membership, serialOf(n.cert))
	if err != nil {
		return nil, err
	}
	n.Number = m.Number
	return n, db.advertise(ctx, &n.membership, &m)
}

// advertise tells the etcd member of a single node its address.
func (db *DB) advertise(ctx context.Context, id *membership, m *Member) error {
	running, _ := db.running()
	if running == nil {
		return nil
	}
	id.Voter = true
	client, peer := endpoint(id.Address, clientPort), endpoint(id.Address, peerPort)
	id.Peers = []string{client.String()}
	if _, err := running.client.MemberUpdate(ctx, running.id(), []string{peer.String()}); err != nil {
		return unavailable(err)
	}
	return db.setEtcdID(ctx, m.Name, running.id())
}

// addMember writes the record of the first member; an unfinished Init's is replaced.
func (db *DB) addMember(ctx context.Context, r *record[clusterRecord], id *membership, serial string) (Member, error) {
	m, op, err := newMember(r, id, serial)
	if err != nil {
		return m, err
	}
	ok, err := db.changeMembership(ctx, r, nil, op)
	if err == nil && !ok {
		err = ErrConflict
	}
	return m, err
}

// newMember takes the next number for a node.
func newMember(r *record[clusterRecord], id *membership, serial string) (Member, clientv3.Op, error) {
	m := Member{
		Name: id.Node, Number: r.value.Next, Address: id.Address, Role: id.Role,
		Serials: []string{serial}, Joined: time.Now().UTC(),
	}
	if r.value.Next++; r.value.Next == 0 {
		return m, clientv3.Op{}, fmt.Errorf("%w: all node numbers were given", ErrFull)
	}
	op, err := put(memberKeys+m.Name, &m)
	return m, op, err
}

func (db *DB) setEtcdID(ctx context.Context, node string, id uint64) error {
	_, err := update(ctx, db, memberKeys+node, func(m *Member) ([]clientv3.Cmp, error) {
		m.EtcdID = id
		return nil, nil
	})
	return err
}

// restart starts the database anew, after what the state directory says that this node is now.
func (db *DB) restart(ctx context.Context, another bool) error {
	if err := db.halt(another); err != nil {
		db.log.Warn("the database did not stop in order", "err", err)
	}
	return db.open(ctx)
}
