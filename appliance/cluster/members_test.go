package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"lunar/appliance/config"
)

var lastAddress atomic.Uint32

// newAddress is a loop-back address that no other test has, of this process or another that runs now.
func newAddress() string {
	pid := os.Getpid()
	return fmt.Sprintf("127.%d.%d.%d", 64+pid>>8&0x7f, pid&0xff, 1+lastAddress.Add(1)%250)
}

// nodeOptions is a node that could be in a cluster, with the fast profile.
func nodeOptions(t *testing.T, name string) Options {
	log := slog.New(slog.DiscardHandler)
	if os.Getenv("LUNAR_TEST_LOG") != "" {
		log = slog.New(slog.NewTextHandler(os.Stderr, nil)).With("at", name)
	}
	return Options{
		Dir: t.TempDir(), Node: name, Log: log, VoterPatience: 4 * time.Second,
		Config: config.Cluster{Address: newAddress(), Profile: config.ProfileFast, Role: config.RoleNode},
	}
}

func openNode(t *testing.T, o Options) *DB {
	t.Helper()
	db, err := Open(t.Context(), o)
	must(t, err)
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

func newNode(t *testing.T, name string) *DB {
	t.Helper()
	return openNode(t, nodeOptions(t, name))
}

func newCluster(t *testing.T, names ...string) []*DB {
	t.Helper()
	var nodes []*DB
	for _, name := range names {
		nodes = append(nodes, newNode(t, name))
	}
	must(t, nodes[0].Init(t.Context()))
	for _, n := range nodes[1:] {
		must(t, n.Join(t.Context(), "", newTokenOf(t, nodes[0])))
	}
	return nodes
}

func newTokenOf(t *testing.T, db *DB) string {
	t.Helper()
	token, err := db.NewToken(t.Context(), 0)
	must(t, err)
	return token
}

// patience is for what ends within a second or two on a machine that has nothing else to do.
const patience = time.Minute

// waitVoters waits until exactly the named nodes vote, as db sees it.
func waitVoters(t *testing.T, db *DB, want ...string) {
	t.Helper()
	var got []string
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		st, err := db.Status(t.Context())
		got = got[:0]
		for i := range st.Members {
			if m := &st.Members[i]; m.Part == PartVoter && m.Alive {
				got = append(got, m.Name)
			} else if m.Part != PartClient {
				got = append(got, m.Name+":"+string(m.Part))
			}
		}
		if err == nil && slices.Equal(got, want) {
			return
		}
	}
	t.Fatalf("voters %v, want %v", got, want)
}

