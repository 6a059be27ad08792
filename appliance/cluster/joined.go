package cluster

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"regexp"
	"slices"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"lunar/appliance/config"
)

func countUnder() []clientv3.OpOption {
	return []clientv3.OpOption{clientv3.WithPrefix(), clientv3.WithCountOnly()}
}

// putFor stores a record that goes by itself after some seconds.
func (db *DB) putFor(ctx context.Context, key string, value any, seconds int64) error {
	data, err := json.Marshal(value)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	lease, err := db.client.Grant(ctx, seconds)
	if err != nil {
		return unavailable(err)
	}
	_, err = db.commit(ctx, nil, clientv3.OpPut(key, string(data), clientv3.WithLease(lease.ID)))
	return err
}

// handleJoin lets a node in that has a token.
func (db *DB) handleJoin(w http.ResponseWriter, r *http.Request) {
	deadline := time.Now().Add(joinTimeout)
	control := http.NewResponseController(w)
	if err := errors.Join(control.SetReadDeadline(deadline), control.SetWriteDeadline(deadline)); err != nil {
		refuseWith(w, err)
		return
	}
	var req joinRequest
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxJoinBody)).Decode(&req); err != nil {
		refuse(w, http.StatusBadRequest, "damaged", "the request cannot be read")
		return
	}
	ctx, cancel := context.WithDeadline(r.Context(), deadline)
	defer cancel()
	a, err := db.admit(ctx, &req)
	if err != nil {
		db.log.Warn("a node was not let in", "node", req.Node, "from", r.RemoteAddr, "err", err)
		refuseWith(w, err)
		return
	}
	address := cmp.Or(a.Address, req.Address)
	db.log.Info("a node joins the cluster", "node", req.Node, "address", address)
	if err := db.Append(ctx, Event{Kind: "node.join", Text: fmt.Sprintf("node %s at %s let in", req.Node, address)}); err != nil {
		db.log.Warn("the event was not recorded", "err", err)
	}
	db.kick()
	answer(w, a)
}

var nodeNames = regexp.MustCompile(`^[0-9A-Za-z._-]{1,63}$`)

// check refuses what cannot be a node, before anything is looked up.
func (req *joinRequest) check() error {
	ip, err := netip.ParseAddr(req.Address)
	switch {
	case req.Address != "" && (err != nil || ip.IsUnspecified() || ip.Zone() != ""):
		return fmt.Errorf("%w: address %q", ErrDamaged, req.Address)
	case !nodeNames.MatchString(req.Node):
		return fmt.Errorf("%w: node name %q", ErrDamaged, req.Node)
	case len(req.Interfaces) > 0 && checkNetwork(req.Interfaces) != nil:
		return checkNetwork(req.Interfaces)
	case req.Role != config.RoleNode && req.Role != config.RoleWitness:
		return fmt.Errorf("%w: role %q", ErrDamaged, req.Role)
	}
	return nil
}

// fits refuses a node that would not find the others, or they it.
func (req *joinRequest) fits(family Family) error {
	switch {
	case family == FamilyByHand && req.Address == "":
		return fmt.Errorf("%w: the nodes of this cluster have their addresses by configuration: set cluster.address there, and restart lunard", ErrAddress)
	case family != FamilyByHand && req.Address != "":
		return fmt.Errorf("%w: this cluster gives its nodes their addresses: remove cluster.address there, and restart lunard", ErrAddress)
	case family == FamilyIPv6 && !req.IPv6:
		return fmt.Errorf("%w: this cluster's addresses are IPv6, which is disabled there: enable it (sysctl net.ipv6.conf.all.disable_ipv6=0), "+
			"link-local addresses are enough", ErrAddress)
	}
	return nil
}

