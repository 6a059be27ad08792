package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
)

// startMember runs one etcd member in the fast profile, which allows a TTL of 1 s. It serves clients
// over the network if URLs are given.
func startMember(dir, name, peer, members string, clients ...string) (*embed.Etcd, error) {
	setSegmentSize()
	at, err := url.Parse(peer)
	if err != nil {
		return nil, err
	}
	cfg := embed.NewConfig()
	cfg.Name, cfg.Dir = name, filepath.Join(dir, "etcd")
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = nil, nil
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{*at}, []url.URL{*at}
	for _, client := range clients {
		at, err := url.Parse(client)
		if err != nil {
			return nil, err
		}
		cfg.ListenClientUrls, cfg.AdvertiseClientUrls = append(cfg.ListenClientUrls, *at), append(cfg.AdvertiseClientUrls, *at)
	}
	cfg.InitialCluster = members
	cfg.TickMs, cfg.ElectionMs = 100, 500
	cfg.LogLevel = "panic"
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	return embed.StartEtcd(cfg)
}

// freePeers names n nodes with a URL each, as etcd's InitialCluster.
func freePeers(t *testing.T, n int) (urls []string, members string) {
	t.Helper()
	var all []string
	for i := range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		must(t, err)
		urls = append(urls, "http://"+l.Addr().String())
		all = append(all, fmt.Sprintf("n%d=%s", i+1, urls[i]))
		must(t, l.Close())
	}
	return urls, strings.Join(all, ",")
}

// testMember is a member, and the database as its node sees it.
type testMember struct {
	*DB
	etcd *embed.Etcd
}

func memberDB(server *embed.Etcd, node string) *DB {
	return &DB{node: node, log: slog.New(slog.DiscardHandler), client: inProcess(server)}
}

// startMembers runs n members in this process, on the loop-back interface.
func startMembers(t *testing.T, n int) []testMember {
	t.Helper()
	urls, members := freePeers(t, n)
	out := make([]testMember, n)
	var wg sync.WaitGroup
	for i := range n {
		dir := t.TempDir()
		wg.Go(func() {
			name := fmt.Sprintf("n%d", i+1)
			server, err := startMember(dir, name, urls[i], members)
			if err != nil {
				t.Error(err)
				return
			}
			<-server.Server.ReadyNotify()
			out[i] = testMember{memberDB(server, name), server}
		})
	}
	wg.Wait()
	t.Cleanup(func() {
		for _, m := range out {
			if m.DB != nil {
				_ = m.client.Close()
				m.etcd.Close()
			}
		}
	})
	if t.Failed() {
		t.FailNow()
	}
	return out
}

// TestStoppedMemberFreesItsPorts: a member whose end was cut short, as by a panic of etcd that ends the goroutine,
// leaves no port behind: the node could neither begin nor join a cluster.
func TestStoppedMemberFreesItsPorts(t *testing.T) {
	urls, members := freePeers(t, 1)
	clients, _ := freePeers(t, 1)
	server, err := startMember(t.TempDir(), "n1", urls[0], members, clients[0])
	must(t, err)
	<-server.Server.ReadyNotify()
	defer server.Close()
	must(t, stopBy(server, runtime.Goexit))
	for _, u := range []string{urls[0], clients[0]} {
		l, err := net.Listen("tcp", strings.TrimPrefix(u, "http://"))
		must(t, err)
		must(t, l.Close())
	}
}

// asNode is the same database seen from another node.
func asNode(db *DB, node string) *DB {
	return &DB{node: node, log: db.log, client: db.client}
}

type sessionLog struct {
	mu       sync.Mutex // guards what follows
	lost     []error
	deadline int64
}

func startSession(t *testing.T, db *DB, ttl time.Duration) (*Session, *sessionLog) {
	t.Helper()
	var log sessionLog
	s, err := db.StartSession(t.Context(), SessionOptions{
		Address: "127.0.0.1", TTL: ttl, Log: db.log,
		Renewed: func(deadline int64) { log.mu.Lock(); log.deadline = deadline; log.mu.Unlock() },
		Lost:    func(_ uint64, reason error) { log.mu.Lock(); log.lost = append(log.lost, reason); log.mu.Unlock() },
	})
	must(t, err)
	t.Cleanup(s.Close)
	return s, &log
}

