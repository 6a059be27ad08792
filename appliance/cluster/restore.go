package cluster

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"go.etcd.io/etcd/etcdutl/v3/snapshot"

	"lunar/appliance/config"
)

// The steps by which a restored database is ahead of anything that was told after it was saved: etcd's
// revisions, and the numbers of coordinators' terms. An older number must never look newer.
const (
	revisionBump = 1 << 40
	epochBump    = 1 << 32
)

// RestoreOptions for Restore.
type RestoreOptions struct {
	Dir    string // state directory; no lunard may use it
	Node   string
	Config config.Cluster
	File   string
	Force  bool // over the database of another cluster, or of a node in no cluster
	Log    *slog.Logger
	// Network tells the address, where the cluster gives it; it is not brought up. It may be nil.
	Network Network
}

// Restore puts a saved file in the place of this node's database, after a disaster: when most voters
// are lost for good. No other node of the cluster may run its database then; they leave with --force and
// join anew. This node is the cluster's only member when it starts next; volumes, targets, reservations
// and secrets are as they were saved. The database before is kept beside it. ErrLocked: a lunard
// runs. ErrDamaged: the file is not whole. ErrExists: there is another cluster's database and no Force.
func Restore(ctx context.Context, o RestoreOptions) (Saved, error) {
	saved, err := restore(ctx, &o)
	if err != nil {
		return saved, fmt.Errorf("cluster: restore %s: %w", o.File, err)
	}
	return saved, nil
}

func restore(ctx context.Context, o *RestoreOptions) (Saved, error) {
	if len(o.Config.Endpoints) > 0 {
		return Saved{}, errors.New("cluster.endpoints names an external etcd: restore it with its own tools (etcdutl)")
	}
	lock, err := lockDir(o.Dir)
	if err != nil {
		return Saved{}, err
	}
	defer lock.release()
	body := filepath.Join(o.Dir, "restore.db")
	defer func() { _ = os.Remove(body) }()
	head, size, err := unpack(o.File, body)
	if err != nil {
		return Saved{}, err
	}
	if err := o.mayReplace(head); err != nil {
		return Saved{}, err
	}
	if head.Cluster != "" && o.Config.Address == "" && (o.Network == nil || head.Family == FamilyByHand) {
		return Saved{}, fmt.Errorf("%w: set cluster.address, by which the other nodes will reach this one", ErrAddress)
	}
	if err := ctx.Err(); err != nil {
		return Saved{}, err
	}
	mark := filepath.Join(o.Dir, restoreMark)
	if err := errors.Join(writeSynced(mark, nil), syncDir(o.Dir)); err != nil {
		return Saved{}, err
	}
	if err := o.place(head, body); err != nil {
		return Saved{}, err
	}
	if err := o.revise(ctx, head); err != nil {
		return Saved{}, err
	}
	return head.saved(size), errors.Join(os.Remove(mark), syncDir(o.Dir))
}

// restoreMark lies in the state directory while a restore is under way.
const restoreMark = "restoring"

// restoreCutShort tells a state directory that is half restored: it would look like an empty one.
func restoreCutShort(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, restoreMark))
	return err == nil
}

// unpack checks the whole file before anything is touched.
func unpack(path, body string) (*saveHead, int64, error) {
	in, err := os.Open(path)
	if err != nil {
		return nil, 0, err
	}
	defer func() { _ = in.Close() }()
	info, err := in.Stat()
	if err != nil {
		return nil, 0, err
	}
	out, err := os.OpenFile(body, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, 0, err
	}
	head, err := readSave(bufio.NewReader(in), out)
	return head, info.Size(), errors.Join(err, out.Sync(), out.Close())
}

