package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"lunar/appliance/config"
)

// The ports of a node in a cluster, on its cluster address.
const (
	clientPort = 2379 // etcd, for nodes without a voter of their own
	peerPort   = 2380 // etcd, between voters
	nodePort   = 3344 // node API: joins, and commands passed on
)

// NodePort is the port of the node API.
const NodePort = nodePort

// Member is a node of the cluster, as all agree on.
type Member struct {
	Name    string    `json:"name"`
	Number  uint16    `json:"number"` // from 1, never given again; for reservation keys
	Address string    `json:"address"`
	Role    string    `json:"role"`              // config.RoleNode or config.RoleWitness
	Serials []string  `json:"serials"`           // of the certificates that it was given
	Joined  time.Time `json:"joined"`            //
	Leaving bool      `json:"leaving,omitempty"` // it hands its vote over to leave
	EtcdID  uint64    `json:"etcdId,omitempty"`  // its etcd member, 0: none
}

// Witness tells whether the member only votes.
func (m *Member) Witness() bool { return m.Role == config.RoleWitness }

// clusterRecord is the cluster itself. Every join and eviction writes it, so that they are ordered.
type clusterRecord struct {
	ID      string    `json:"id"`
	CA      []byte    `json:"ca"`      // PEM
	CAKey   []byte    `json:"caKey"`   // PEM, sealed
	Next    uint16    `json:"next"`    // number of the next node
	Changes uint64    `json:"changes"` // of the membership
	Family  Family    `json:"family,omitempty"`
	Created time.Time `json:"created"`
}

// caUse binds the sealed CA key to its purpose.
const caUse = "cluster-ca"

type revocation struct {
	Node string    `json:"node"`
	Time time.Time `json:"time"`
}

// Members lists the cluster's members by name; none without a cluster.
func (db *DB) Members(ctx context.Context) ([]Member, error) {
	records, _, err := list[Member](ctx, db, memberKeys)
	if err != nil {
		return nil, fmt.Errorf("cluster: members: %w", err)
	}
	members := values(records)
	slices.SortFunc(members, func(a, b Member) int { return cmp.Compare(a.Name, b.Name) })
	return members, nil
}

// Member finds one by name.
func (db *DB) Member(ctx context.Context, name string) (Member, error) {
	r, err := get[Member](ctx, db, memberKeys+name)
	if err != nil {
		return r.value, fmt.Errorf("cluster: node %q: %w", name, err)
	}
	return r.value, nil
}

// WatchMembers calls fn with the members as they are now and after every change, until ctx ends or fn
// fails. Changes that come close together may be told once.
func (db *DB) WatchMembers(ctx context.Context, fn func([]Member) error) error {
	return db.watchPrefix(ctx, memberKeys, func() error {
		members, err := db.Members(ctx)
		if err != nil {
			return err
		}
		return fn(members)
	})
}

// watchPrefix calls fn now and after every change under prefix.
func (db *DB) watchPrefix(ctx context.Context, prefix string, fn func() error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	watch := db.client.Watch(ctx, prefix, clientv3.WithPrefix(), clientv3.WithCreatedNotify())
	for resp := range watch {
		if err := resp.Err(); err != nil {
			return fmt.Errorf("cluster: watch: %w", unavailable(err))
		}
		if !resp.Created && len(resp.Events) == 0 {
			continue
		}
		if err := fn(); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return fmt.Errorf("cluster: watch: %w", ErrUnavailable)
}

func (db *DB) clusterRecord(ctx context.Context) (record[clusterRecord], error) {
	r, err := get[clusterRecord](ctx, db, clusterKey)
	if errors.Is(err, ErrNotFound) {
		return r, ErrAlone
	}
	return r, err
}

// authority opens the CA, which any member can.
func (db *DB) authority(c *clusterRecord) (*authority, error) {
	key, err := db.vault.Load().open(c.CAKey, caUse)
	if err != nil {
		return nil, fmt.Errorf("the CA's key: %w", ErrSecretKey)
	}
	return parseAuthority(c.CA, key)
}

// changeMembership runs ops in one transaction that is ordered with all other changes of membership.
func (db *DB) changeMembership(ctx context.Context, r *record[clusterRecord], guards []clientv3.Cmp, ops ...clientv3.Op) (bool, error) {
	r.value.Changes++
	op, err := put(clusterKey, &r.value)
	if err != nil {
		return false, err
	}
	return db.commit(ctx, append(guards, r.unchanged()), append(ops, op)...)
}