// eventually waits until done says so.
func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !done(); {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", patience, what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func TestSession(t *testing.T) {
	db := startMembers(t, 1)[0].DB
	before := Boottime()
	const ttl = 3 * time.Second // for a loaded machine, which renews late
	s, log := startSession(t, db, ttl)
	first := s.Deadline()
	if limit := Boottime() + int64(ttl-ttl/100); first <= before || first > limit {
		t.Fatalf("deadline %v from now", time.Duration(first-Boottime()))
	}
	eventually(t, "a renewal", func() bool { return s.Deadline() > first })
	s.SetPath("v1", true)
	s.SetPath("v2", false)
	c := db.Coordinators(s)
	eventually(t, "the paths are published", func() bool {
		v, err := c.View(t.Context())
		must(t, err)
		n := v.Nodes["n1"]
		return n.Paths["v1"] && len(n.Paths) == 2 && !n.Paths["v2"] && n.Address == "127.0.0.1" && n.Incarnation == s.Incarnation()
	})
	eventually(t, "it outlives its first time", func() bool { return s.Deadline() > first+int64(ttl) })
	log.mu.Lock()
	if s.Incarnation() != 1 || len(log.lost) > 0 {
		t.Errorf("incarnation %d, lost %v", s.Incarnation(), log.lost)
	}
	log.mu.Unlock()
	s.Close()
	if s.Deadline() != 0 || log.deadline != 0 || s.Incarnation() != 0 {
		t.Fatal("a closed session has a deadline")
	}
	if _, err := db.session(t.Context(), "n1"); !errors.Is(err, ErrNotFound) {
		t.Fatalf("the session is still there: %v", err)
	}
}

func TestSessionOptions(t *testing.T) {
	for _, o := range []SessionOptions{{}, {Log: slog.Default(), TTL: time.Millisecond}, {Log: slog.Default(), TTL: 1500 * time.Millisecond}} {
		if o.Validate() == nil {
			t.Errorf("%+v passed", o)
		}
	}
}

// TestSessionEnded: a session ended by others, and one of a process that died, are followed by a new
// incarnation; the facts are published again.
func TestSessionEnded(t *testing.T) {
	db := startMembers(t, 1)[0].DB
	s, log := startSession(t, db, time.Second)
	s.SetPath("v", true)
	other, _ := startSession(t, asNode(db, "n2"), time.Second)
	c := asNode(db, "n2").Coordinators(other)
	wait, err := c.Suspect(t.Context(), "n1", 1, "test")
	must(t, err)
	if wait != time.Second { // its renewals were not watched
		t.Fatalf("a fencer waits %v", wait)
	}
	eventually(t, "a new incarnation with its paths", func() bool {
		v, err := c.View(t.Context())
		must(t, err)
		return v.Nodes["n1"].Incarnation == 2 && v.Nodes["n1"].Paths["v"]
	})
	log.mu.Lock()
	if len(log.lost) != 1 || !errors.Is(log.lost[0], ErrSessionLost) {
		t.Errorf("lost: %v", log.lost)
	}
	log.mu.Unlock()
	wait, err = c.Suspect(t.Context(), "n1", 1, "again")
	if err != nil || wait <= 0 || wait > time.Second {
		t.Fatalf("again: %v, %v", wait, err)
	}
	again, _ := startSession(t, db, time.Second) // as after a crash, with the old lease still there
	eventually(t, "the older session ends", func() bool { return again.Incarnation() > 2 && s.Incarnation() != 2 })
}

// TestSessionDeadline: without a database the session is lost at its deadline, not before and not
// later, while each try is in flight.
func TestSessionDeadline(t *testing.T) {
	db := startMembers(t, 1)[0].DB
	slow := asNode(db, "n1")
	hole := &blackHole{KV: db.client.KV, Lease: db.client.Lease}
	slow.client = clientv3.NewCtxClient(t.Context())
	slow.client.KV, slow.client.Lease, slow.client.Watcher = hole, hole, db.client.Watcher
	s, log := startSession(t, slow, time.Second)
	other, _ := startSession(t, asNode(db, "n2"), time.Second)
	c := asNode(db, "n2").Coordinators(other)
	observed(t, c, "n1")
	hole.swallow.Store(true)
	time.Sleep(50 * time.Millisecond)
	deadline := s.Deadline()
	looked, gap := Boottime(), int64(0) // how long the machine kept this test from looking
	eventually(t, "it is lost", func() bool {
		now := Boottime()
		looked, gap = now, max(gap, now-looked)
		return s.Deadline() == 0
	})
	if late := time.Duration(looked - deadline); late < 0 || late > 100*time.Millisecond+2*time.Duration(gap) {
		t.Errorf("lost %v after the deadline, looked each %v", late, time.Duration(gap))
	}
	ended := time.Now()
	hole.swallow.Store(false)
	eventually(t, "it is established again", func() bool { return s.Incarnation() == 2 })
	t.Logf("established again after %v", time.Since(ended))
	log.mu.Lock()
	defer log.mu.Unlock()
	if len(log.lost) != 1 {
		t.Errorf("lost: %v", log.lost)
	}
	// It ran out by itself: who saw its last renewal has nothing to wait for.
	left, err := c.Suspect(t.Context(), "n1", 1, "test")
	if err != nil || left > 0 {
		t.Errorf("left %v, %v", left, err)
	}
	left, err = asNode(db, "n2").Coordinators(other).Suspect(t.Context(), "n1", 1, "test")
	if err != nil || left < 500*time.Millisecond || left > time.Second {
		t.Errorf("left %v, %v for one who saw nothing", left, err)
	}
}

