package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"lunar/appliance/config"
)

// Options for Open.
type Options struct {
	Dir    string         // directory, made if missing: embedded database, keys, certificates
	Node   string         // this node's name
	Config config.Cluster // no Endpoints: embedded
	Log    *slog.Logger

	// NodeAPI answers what other members ask on NodePort, except joins. Each request bears a verified
	// client certificate, see Caller. Nil: there is nothing to ask.
	NodeAPI http.Handler
	// Network is the node's way to the others. Nil: cluster.address must be set, and no heartbeats are sent.
	Network Network
	// VoterPatience is for how long a voter may be silent before another node takes its place; 0 means
	// DefaultVoterPatience.
	VoterPatience time.Duration

	quota int64  // of the database, bytes; 0 means quotaBytes
	joins string // address of the node API where the cluster gives addresses; "": all
}

// DefaultVoterPatience outlasts a restart.
const DefaultVoterPatience = time.Minute

// Validate checks what Open needs and fills in defaults.
func (o *Options) Validate() error {
	if o.Dir == "" || o.Node == "" || o.Log == nil {
		return errors.New("cluster: Options need Dir, Node and Log")
	}
	if o.VoterPatience == 0 {
		o.VoterPatience = DefaultVoterPatience
	}
	if o.quota == 0 {
		o.quota = quotaBytes
	}
	return nil
}

// DB is the cluster database; its methods may be called from any goroutine.
type DB struct {
	node    string
	options Options
	log     *slog.Logger
	client  *clientv3.Client // goes through x; the same for the life of the DB
	x       *exchange
	lock    *dirLock
	vault   atomic.Pointer[vault]
	self    atomic.Pointer[self] // nil: in no cluster
	revoked revoked
	ledger  *ledger     // nil: no external etcd
	low     atomic.Bool // the disk is nearly full
	leaving atomic.Bool // Leave is under way

	change sync.Mutex // held by what changes this node's part: Init, Join, Leave, Close
	shut   bool       // under change

	newPeers []NetworkPeer // under change: what the network is told next

	engine  sync.Mutex       // guards what follows, up to works
	evicted chan struct{}    // closed when this node learns that it was evicted
	out     bool             // evicted is closed
	member  *member          // nil: no etcd runs here
	remote  *clientv3.Client // to the voters, or to an external etcd; nil: alone
	works   *works           // of a node in a cluster

	closing sync.Once
	closed  error // result of the first Close
}

// startTimeout bounds the wait for a leader at start.
const startTimeout = 30 * time.Second

// Open starts the database, or joins the others where this node left them, and waits until it serves. A
// database that cannot be read gives ErrDamaged, a state directory in use ErrLocked, an external etcd
// that is silent, or too few voters, ErrUnavailable.
func Open(ctx context.Context, o Options) (_ *DB, err error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	db := &DB{node: o.Node, options: o, log: o.Log, x: newExchange(), evicted: make(chan struct{})}
	db.client = newSwitched(ctx, db.x)
	defer func() {
		if err != nil {
			err = errors.Join(err, db.Close())
		}
	}()
	if db.lock, err = lockDir(o.Dir); err != nil {
		return nil, fmt.Errorf("cluster: %w", err)
	}
	if err := db.open(ctx); err != nil {
		return nil, fmt.Errorf("cluster: %w", err)
	}
	return db, nil
}

// open starts what the state directory says that this node is.
func (db *DB) open(ctx context.Context) error {
	if restoreCutShort(db.options.Dir) {
		return fmt.Errorf("%w: a restore into %s was cut short; run `lunarctl cluster restore` again", ErrDamaged, db.options.Dir)
	}
	s, err := loadSelf(db.options.Dir)
	if err != nil {
		return err
	}
	v, err := openVault(db.options.Dir, s)
	if err != nil {
		return err
	}
	if s != nil && s.identity().Node != db.node {
		return fmt.Errorf("this node joined its cluster as %q, and is called %q now; set node.name back, or leave and join anew",
			s.identity().Node, db.node)
	}
	db.vault.Store(v)
	if s == nil {
		db.networkDown()
		err = db.openAlone(ctx)
	} else {
		err = db.openMember(ctx, s)
	}
	if err != nil {
		return err
	}
	db.begin(ctx, s)
	starting, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	return db.Ping(starting)
}

// openAlone is for a node that is in no cluster.
func (db *DB) openAlone(ctx context.Context) error {
	last := newLastWord()
	if len(db.options.Config.Endpoints) > 0 {
		remote, err := db.external(ctx, last)
		if err != nil {
			return err
		}
		last.running.Store(true)
		db.setEngine(nil, remote)
		db.x.set(remote, false)
		return nil
	}
	dir := filepath.Join(db.options.Dir, "etcd")
	m, err := runMember(dir, aloneConfig(dir, db.options, zapLogger(db.log, last)), nil, last.died)
	if err != nil {
		return err
	}
	if err := m.ready(ctx); err != nil {
		return errors.Join(err, m.stop())
	}
	last.running.Store(true)
	db.setEngine(m, nil)
	db.x.set(m.client, false)
	return nil
}

func (db *DB) setEngine(m *member, remote *clientv3.Client) {
	db.engine.Lock()
	defer db.engine.Unlock()
	db.member, db.remote = m, remote
}

func (db *DB) running() (*member, *clientv3.Client) {
	db.engine.Lock()
	defer db.engine.Unlock()
	return db.member, db.remote
}

// Ping does a linearizable read: it succeeds when the database answers, and ErrUnavailable says that
// it does not.
func (db *DB) Ping(ctx context.Context) error {
	if _, err := db.client.Get(ctx, root, clientv3.WithCountOnly()); err != nil {
		if errors.Is(err, ErrWentBack) {
			return err
		}
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return nil
}

// Close stops the database and waits; further calls fail. A second Close does nothing, and it may be
// called on a DB that is partly open.
func (db *DB) Close() error {
	db.closing.Do(func() { db.closed = db.close() })
	return db.closed
}

func (db *DB) close() error {
	db.change.Lock()
	defer db.change.Unlock()
	db.shut = true
	db.stopWorks()
	db.x.shut()
	err := errors.Join(db.halt(false), db.client.Close())
	if errors.Is(err, context.Canceled) {
		err = nil
	}
	db.networkDown()
	if db.lock != nil {
		db.lock.release()
	}
	return err
}

// halt ends everything that runs; calls wait until there is a client again, and so do watches if it is
// not to be another database. db.change is held.
func (db *DB) halt(another bool) error {
	db.stopWorks()
	db.x.set(nil, another)
	m, remote := db.running()
	db.setEngine(nil, nil)
	var err error
	if remote != nil {
		if e := remote.Close(); e != nil && !errors.Is(e, context.Canceled) {
			err = fmt.Errorf("cluster: close client: %w", e)
		}
	}
	if m != nil {
		err = errors.Join(err, m.stop())
	}
	return err
}
