package cluster

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// The steward's times.
const (
	stewardBeat = 500 * time.Millisecond
	pingTimeout = time.Second
	stewardCall = 3 * time.Second
	learnerWait = 15 * time.Second // for a member that was added to start
)

// steward keeps this node's part in the database what the cluster wants it to be. On the node where
// etcd's leader is, it also sees to it that the right nodes vote.
type steward struct {
	db    *DB
	s     *self
	kick  <-chan struct{}
	pings *http.Client

	heard map[string]time.Time // node → last good ping, while this node leads; first seen counts as heard
	tries map[string]time.Time // node → when its learner was added
	told  string               // last trouble that was logged
}

func newSteward(db *DB, s *self, kick <-chan struct{}) *steward {
	transport := &http.Transport{
		TLSClientConfig: db.clientTLS(s, ""), TLSHandshakeTimeout: pingTimeout, IdleConnTimeout: time.Minute,
		MaxConnsPerHost: 1, MaxIdleConnsPerHost: 1, TLSNextProto: map[string]func(string, *tls.Conn) http.RoundTripper{},
	}
	return &steward{
		db: db, s: s, kick: kick, pings: &http.Client{Transport: transport, Timeout: pingTimeout},
		heard: map[string]time.Time{}, tries: map[string]time.Time{},
	}
}

func (w *steward) run(ctx context.Context) {
	defer w.pings.CloseIdleConnections()
	if w.s.identity().External {
		return
	}
	tick := time.NewTicker(stewardBeat)
	defer tick.Stop()
	for {
		err := w.beat(ctx)
		if ctx.Err() != nil {
			return
		}
		w.tell(err)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-w.kick:
		case <-w.memberEnds():
		}
	}
}

// memberEnds is closed when the cluster removes the member here; nil without one, or once it has ended.
func (w *steward) memberEnds() <-chan struct{} {
	if m, _ := w.db.running(); m != nil && m.alive() {
		return m.ended()
	}
	return nil
}

// tell logs a trouble once.
func (w *steward) tell(err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text != w.told && text != "" {
		w.db.log.Warn("the cluster's membership is not as it should be", "err", text)
	}
	w.told = text
}

func (w *steward) beat(ctx context.Context) error {
	if m, _ := w.db.running(); m != nil && !m.alive() {
		if err := w.lost(ctx, m); err != nil {
			return err
		}
	}
	w.vote()
	ctx, cancel := context.WithTimeout(ctx, stewardCall)
	defer cancel()
	own, err := get[Member](ctx, w.db, memberKeys+w.db.node)
	if errors.Is(err, ErrNotFound) || status.Code(err) == codes.PermissionDenied {
		w.db.wasEvicted()
		return nil
	}
	if err != nil {
		return err
	}
	members, err := w.db.client.MemberList(ctx)
	if err != nil {
		return unavailable(err)
	}
	if err := errors.Join(w.follow(ctx, &own.value, members.Members), w.renew(ctx)); err != nil {
		return err
	}
	if m, _ := w.db.running(); m != nil && m.leads() {
		return w.lead(ctx, m)
	}
	clear(w.heard)
	return nil
}

// lost goes on through the other voters when the member here was removed or has died.
func (w *steward) lost(ctx context.Context, m *member) error {
	if w.db.wasRemoved(ctx, m) {
		w.db.log.Info("this node votes no more")
		w.db.x.set(nil, false)
		return errors.Join(m.stop(), w.db.withoutVoter(w.s))
	}
	_, remote := w.db.running()
	if w.db.x.is(m.client) && len(w.s.identity().Peers) > 1 {
		w.db.log.Error("this node's part of the cluster database has died; going on through the other voters; restart lunard when its disk is well")
		w.db.x.set(remote, false)
	}
	return nil
}

// vote goes on through the member here once that votes. It asks no other: the only voter that this node
// knew until now may be the one that has died since.
func (w *steward) vote() {
	m, _ := w.db.running()
	if m == nil || !m.alive() || !m.votes() || w.db.x.is(m.client) {
		return
	}
	w.db.x.set(m.client, false)
	w.db.log.Info("this node votes in the cluster database")
}