// mayReplace refuses to put one cluster's database in another's place.
func (o *RestoreOptions) mayReplace(head *saveHead) error {
	if o.Force || restoreCutShort(o.Dir) {
		return nil
	}
	s, err := loadSelf(o.Dir)
	if err != nil {
		return err
	}
	_, err = os.Stat(filepath.Join(o.Dir, "etcd"))
	switch {
	case s == nil && errors.Is(err, os.ErrNotExist):
		return nil
	case s == nil:
		return fmt.Errorf("%w: %s holds a database of its own; use --force if it may go (it is kept beside)", ErrExists, o.Dir)
	case s.identity().ID != head.Cluster:
		return fmt.Errorf("%w: %s is of cluster %s and the file of cluster %q; use --force if this node is to change over",
			ErrExists, o.Dir, s.identity().ID, head.Cluster)
	}
	return nil
}

// place swaps the database in the state directory. What was there stays under a name with the time.
func (o *RestoreOptions) place(head *saveHead, body string) error {
	fresh := filepath.Join(o.Dir, "etcd.new")
	if err := os.RemoveAll(fresh); err != nil {
		return err
	}
	peer := "http://localhost:2380"
	if head.Cluster != "" && o.Config.Address != "" {
		u := endpoint(o.Config.Address, peerPort)
		peer = u.String()
	}
	setSegmentSize()
	err := snapshot.NewV3(zapLogger(o.Log, newLastWord())).Restore(snapshot.RestoreConfig{
		SnapshotPath: body, Name: o.Node, OutputDataDir: fresh, PeerURLs: []string{peer},
		InitialCluster: o.Node + "=" + peer, InitialClusterToken: "lunar", RevisionBump: revisionBump, MarkCompacted: true,
	})
	if err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	suffix := ".before-" + time.Now().UTC().Format("20060102T150405.000")
	for _, name := range []string{"etcd", identityDir, secretFile} {
		path := filepath.Join(o.Dir, name)
		if err := os.Rename(path, path+suffix); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	if err := writeSynced(filepath.Join(o.Dir, secretFile), head.Secret); err != nil {
		return err
	}
	if err := os.Rename(fresh, filepath.Join(o.Dir, "etcd")); err != nil {
		return err
	}
	return syncDir(o.Dir)
}

// revise opens the restored database once, with no port open, and makes it this node's alone.
func (o *RestoreOptions) revise(ctx context.Context, head *saveHead) error {
	db := &DB{node: o.Node, log: o.Log, x: newExchange(), evicted: make(chan struct{})}
	db.options = Options{Dir: o.Dir, Node: o.Node, Config: o.Config, Log: o.Log, quota: quotaBytes}
	if o.Network != nil {
		db.options.Network = offLine{o.Network}
	}
	db.client = newSwitched(ctx, db.x)
	key, err := newVault(head.Secret)
	if err != nil {
		return err
	}
	db.vault.Store(key)
	if err := db.openAlone(ctx); err != nil {
		return err
	}
	err = db.reviseRecords(ctx, head)
	return errors.Join(err, db.Close())
}

// offLine is a Network that tells addresses and takes none.
type offLine struct{ Network }

// Up implements Network.
func (offLine) Up(context.Context, NetworkStart) error { return nil }

// Down implements Network.
func (offLine) Down() error { return nil }

func (db *DB) reviseRecords(ctx context.Context, head *saveHead) error {
	if err := db.raise(ctx); err != nil {
		return err
	}
	if head.Cluster == "" {
		return nil
	}
	members, err := db.Members(ctx)
	if err != nil {
		return err
	}
	for i := range members {
		if err := db.removeMember(ctx, members[i].Name); err != nil {
			return err
		}
	}
	return db.refound(ctx)
}

// refound gives this node a certificate and a membership in the restored cluster.
func (db *DB) refound(ctx context.Context) error {
	n, err := db.found(ctx)
	if err != nil {
		return err
	}
	records, _, err := list[revocation](ctx, db, revokedKeys)
	if err != nil {
		return err
	}
	for i := range records {
		n.Revoked = append(n.Revoked, records[i].key[len(revokedKeys):])
	}
	ca, err := parseAuthority(certPEM(n.ca), n.caKey)
	if err != nil {
		return err
	}
	if n.crl, err = ca.revocations(n.Revoked, time.Now()); err != nil {
		return err
	}
	return n.store(db.options.Dir)
}
