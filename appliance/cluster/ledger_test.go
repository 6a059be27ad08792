package cluster

import (
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/etcdutl/v3/snapshot"
	"go.uber.org/zap"
)

// outside is an external etcd that can be put back.
type outside struct {
	t       *testing.T
	address string
	at      string
	stop    func()
}

func newOutside(t *testing.T) *outside {
	t.Helper()
	o := &outside{t: t, address: newAddress()}
	o.at, o.stop = externalIn(t, t.TempDir(), o.address, transport.TLSInfo{})
	t.Cleanup(func() { o.stop() })
	return o
}

// save is a backup.
func (o *outside) save(db *DB) (path string) {
	o.t.Helper()
	path = filepath.Join(o.t.TempDir(), "backup")
	stream, err := db.client.Snapshot(o.t.Context())
	must(o.t, err)
	file, err := os.Create(path)
	must(o.t, err)
	_, err = io.Copy(file, stream)
	must(o.t, errors.Join(err, stream.Close(), file.Close()))
	return path
}

// putBack starts the etcd anew from a backup.
func (o *outside) putBack(path string, bump uint64) {
	o.t.Helper()
	o.stop()
	dir := filepath.Join(o.t.TempDir(), "restored")
	peer := "http://" + hostPort(o.address, peerPort)
	must(o.t, snapshot.NewV3(zap.NewNop()).Restore(snapshot.RestoreConfig{
		SnapshotPath: path, Name: "outside", OutputDataDir: dir, PeerURLs: []string{peer}, InitialCluster: "outside=" + peer,
		InitialClusterToken: "etcd-cluster", RevisionBump: bump, MarkCompacted: bump > 0,
	}))
	_, o.stop = externalIn(o.t, dir, o.address, transport.TLSInfo{})
}

func (o *outside) node(name string) Options {
	options := nodeOptions(o.t, name)
	options.Config.Endpoints = []string{o.at}
	return options
}

// TestRefusalIsKept: what was seen just before the database went back counts at the next start, although keep had no time
// to store it.
func TestRefusalIsKept(t *testing.T) {
	db := &DB{options: Options{Dir: t.TempDir()}, log: slog.New(slog.DiscardHandler)}
	l := &ledger{path: filepath.Join(db.options.Dir, "external.json"), of: func() string { return "a" }, log: db.log}
	must(t, l.answered(&etcdserverpb.ResponseHeader{Revision: 7}, 0))
	if err := l.answered(&etcdserverpb.ResponseHeader{Revision: 5}, l.sent()); !errors.Is(err, ErrWentBack) {
		t.Error(err)
	}
	if l, err := db.openLedger(); err != nil || l.mark.Revision != 7 {
		t.Errorf("kept: %+v: %v", l, err)
	}
}

// TestExternalWentBack: an external etcd that was put back to an older state is refused at a start and by those who
// run, also if its revisions were raised; once accepted, no number is given again.
func TestExternalWentBack(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	o := newOutside(t)
	first, second := o.node("a"), o.node("b")
	a, b := openNode(t, first), openNode(t, second)
	must(t, a.Init(ctx))
	must(t, b.Join(ctx, "", newTokenOf(t, a)))
	v, err := a.AddVolume(ctx, Volume{Name: "Volume1", WWID: "w", Device: "/dev/x"})
	must(t, err)
	session, _ := startSession(t, a, MinTTL)
	session.Close()
	backup := o.save(a)
	session, _ = startSession(t, a, MinTTL)
	had := session.Incarnation()
	session.Close()
	must(t, a.Append(ctx, Event{Text: "after the backup"}))
	must(t, b.Append(ctx, Event{Text: "after the backup"}))
	must(t, a.Close())

	o.putBack(backup, 0)
	refusedBack := func(err error) {
		t.Helper()
		if !errors.Is(err, ErrWentBack) || !strings.Contains(err.Error(), "--accept-database") {
			t.Error(err)
		}
	}
	for until := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) { // b runs
		if err = b.Ping(ctx); errors.Is(err, ErrWentBack) || time.Now().After(until) {
			break
		}
	}
	refusedBack(err)
	refusedBack(b.Append(ctx, Event{Text: "x"}))
	must(t, b.Close())
	_, err = Open(ctx, second)
	refusedBack(err)
	_, err = Open(ctx, first)
	refusedBack(err)

	o.putBack(backup, 1<<30) // the revisions look new: the count of sessions does not
	a = openNode(t, first)
	_, err = a.StartSession(ctx, SessionOptions{Log: first.Log})
	refusedBack(err)
	must(t, a.Close())

	must(t, AcceptExternal(ctx, first))
	a, b = openNode(t, first), openNode(t, second)
	must(t, b.Ping(ctx))
	session, _ = startSession(t, a, MinTTL)
	if now := session.Incarnation(); now <= had {
		t.Errorf("incarnation %d after %d", now, had)
	}
	is, err := a.Volume(ctx, v.ID)
	if err != nil || is.Epoch < v.Epoch+epochBump {
		t.Errorf("volume %+v: %v", is, err)
	}
	if err := AcceptExternal(ctx, o.node("c")); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), "node a runs") {
		t.Error(err)
	}
	session.Close()
}