func writes(t *testing.T, db *DB, text string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		err := db.Append(ctx, Event{Text: text})
		if err == nil {
			return
		}
		if ctx.Err() != nil {
			t.Fatalf("%s: %v", text, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// evicts lets the other voters answer late.
func evicts(t *testing.T, db *DB, node string) {
	t.Helper()
	err := db.Evict(t.Context(), node)
	for end := time.Now().Add(patience); errors.Is(err, ErrInUse) && time.Now().Before(end); {
		time.Sleep(100 * time.Millisecond)
		err = db.Evict(t.Context(), node)
	}
	must(t, err)
}

func sees(t *testing.T, db *DB, text string) {
	t.Helper()
	events, _, err := db.Events(t.Context())
	must(t, err)
	if !slices.ContainsFunc(events, func(e Event) bool { return e.Text == text }) {
		t.Fatalf("%s does not see %q in %v", db.node, text, events)
	}
}

func TestInitKeepsWhatWasThere(t *testing.T) {
	t.Parallel()
	o := nodeOptions(t, "a")
	db := openNode(t, o)
	v, err := db.AddVolume(t.Context(), Volume{Name: "V", WWID: "w"})
	must(t, err)
	sealed := db.Seal("secret", "use")
	events, revision, err := db.Events(t.Context())
	must(t, err)
	followed := make(chan error, 1)
	stop := errors.New("stop")
	go func() { followed <- db.Follow(t.Context(), revision, func(Event) error { return stop }) }()
	must(t, db.Init(t.Context()))
	wantErr(t, db.Init(t.Context()), ErrMember)
	must(t, db.Append(t.Context(), Event{Text: "after"}))
	wantErr(t, <-followed, stop)
	check := func(db *DB) {
		t.Helper()
		got, err := db.Volumes(t.Context())
		must(t, err)
		secret, err := db.Unseal(sealed, "use")
		must(t, err)
		if len(events) != 0 || len(got) != 1 || got[0].ID != v.ID || string(secret) != "secret" || db.Number() != 1 || db.InCluster() == "" {
			t.Fatalf("volumes %+v, number %d", got, db.Number())
		}
		waitVoters(t, db, "a")
	}
	check(db)
	must(t, db.Close())
	check(openNode(t, o))
}

func TestInitNeedsAnAddress(t *testing.T) {
	t.Parallel()
	db := open(t, t.TempDir())
	wantErr(t, db.Init(t.Context()), ErrAddress)
	_, err := db.NewToken(t.Context(), 0)
	wantErr(t, err, ErrAlone)
	wantErr(t, db.Leave(t.Context(), false), ErrAlone)
	wantErr(t, db.Evict(t.Context(), "x"), ErrAlone)
	o := nodeOptions(t, "n")
	o.Config.Address = "192.0.2.77"
	db = openNode(t, o)
	wantErr(t, db.Init(t.Context()), ErrAddress)
}

// TestThreeNodes goes through the life of a cluster: joins, a voter's death, its replacement, its
// return, an eviction and a second join.
func TestThreeNodes(t *testing.T) {
	t.Parallel()
	nodes := newCluster(t, "a", "b")
	a, b := nodes[0], nodes[1]
	waitVoters(t, a, "a")
	writes(t, b, "two")
	sees(t, a, "two")
	sealed := a.Seal("shared", "u")
	if s, err := b.Unseal(sealed, "u"); err != nil || string(s) != "shared" {
		t.Fatalf("%v", err)
	}

	oc := nodeOptions(t, "c")
	c := openNode(t, oc)
	must(t, c.Join(t.Context(), "", newTokenOf(t, b)))
	waitVoters(t, a, "a", "b", "c")
	members, err := b.Members(t.Context())
	must(t, err)
	if len(members) != 3 || members[2].Number != 3 || members[2].Address != oc.Config.Address {
		t.Fatalf("members %+v", members)
	}

	d := newNode(t, "d")
	must(t, d.Join(t.Context(), "", newTokenOf(t, c)))
	waitVoters(t, d, "a", "b", "c")

	started := time.Now()
	must(t, a.Close()) // was the leader
	writes(t, d, "without a")
	t.Logf("first write %v after the leader was closed", time.Since(started))
	waitVoters(t, b, "b", "c", "d")
	t.Logf("voter replaced after %v", time.Since(started))
	sees(t, c, "without a")

	a = openNode(t, a.options)
	sees(t, a, "without a")
	waitVoters(t, a, "b", "c", "d")

	evicts(t, b, "d")
	waitVoters(t, b, "a", "b", "c")
	wantErr(t, b.Evict(t.Context(), "d"), ErrNotFound)
	wantErr(t, b.Evict(t.Context(), "b"), ErrInUse)
	short, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if err := d.Append(short, Event{Text: "from outside"}); err == nil {
		t.Fatal("an evicted node writes")
	}
	must(t, d.Leave(t.Context(), true))
	must(t, d.Join(t.Context(), "", newTokenOf(t, a)))
	writes(t, d, "back")
	sees(t, b, "back")
	if m, err := d.Member(t.Context(), "d"); err != nil || m.Number != 5 {
		t.Fatalf("%+v, %v", m, err)
	}
}

func TestLeaveHandsTheVoteOver(t *testing.T) {
	t.Parallel()
	nodes := newCluster(t, "a", "b")
	a, b := nodes[0], nodes[1]
	must(t, a.Append(t.Context(), Event{Text: "kept"}))
	wantErr(t, b.Evict(t.Context(), "a"), ErrInUse) // the only voter
	must(t, a.Leave(t.Context(), false))
	sees(t, b, "kept")
	writes(t, b, "alone")
	waitVoters(t, b, "b")
	if a.InCluster() != "" {
		t.Fatal("still in")
	}
	events, _, err := a.Events(t.Context())
	must(t, err)
	if len(events) != 0 {
		t.Fatalf("events %v", events)
	}
	wantErr(t, b.Leave(t.Context(), false), ErrInUse)
	must(t, b.Leave(t.Context(), true))
	must(t, b.Init(t.Context()))
}

func TestWitness(t *testing.T) {
	t.Parallel()
	nodes := newCluster(t, "a", "b")
	o := nodeOptions(t, "w")
	o.Config.Role = config.RoleWitness
	w := openNode(t, o)
	must(t, w.Join(t.Context(), "", newTokenOf(t, nodes[0])))
	waitVoters(t, w, "a", "b", "w")
	m, err := nodes[1].Member(t.Context(), "w")
	must(t, err)
	if !m.Witness() {
		t.Fatalf("%+v", m)
	}
	must(t, nodes[0].Close())
	writes(t, nodes[1], "by b and the witness")
}

// TestVoterOutlivesTheOnlyOneItKnew has the first voter die before the second has been told that it votes.
func TestVoterOutlivesTheOnlyOneItKnew(t *testing.T) {
	t.Parallel()
	var nodes []*DB
	for _, name := range []string{"a", "b", "c"} {
		o := nodeOptions(t, name)
		o.VoterPatience = time.Hour
		nodes = append(nodes, openNode(t, o))
	}
	a, b, c := nodes[0], nodes[1], nodes[2]
	must(t, a.Init(t.Context()))
	must(t, b.Join(t.Context(), "", newTokenOf(t, a)))
	must(t, c.Join(t.Context(), "", newTokenOf(t, a)))
	waitMember(t, b, func(*member) bool { return true })
	b.stopWorks()
	waitMember(t, b, func(m *member) bool { return m.votes() && !b.x.is(m.client) })
	waitMember(t, c, func(m *member) bool {
		if mb, _ := b.running(); mb.leads() { // nobody there promotes c
			ma, _ := a.running()
			_, err := mb.client.MoveLeader(t.Context(), ma.id())
			t.Logf("a leads again: %v", err)
		}
		return m.votes()
	})
	must(t, a.Close())
	b.begin(t.Context(), b.self.Load())
	writes(t, b, "by b and c")
}

// TestRemovedMemberIsAsked: who asks a member that the cluster removes is answered, and goes on.
func TestRemovedMemberIsAsked(t *testing.T) {
	t.Parallel()
	nodes := newCluster(t, "a", "b", "c")
	waitVoters(t, nodes[0], "a", "b", "c")
	waitMember(t, nodes[2], (*member).votes)
	m, _ := nodes[2].running()
	asked := make(chan bool)
	go func() {
		defer close(asked)
		for m.alive() {
			m.votes()
		}
		asked <- m.votes()
	}()
	evicts(t, nodes[0], "c")
	if _, ok := <-asked; !ok || !m.over() { // it may not have heard of its removal before it ended, and think that it votes
		t.Fatalf("answered %v, removed %v", ok, m.over())
	}
}

// waitMember waits until a member runs in db that is what is wanted.
func waitMember(t *testing.T, db *DB, is func(*member) bool) {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if m, _ := db.running(); m != nil && is(m) {
			return
		}
	}
	t.Fatalf("no such member in %s", db.node)
}

func TestJoinIsRefused(t *testing.T) {
	t.Parallel()
	a, other := newCluster(t, "a")[0], newCluster(t, "x")[0]
	n := newNode(t, "n")
	ctx := t.Context()
	refused := func(err, want error, says string) {
		t.Helper()
		wantErr(t, err, want)
		if !strings.Contains(err.Error(), says) {
			t.Fatalf("%v does not say %q", err, says)
		}
	}
	good := newTokenOf(t, a)
	refused(n.Join(ctx, "", "lunar-nonsense"), ErrToken, "lunarctl cluster token")
	refused(n.Join(ctx, "", good[:len(good)-3]), ErrToken, "copied")
	refused(n.Join(ctx, other.options.Config.Address, good), ErrToken, "another cluster")
	wrong, err := parseToken(good)
	must(t, err)
	wrong.secret[0] ^= 1
	refused(n.Join(ctx, "", wrong.String()), ErrToken, "never made it")
	mixed := newToken(other.InCluster(), sum(a.self.Load().ca), a.options.Config.Address)
	refused(n.Join(ctx, "", mixed.String()), ErrToken, "another cluster")

	short, err := a.NewToken(ctx, time.Second)
	must(t, err)
	v, err := n.AddVolume(ctx, Volume{Name: "V", WWID: "w"})
	must(t, err)
	refused(n.Join(ctx, "", good), ErrNotEmpty, "eject")
	must(t, n.RemoveVolume(ctx, v.ID))

	twin := newNode(t, "a")
	refused(twin.Join(ctx, "", good), ErrExists, "evict")
	must(t, n.Join(ctx, a.options.Config.Address, good))
	m := newNode(t, "m")
	refused(m.Join(ctx, "", good), ErrToken, "node n has used it")
	refused(n.Join(ctx, "", newTokenOf(t, a)), ErrMember, "leave")
	parsed, err := parseToken(short)
	must(t, err)
	for range 100 {
		if _, err = a.checkToken(ctx, parsed.secret[:]); err != nil {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	refused(m.Join(ctx, "", short), ErrToken, "expired")
}

// TestTokenLetsOneIn has eight nodes race for one token.
func TestTokenLetsOneIn(t *testing.T) {
	t.Parallel()
	a := newCluster(t, "a")[0]
	token, err := parseToken(newTokenOf(t, a))
	must(t, err)
	results := make(chan error)
	for i := range 8 {
		name := fmt.Sprintf("n%d", i)
		csr, err := newRequest(name, newKey())
		must(t, err)
		go func() {
			_, err := a.admit(t.Context(), &joinRequest{
				Cluster: token.cluster[:], Secret: token.secret[:], Node: name, Address: newAddress(), Role: config.RoleNode, Request: csr,
			})
			results <- err
		}()
	}
	in := 0
	for range 8 {
		if err := <-results; err == nil {
			in++
		} else if !errors.Is(err, ErrToken) && !errors.Is(err, ErrConflict) {
			t.Error(err)
		}
	}
	members, err := a.Members(t.Context())
	must(t, err)
	if in != 1 || len(members) != 2 {
		t.Fatalf("%d got in, members %+v", in, members)
	}
}
