package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// wires gives the nodes of one test addresses on loop-back, as a Network does on the real ones.
type wires struct {
	mu    sync.Mutex // guards given
	given map[string]netip.Addr
}

func newWires() *wires { return &wires{given: map[string]netip.Addr{}} }

// wire is one node's Network.
type wire struct {
	*wires
	node   string
	noIPv6 bool

	mu     sync.Mutex // guards what follows
	starts []NetworkStart
	up     bool
}

func (w *wire) Address(cluster string, number uint16, family Family) netip.Addr {
	w.wires.mu.Lock()
	defer w.wires.mu.Unlock()
	key := fmt.Sprint(cluster, number, family)
	if !w.given[key].IsValid() {
		w.given[key] = netip.MustParseAddr(newAddress())
	}
	return w.given[key]
}

func (w *wire) IPv6() bool { return !w.noIPv6 }

func (w *wire) Interfaces(context.Context) (json.RawMessage, error) {
	return json.RawMessage(`["` + w.node + `"]`), nil
}

func (w *wire) Up(_ context.Context, s NetworkStart) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.up {
		return errors.New("it is up")
	}
	w.starts, w.up = append(w.starts, s), true
	return nil
}

func (w *wire) Down() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.up = false
	return nil
}

func (w *wire) last(t *testing.T) (NetworkStart, bool) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.starts) == 0 {
		t.Fatal("the network never came up")
	}
	return w.starts[len(w.starts)-1], w.up
}

// givenOptions is a node without cluster.address.
func givenOptions(t *testing.T, ws *wires, name string) (Options, *wire) {
	o, w := nodeOptions(t, name), &wire{wires: ws, node: name}
	o.joins, o.Config.Address, o.Network = o.Config.Address, "", w
	return o, w
}

func TestClusterGivesAddresses(t *testing.T) {
	t.Parallel()
	ws := newWires()
	oa, wa := givenOptions(t, ws, "a")
	ob, wb := givenOptions(t, ws, "b")
	a, b := openNode(t, oa), openNode(t, ob)
	must(t, a.Init(t.Context()))
	must(t, b.Join(t.Context(), oa.joins, newTokenOf(t, a)))
	writes(t, b, "over the given addresses")
	sees(t, a, "over the given addresses")

	members, err := b.Members(t.Context())
	must(t, err)
	for i, number := range []uint16{1, 2} {
		want := ws.given[fmt.Sprint(a.InCluster(), number, FamilyIPv6)]
		if members[i].Address != want.String() {
			t.Fatalf("member %+v, want address %v", members[i], want)
		}
	}
	if b.Address() != members[1].Address || b.Family() != FamilyIPv6 {
		t.Fatalf("address %q, family %q", b.Address(), b.Family())
	}
	began, _ := wa.last(t)
	joined, _ := wb.last(t)
	if began.Key != joined.Key || began.Key == [KeyBytes]byte{} {
		t.Fatalf("keys %x and %x", began.Key, joined.Key)
	}
	want := []NetworkPeer{{"a", 1, members[0].Address, json.RawMessage(`["a"]`)}}
	if got := fmt.Sprint(joined.Peers); joined.Number != 2 || got != fmt.Sprint(want) || joined.Address.String() != members[1].Address {
		t.Fatalf("b began with %+v, want peers %v", joined, want)
	}
	n, err := a.Networks(t.Context())
	must(t, err)
	if string(n.Interfaces["a"]) != `["a"]` || string(n.Interfaces["b"]) != `["b"]` {
		t.Fatalf("interfaces %v", n.Interfaces)
	}

	must(t, b.Close())
	if _, up := wb.last(t); up {
		t.Fatal("a closed node keeps its address")
	}
	b = openNode(t, ob)
	again, up := wb.last(t)
	if !up || again.Address != joined.Address || again.Peers != nil || again.Key != joined.Key {
		t.Fatalf("after a restart: %+v", again)
	}
	must(t, b.Leave(t.Context(), false))
	if _, up := wb.last(t); up || b.Address() != "" {
		t.Fatal("a node that left keeps its address")
	}
	if n, err = a.Networks(t.Context()); err != nil || n.Interfaces["b"] != nil {
		t.Fatalf("interfaces of a node that left: %v, %v", n.Interfaces, err)
	}
}