// observed has c see the renewals of a node.
func observed(t *testing.T, c *Coordinators, node string) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); c.observe(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	eventually(t, "a renewal is seen", func() bool { return c.seen.last(node).revision != 0 })
}

// TestSilentNode: a node that renews nothing any more loses its session when that has run out by the clock of
// another one, and at once what it holds; one that renews unseen does not.
func TestSilentNode(t *testing.T) {
	db := startMembers(t, 1)[0].DB
	hole := &blackHole{KV: db.client.KV, Lease: db.client.Lease}
	dead := asNode(db, "n1")
	dead.client = clientv3.NewCtxClient(t.Context())
	dead.client.KV, dead.client.Lease, dead.client.Watcher = hole, hole, db.client.Watcher
	const ttl = 3 * time.Second // for a loaded machine, which renews late
	s, _ := startSession(t, dead, ttl)
	other, _ := startSession(t, asNode(db, "n2"), ttl)
	c := asNode(db, "n2").Coordinators(other)
	observed(t, c, "n1")
	for range 20 { // renewals that are not seen: the watch is behind
		is := c.seen.last("n1")
		is.at, is.revision = is.at-int64(time.Minute), is.revision-1
		c.seen.mu.Lock()
		c.seen.of["n1"] = is
		c.seen.mu.Unlock()
		must(t, c.endSession(t.Context(), "n1"))
		eventually(t, "another renewal", func() bool { return c.seen.last("n1").revision > is.revision })
	}
	if s.Incarnation() != 1 {
		t.Fatal("a node that was well lost its session")
	}
	record, err := db.client.Get(t.Context(), sessionKeys+"n1")
	must(t, err)
	hole.swallow.Store(true)
	var seen int64
	eventually(t, "its session is ended", func() bool {
		_, _ = db.client.KeepAliveOnce(t.Context(), clientv3.LeaseID(record.Kvs[0].Lease)) // so that it is not the lease that ends it
		at := c.seen.last("n1").at
		_, err := db.session(t.Context(), "n1")
		if err == nil {
			seen = at
		}
		return errors.Is(err, ErrNotFound)
	})
	took := time.Duration(Boottime() - seen)
	t.Logf("ended %v after its last renewal was seen", took)
	if took < ttl-ttl/100 {
		t.Errorf("ended after %v", took)
	}
	mark, err := get[ending](t.Context(), db, endingKeys+"n1")
	if err != nil || mark.value.By != "n2" {
		t.Errorf("ended by %+v, %v", mark.value, err)
	}
}

// TestLeftWithoutRecordBefore: the record of an incarnation was deleted in a database that was full, and the next one
// has a shorter TTL. How long the one before may act is not known then.
func TestLeftWithoutRecordBefore(t *testing.T) {
	for _, known := range []bool{true, false} {
		s, now := newSightings(), Boottime()
		if known {
			s.saw("n", renewal{Incarnation: 5, TTL: 30 * time.Second}, 50, now)
		}
		s.saw("n", renewal{Incarnation: 6, TTL: time.Second}, 60, now)
		if left := s.left("n", 5, 60, now); left != MaxTTL {
			t.Errorf("seen before: %v: left %v", known, left)
		}
		if left := s.left("n", 6, 60, now); left != time.Second {
			t.Errorf("seen before: %v: left %v", known, left)
		}
	}
}

// TestFullDatabase: a session lives on in a database that takes deletions only, and who fences it then waits for
// as long as any session lasts.
func TestFullDatabase(t *testing.T) {
	db := startMembers(t, 1)[0].DB
	full := asNode(db, "n1")
	kv := &fullKV{KV: db.client.KV}
	full.client = clientv3.NewCtxClient(t.Context())
	full.client.KV, full.client.Lease, full.client.Watcher = kv, db.client.Lease, db.client.Watcher
	s, log := startSession(t, full, time.Second)
	other, _ := startSession(t, asNode(db, "n2"), time.Second)
	c := asNode(db, "n2").Coordinators(other)
	observed(t, c, "n1")
	kv.full.Store(true)
	first := s.Deadline()
	eventually(t, "renewals go on", func() bool { return s.Deadline() > first+int64(1500*time.Millisecond) })
	log.mu.Lock()
	if len(log.lost) != 0 || s.Incarnation() != 1 {
		t.Errorf("lost: %v", log.lost)
	}
	log.mu.Unlock()
	left, err := c.Suspect(t.Context(), "n1", 1, "test")
	if err != nil || left != MaxTTL {
		t.Errorf("left %v, %v", left, err)
	}
}