// admit checks a request and makes the member, in one transaction with the token's end.
func (db *DB) admit(ctx context.Context, req *joinRequest) (*joinAnswer, error) {
	if err := req.check(); err != nil {
		return nil, err
	}
	csr, err := parseRequest(req.Request, req.Node)
	if err != nil {
		return nil, err
	}
	var a *joinAnswer
	err = retry(func() (bool, error) {
		r, err := db.clusterRecord(ctx)
		if err != nil {
			return false, err
		}
		if hash := clusterHash(r.value.ID); !slices.Equal(hash[:], req.Cluster) {
			return false, fmt.Errorf("%w: it is of another cluster", ErrToken)
		}
		past, err := db.checkToken(ctx, req.Secret)
		if err != nil {
			return false, err
		}
		if err := req.fits(r.value.Family); err != nil {
			return false, err
		}
		req := *req
		if req.Address, err = db.addressFor(&r.value, r.value.Next, req.Address); err != nil {
			return false, err
		}
		if err := db.newName(ctx, &req); err != nil {
			return false, err
		}
		ca, err := db.authority(&r.value)
		if err != nil {
			return false, err
		}
		cert, err := ca.issue(req.Node, req.Address, csr.PublicKey, time.Now())
		if err != nil {
			return false, err
		}
		a = &joinAnswer{
			ID: r.value.ID, Number: r.value.Next, Cert: certPEM(cert), Secret: db.vault.Load().key,
			Address: req.Address, Family: r.value.Family,
		}
		if a.CRL, err = ca.revocations(db.revoked.list(), time.Now()); err != nil {
			return false, err
		}
		return db.writeMember(ctx, &r, &req, serialOf(cert), past)
	})
	if err != nil {
		return nil, err
	}
	if a.Nodes, err = db.describeNodes(ctx); err != nil {
		return nil, err
	}
	a.Peers, err = db.voterURLs(ctx)
	return a, err
}

// writeMember ends the token and makes the member at once; false: someone was in between.
func (db *DB) writeMember(ctx context.Context, r *record[clusterRecord], req *joinRequest, serial string, past record[tokenRecord]) (bool, error) {
	id := membership{Node: req.Node, Address: req.Address, Role: req.Role}
	past.value.UsedBy = req.Node
	used, err := json.Marshal(&past.value)
	if err != nil {
		return false, err
	}
	m, op, err := newMember(r, &id, serial)
	if err != nil {
		return false, err
	}
	key := tokenKeys + tokenID(req.Secret)
	ops := []clientv3.Op{op, clientv3.OpDelete(key), clientv3.OpPut(past.key, string(used), clientv3.WithIgnoreLease())}
	if len(req.Interfaces) > 0 {
		ops = append(ops, clientv3.OpPut(interfaceKeys+m.Name, string(req.Interfaces)))
	}
	return db.changeMembership(ctx, r, []clientv3.Cmp{present(key), absent(memberKeys + m.Name)}, ops...)
}

// checkToken finds a token by its secret and says what is wrong with it otherwise.
func (db *DB) checkToken(ctx context.Context, secret []byte) (record[tokenRecord], error) {
	id := tokenID(secret)
	past, err := get[tokenRecord](ctx, db, pastTokenKeys+id)
	switch {
	case errors.Is(err, ErrNotFound):
		return past, fmt.Errorf("%w: this cluster never made it, or long ago; make one with `lunarctl cluster token`", ErrToken)
	case err != nil:
		return past, err
	case past.value.UsedBy != "":
		return past, fmt.Errorf("%w: node %s has used it; each lets one node in, once: make another with `lunarctl cluster token`",
			ErrToken, past.value.UsedBy)
	}
	if _, err = get[tokenRecord](ctx, db, tokenKeys+id); errors.Is(err, ErrNotFound) {
		err = fmt.Errorf("%w: it has expired; make another with `lunarctl cluster token`", ErrToken)
	}
	return past, err
}

// newName refuses a name or address that a member has.
func (db *DB) newName(ctx context.Context, req *joinRequest) error {
	members, err := db.Members(ctx)
	if err != nil {
		return err
	}
	for i := range members {
		switch m := &members[i]; {
		case m.Name == req.Node:
			return fmt.Errorf("a node named %q %w; if that one is gone for good, evict it first with `lunarctl node evict %s`",
				m.Name, ErrExists, m.Name)
		case m.Address == req.Address:
			return fmt.Errorf("a node with address %s %w: %s", m.Address, ErrExists, m.Name)
		}
	}
	return nil
}

// voterURLs are the client URLs of the members of etcd that vote, none with an external one.
func (db *DB) voterURLs(ctx context.Context) ([]string, error) {
	m, _ := db.running()
	s := db.self.Load()
	if s == nil || s.identity().External {
		return nil, nil
	}
	client := db.client
	if m != nil && m.votes() {
		client = m.client
	}
	resp, err := client.MemberList(ctx)
	if err != nil {
		return nil, unavailable(err)
	}
	var urls []string
	for _, m := range resp.Members {
		if !m.IsLearner {
			urls = append(urls, m.ClientURLs...)
		}
	}
	slices.Sort(urls)
	return urls, nil
}