// follow does what the records want of this node.
func (w *steward) follow(ctx context.Context, own *Member, list []*etcdserverpb.Member) error {
	i := slices.IndexFunc(list, func(m *etcdserverpb.Member) bool { return m.ID == own.EtcdID })
	if m, _ := w.db.running(); m == nil && own.EtcdID != 0 && i >= 0 {
		return w.start(ctx, list[i], list)
	}
	return w.endpoints(list)
}

// endpoints keeps the voters' addresses, here and for the next start.
func (w *steward) endpoints(list []*etcdserverpb.Member) error {
	var urls []string
	for _, m := range list {
		if !m.IsLearner {
			urls = append(urls, m.ClientURLs...)
		}
	}
	slices.Sort(urls)
	if len(urls) == 0 || slices.Equal(urls, w.s.identity().Peers) {
		return nil
	}
	if _, remote := w.db.running(); remote != nil {
		remote.SetEndpoints(urls...)
	}
	return w.s.update(func(id *membership) { id.Peers = urls })
}

// start runs the etcd member that the leader has made for this node. One that has run elsewhere before
// must not run again without its files: it could vote twice.
func (w *steward) start(ctx context.Context, own *etcdserverpb.Member, list []*etcdserverpb.Member) error {
	if own.Name != "" || !own.IsLearner {
		_, err := w.db.client.MemberRemove(ctx, own.ID)
		return err
	}
	if err := os.RemoveAll(w.db.etcdDir()); err != nil {
		return err
	}
	if err := w.s.update(func(id *membership) { id.Voter = true }); err != nil {
		return err
	}
	m, err := w.db.launch(w.s, initialCluster(w.db.node, own.ID, list))
	if err != nil {
		return errors.Join(err, w.s.update(func(id *membership) { id.Voter = false }))
	}
	_, remote := w.db.running()
	w.db.setEngine(m, remote)
	return nil
}

func initialCluster(node string, own uint64, list []*etcdserverpb.Member) string {
	var parts []string
	for _, m := range list {
		name := m.Name
		if m.ID == own {
			name = node
		}
		if name == "" {
			name = fmt.Sprintf("%x", m.ID)
		}
		for _, u := range m.PeerURLs {
			parts = append(parts, name+"="+u)
		}
	}
	return strings.Join(parts, ",")
}

// renew signs this node's certificate anew when its end comes near.
func (w *steward) renew(ctx context.Context) error {
	now := time.Now()
	if w.s.left(now) > renewBefore {
		return nil
	}
	r, err := w.db.clusterRecord(ctx)
	if err != nil {
		return err
	}
	ca, err := w.db.authority(&r.value)
	if err != nil || ca.cert.NotAfter.Sub(now) < renewBefore {
		return err
	}
	cert, err := ca.issue(w.db.node, w.s.identity().Address, w.s.key.Public(), now)
	if err != nil {
		return err
	}
	_, err = update(ctx, w.db, memberKeys+w.db.node, func(m *Member) ([]clientv3.Cmp, error) {
		m.Serials = append(m.Serials, serialOf(cert))
		return nil, nil
	})
	if err != nil {
		return err
	}
	return w.s.setCert(cert)
}

// lead makes the next change of etcd's membership.
func (w *steward) lead(ctx context.Context, m *member) error {
	members, err := w.db.Members(ctx)
	if err != nil {
		return err
	}
	list, err := m.client.MemberList(ctx)
	if err != nil {
		return unavailable(err)
	}
	w.listen(ctx, members)
	seats, err := w.seats(ctx, m, members, list.Members)
	if err != nil {
		return err
	}
	return w.take(ctx, m, plan(seats), seats)
}

