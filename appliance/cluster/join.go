package cluster

import (
	"bytes"
	"cmp"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"lunar/appliance/config"
)

// DefaultTokenLife is how long a token lets a node in.
const DefaultTokenLife = time.Hour

// The bounds of a token's life.
const (
	minTokenLife  = time.Second
	maxTokenLife  = 7 * 24 * time.Hour
	pastTokenLife = 24 * 3600 // s; for how long the database can tell a used token from a wrong one
)

// tokenRecord is what the cluster remembers of a token. The key is a hash of its secret.
type tokenRecord struct {
	Made   time.Time `json:"made"`
	By     string    `json:"by"` // node
	UsedBy string    `json:"usedBy,omitempty"`
}

// joinRequest is what a new node sends.
type joinRequest struct {
	Cluster []byte `json:"cluster"` // clusterHash of the token
	Secret  []byte `json:"secret"`
	Node    string `json:"node"`
	Address string `json:"address"`
	Role    string `json:"role"`
	Request []byte `json:"request"` // PEM, RFC 2986

	// Of a node without an address by hand, whose Address is "".
	IPv6       bool            `json:"ipv6,omitempty"` // it can have an IPv6 address
	Interfaces json.RawMessage `json:"interfaces,omitempty"`
}

// joinAnswer is what it gets.
type joinAnswer struct {
	ID     string   `json:"id"`
	Number uint16   `json:"number"`
	Cert   []byte   `json:"cert"`   // PEM
	CRL    []byte   `json:"crl"`    // DER
	Secret []byte   `json:"secret"` // the key of sealed secrets
	Peers  []string `json:"peers"`  // client URLs of the voters

	// Of a cluster that gives addresses.
	Address string        `json:"address,omitempty"`
	Family  Family        `json:"family,omitempty"`
	Nodes   []NetworkPeer `json:"nodes,omitempty"` // the members, the new one too
}

// NewToken makes a token that lets one node in, once, within life; 0 means DefaultTokenLife. It is good
// by the database's clock, so a jump of a node's clock does not matter. ErrAlone: there is no cluster.
func (db *DB) NewToken(ctx context.Context, life time.Duration) (string, error) {
	s := db.self.Load()
	if s == nil {
		return "", fmt.Errorf("cluster: token: %w; make one with `lunarctl cluster init`", ErrAlone)
	}
	if life == 0 {
		life = DefaultTokenLife
	}
	if life < minTokenLife || life > maxTokenLife {
		return "", fmt.Errorf("cluster: token: a life of %v is out of range; give %v to %v", life, minTokenLife, maxTokenLife)
	}
	id := s.identity()
	t := newToken(id.ID, sum(s.ca), id.Address)
	rec := tokenRecord{Made: time.Now().UTC(), By: db.node}
	if err := db.putFor(ctx, pastTokenKeys+t.id(), &rec, int64(life.Seconds())+pastTokenLife); err != nil {
		return "", fmt.Errorf("cluster: token: %w", err)
	}
	if err := db.putFor(ctx, tokenKeys+t.id(), &rec, int64(life.Seconds())); err != nil {
		return "", fmt.Errorf("cluster: token: %w", err)
	}
	return t.String(), nil
}

// Join makes this node a member of the cluster that made the token, through the member at address, or
// through the one that made the token if address is "". A port may be given. The node's own database is
// left behind. Calls in progress go on against the cluster's database; watches end. ErrToken: it is
// wrong, used, expired or another cluster's. ErrNotEmpty: this node has volumes or targets. ErrExists:
// the cluster has a node of that name or address.
func (db *DB) Join(ctx context.Context, address, token string) error {
	db.change.Lock()
	defer db.change.Unlock()
	if err := db.join(ctx, address, token); err != nil {
		return fmt.Errorf("cluster: join: %w", err)
	}
	return nil
}