func TestJoinWithAnotherKindOfAddress(t *testing.T) {
	t.Parallel()
	ws := newWires()
	oa, _ := givenOptions(t, ws, "a")
	a := openNode(t, oa)
	must(t, a.Init(t.Context()))
	refused := func(o Options, by *DB, at, says string) {
		t.Helper()
		db := openNode(t, o)
		err := db.Join(t.Context(), at, newTokenOf(t, by))
		wantErr(t, err, ErrAddress)
		if !strings.Contains(err.Error(), says) || db.InCluster() != "" {
			t.Fatalf("%v does not say %q", err, says)
		}
	}
	refused(nodeOptions(t, "hand"), a, oa.joins, "remove cluster.address")
	old, w := givenOptions(t, ws, "old")
	w.noIPv6 = true
	refused(old, a, oa.joins, "IPv6")

	byHand := newNode(t, "h")
	must(t, byHand.Init(t.Context()))
	given, _ := givenOptions(t, ws, "given")
	refused(given, byHand, byHand.Address(), "set cluster.address")
}

func TestIPv4ClusterAddress(t *testing.T) {
	t.Parallel()
	o, w := givenOptions(t, newWires(), "a")
	w.noIPv6 = true
	db := openNode(t, o)
	must(t, db.Init(t.Context()))
	if db.Family() != FamilyIPv4 || db.Address() != w.given[fmt.Sprint(db.InCluster(), 1, FamilyIPv4)].String() {
		t.Fatalf("family %q, address %q", db.Family(), db.Address())
	}
}

func TestRestoreWithGivenAddress(t *testing.T) {
	t.Parallel()
	ws := newWires()
	o, _ := givenOptions(t, ws, "a")
	db := openNode(t, o)
	must(t, db.Init(t.Context()))
	id, file := db.InCluster(), filepath.Join(t.TempDir(), "saved")
	_, err := db.Save(t.Context(), file)
	must(t, err)
	must(t, db.Close())
	must(t, os.RemoveAll(o.Dir))
	must(t, os.Mkdir(o.Dir, 0o700))
	_, err = Restore(t.Context(), RestoreOptions{Dir: o.Dir, Node: "a", Config: o.Config, File: file, Log: o.Log, Network: o.Network})
	must(t, err)
	db = openNode(t, o)
	if want := ws.given[fmt.Sprint(id, db.Number(), FamilyIPv6)]; db.InCluster() != id || db.Address() != want.String() || db.Number() < 2 {
		t.Fatalf("cluster %s, number %d, address %s, want %v", db.InCluster(), db.Number(), db.Address(), want)
	}
	writes(t, db, "after the restore")
}

func TestNetworkSettings(t *testing.T) {
	t.Parallel()
	db := newNode(t, "a")
	must(t, db.Init(t.Context()))
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	var seen []string
	stop := errors.New("stop")
	followed := make(chan error, 1)
	go func() {
		followed <- db.WatchNetworks(ctx, func(n Networks) error {
			if seen = append(seen, string(n.Settings)); string(n.Settings) == `[2]` {
				return stop
			}
			return nil
		})
	}()
	must(t, db.StoreNetworks(ctx, 0, json.RawMessage(`[1]`)))
	wantErr(t, db.StoreNetworks(ctx, 0, json.RawMessage(`[3]`)), ErrConflict)
	n, err := db.Networks(ctx)
	must(t, err)
	must(t, db.StoreNetworks(ctx, n.Revision, json.RawMessage(`[2]`)))
	wantErr(t, <-followed, stop)
	if slices.Contains(seen, `[3]`) {
		t.Fatalf("seen %v", seen)
	}
	wantErr(t, db.PublishInterfaces(ctx, json.RawMessage(`[`)), ErrNetwork)
	wantErr(t, db.PublishInterfaces(ctx, json.RawMessage(`"`+strings.Repeat("x", maxNetworkBytes)+`"`)), ErrNetwork)
	must(t, db.PublishInterfaces(ctx, json.RawMessage(`[7]`)))
	before, err := db.Networks(ctx)
	must(t, err)
	must(t, db.PublishInterfaces(ctx, json.RawMessage(`[7]`)))
	if string(before.Interfaces["a"]) != `[7]` {
		t.Fatalf("interfaces %v", before.Interfaces)
	}
}