// listen asks every node whether it lives.
func (w *steward) listen(ctx context.Context, members []Member) {
	var mu sync.Mutex // guards heard
	var all sync.WaitGroup
	now := time.Now()
	heard := map[string]time.Time{}
	for i := range members {
		member := &members[i]
		all.Go(func() {
			alive := member.Name == w.db.node || w.ping(ctx, member)
			mu.Lock()
			defer mu.Unlock()
			before, known := w.heard[member.Name]
			heard[member.Name] = before
			if alive || !known {
				heard[member.Name] = now
			}
		})
	}
	all.Wait()
	w.heard = heard
}

func (w *steward) ping(ctx context.Context, member *Member) bool {
	p, err := askPing(ctx, w.pings, member.Address)
	return err == nil && p.Node == member.Name && (p.Voter || member.EtcdID == 0 || time.Since(w.tries[member.Name]) < learnerWait)
}

func askPing(ctx context.Context, client *http.Client, address string) (ping, error) {
	var p ping
	u := url.URL{Scheme: "https", Host: hostPort(address, nodePort), Path: pathPing}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), http.NoBody)
	if err != nil {
		return p, err
	}
	resp, err := client.Do(r)
	if err != nil {
		return p, unwrapURL(err)
	}
	defer func() { _ = resp.Body.Close() }()
	err = readAnswer(resp, &p)
	return p, err
}

// seats joins records and etcd's list by address, and mends records that do not name their member.
func (w *steward) seats(ctx context.Context, m *member, members []Member, list []*etcdserverpb.Member) ([]seat, error) {
	var seats []seat
	known := map[uint64]bool{}
	for i := range members {
		r := &members[i]
		s := seat{name: r.Name, number: r.Number, witness: r.Witness(), leaving: r.Leaving}
		s.alive = time.Since(w.heard[r.Name]) < w.db.options.VoterPatience
		if e := byAddress(list, r.Address); e != nil {
			s.id, s.learner, s.voter, s.leader = e.ID, e.IsLearner, !e.IsLearner, e.ID == m.id()
			s.starting = e.Name == ""
			known[e.ID] = true
		}
		if s.id != r.EtcdID {
			if err := w.db.setEtcdID(ctx, r.Name, s.id); err != nil {
				return nil, err
			}
		}
		seats = append(seats, s)
	}
	for _, e := range list {
		if !known[e.ID] {
			seats = append(seats, seat{id: e.ID, voter: !e.IsLearner, learner: e.IsLearner})
		}
	}
	return seats, nil
}

func byAddress(list []*etcdserverpb.Member, address string) *etcdserverpb.Member {
	peer := endpoint(address, peerPort)
	i := slices.IndexFunc(list, func(m *etcdserverpb.Member) bool { return slices.Contains(m.PeerURLs, peer.String()) })
	if i < 0 {
		return nil
	}
	return list[i]
}

func (w *steward) take(ctx context.Context, m *member, next step, seats []seat) error {
	var err error
	switch next.do {
	case nothing:
		return nil
	case addLearner:
		err = w.add(ctx, m, next.name)
	case promote:
		_, err = m.client.MemberPromote(ctx, next.id)
	case remove:
		_, err = m.client.MemberRemove(ctx, next.id)
	case handOver:
		_, err = m.client.MoveLeader(ctx, next.id)
	}
	if err != nil && strings.Contains(err.Error(), "learner") {
		return nil // it is not yet in step with the leader
	}
	if err == nil && (next.do == promote || next.do == remove) {
		w.db.log.Info("the cluster's voters change", "change", deeds[next.do], "node", next.name, "seats", len(seats))
		w.db.kick()
	}
	return err
}

var deeds = map[deed]string{addLearner: "add", promote: "promote", remove: "remove", handOver: "hand over"}

func (w *steward) add(ctx context.Context, m *member, name string) error {
	node, err := w.db.Member(ctx, name)
	if err != nil {
		return err
	}
	peer := endpoint(node.Address, peerPort)
	w.tries[name] = time.Now()
	added, err := m.client.MemberAddAsLearner(ctx, []string{peer.String()})
	if err != nil {
		return err
	}
	return w.db.setEtcdID(ctx, name, added.Member.ID)
}