func (db *DB) join(ctx context.Context, address, text string) error {
	t, err := parseToken(text)
	if err != nil {
		return fmt.Errorf("%w; make one on a member with `lunarctl cluster token`", err)
	}
	if err := db.mayEnter(); err != nil {
		return err
	}
	if address == "" {
		address = t.address
	}
	if _, _, err := net.SplitHostPort(address); err != nil {
		address = net.JoinHostPort(strings.Trim(address, "[]"), strconv.Itoa(nodePort))
	}
	if err := db.empty(ctx); err != nil {
		return err
	}
	n, nodes, err := db.ask(ctx, address, &t)
	if err != nil {
		return err
	}
	if err := n.store(db.options.Dir); err != nil {
		return fmt.Errorf("%w; the cluster has this node as a member: evict %s there before the next try", err, db.node)
	}
	db.newPeers = slices.DeleteFunc(nodes, func(p NetworkPeer) bool { return p.Name == db.node })
	return db.restart(ctx, true)
}

// empty refuses a node with anything that joining would lose sight of.
func (db *DB) empty(ctx context.Context) error {
	if len(db.options.Config.Endpoints) > 0 {
		return nil // the database is shared already
	}
	for kind, prefix := range map[string]string{"volume": volumeKeys, "target": targetKeys} {
		resp, err := db.client.Get(ctx, prefix, countUnder()...)
		if err != nil {
			return unavailable(err)
		}
		if resp.Count > 0 {
			return fmt.Errorf("%w (%d of kind %s): eject the volumes (`lunarctl volume eject`, their data stay) and delete the targets, "+
				"then join and add the volumes there", ErrNotEmpty, resp.Count, kind)
		}
	}
	return nil
}

// ask trades token and signing request for a certificate.
func (db *DB) ask(ctx context.Context, address string, t *token) (*newcomer, []NetworkPeer, error) {
	role := db.options.Config.Role
	if role == "" {
		role = config.RoleNode
	}
	key := newKey()
	csr, err := newRequest(db.node, key)
	if err != nil {
		return nil, nil, err
	}
	req := joinRequest{
		Cluster: t.cluster[:], Secret: t.secret[:], Node: db.node, Address: db.options.Config.Address, Role: role, Request: csr,
	}
	if net := db.options.Network; net != nil {
		req.IPv6 = net.IPv6()
		if req.Interfaces, err = net.Interfaces(ctx); err != nil {
			return nil, nil, err
		}
	}
	var a joinAnswer
	ca, err := post(ctx, address, t, &req, &a)
	if err != nil {
		return nil, nil, err
	}
	n := &newcomer{ca: ca, key: key, crl: a.CRL, secret: a.Secret}
	n.membership = membership{
		ID: a.ID, Node: db.node, Number: a.Number, Address: cmp.Or(a.Address, req.Address), Family: a.Family, Role: role, Peers: a.Peers,
		External: len(db.options.Config.Endpoints) > 0,
	}
	if n.cert, err = parseCert(a.Cert); err != nil {
		return nil, nil, err
	}
	if len(a.Secret) != keyBytes || clusterHash(a.ID) != t.cluster || (req.Address == "") != (a.Family != FamilyByHand) {
		return nil, nil, fmt.Errorf("the answer of %s: %w", address, ErrDamaged)
	}
	return n, a.Nodes, verifyChain(n.cert, ca, x509.ExtKeyUsageServerAuth, time.Now())
}

// post sends a join request to a member that proves to have the token's CA.
func post(ctx context.Context, address string, t *token, req *joinRequest, a *joinAnswer) (*x509.Certificate, error) {
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	var ca *x509.Certificate
	transport := &http.Transport{TLSClientConfig: pinned(t, &ca), TLSHandshakeTimeout: headerTimeout, DisableKeepAlives: true}
	defer transport.CloseIdleConnections()
	body, err := json.Marshal(req)
	if err != nil {
		return nil, err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+address+pathJoin, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("%q is not an address: %w", address, err)
	}
	resp, err := (&http.Client{Transport: transport}).Do(r)
	if err != nil {
		return nil, fmt.Errorf("the member at %s: %w", address, unwrapURL(err))
	}
	defer func() { _ = resp.Body.Close() }()
	if err := readAnswer(resp, a); err != nil {
		return nil, fmt.Errorf("the member at %s refuses: %w", address, err)
	}
	return ca, nil
}

// unwrapURL takes net/http's frame off an error.
func unwrapURL(err error) error {
	if inner := errors.Unwrap(err); inner != nil {
		return inner
	}
	return err
}
