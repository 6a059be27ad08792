package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"

	"lunar/appliance/config"
)

// Options for Open.
type Options struct {
	Dir    string         // directory, made if missing: embedded database and secret key
	Node   string         // this node's name, for events
	Config config.Cluster // no Endpoints: embedded
	Log    *slog.Logger
}

// Validate checks what Open needs.
func (o *Options) Validate() error {
	if o.Dir == "" || o.Node == "" || o.Log == nil {
		return errors.New("cluster: Options need Dir, Node and Log")
	}
	return nil
}

// DB is the cluster database; its methods may be called from any goroutine.
type DB struct {
	node   string
	log    *slog.Logger
	client *clientv3.Client
	server *embed.Etcd // nil with an external etcd
	lock   *dirLock
	vault  *vault

	running atomic.Bool // Open has succeeded
	closing sync.Once
	closed  error // result of the first Close
}

// startTimeout bounds the wait for a leader at start.
const startTimeout = 30 * time.Second

// Open starts or joins the database and waits until it serves. A database that cannot be read
// gives ErrDamaged, a state directory in use ErrLocked, an external etcd that is silent ErrUnavailable.
func Open(ctx context.Context, o Options) (_ *DB, err error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	db := &DB{node: o.Node, log: o.Log}
	defer func() {
		if err != nil {
			err = errors.Join(err, db.Close())
		}
	}()
	if db.lock, err = lockDir(o.Dir); err != nil {
		return nil, fmt.Errorf("cluster: %w", err)
	}
	if db.vault, err = openVault(o.Dir); err != nil {
		return nil, fmt.Errorf("cluster: %w", err)
	}
	if err := db.connect(ctx, o); err != nil {
		return nil, fmt.Errorf("cluster: %w", err)
	}
	starting, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if err := db.Ping(starting); err != nil {
		return nil, fmt.Errorf("cluster: %w", err)
	}
	db.running.Store(true)
	return db, nil
}

func (db *DB) connect(ctx context.Context, o Options) (err error) {
	if len(o.Config.Endpoints) > 0 {
		db.client, err = dial(o, zapLogger(o.Log, &db.running))
		return err
	}
	if db.server, err = startEmbedded(ctx, o, zapLogger(o.Log, &db.running)); err != nil {
		return err
	}
	db.client = inProcess(db.server)
	return nil
}

func dial(o Options, log *zap.Logger) (*clientv3.Client, error) {
	cfg := clientv3.Config{
		Endpoints:            o.Config.Endpoints,
		DialTimeout:          5 * time.Second,
		DialKeepAliveTime:    5 * time.Second,
		DialKeepAliveTimeout: 5 * time.Second,
		RejectOldCluster:     true,
		Logger:               log,
	}
	info := transport.TLSInfo{TrustedCAFile: o.Config.CAFile, CertFile: o.Config.CertFile, KeyFile: o.Config.KeyFile}
	if !info.Empty() || info.TrustedCAFile != "" {
		tls, err := info.ClientConfig()
		if err != nil {
			return nil, fmt.Errorf("cluster.ca_file, cert_file or key_file: %w", err)
		}
		cfg.TLS = tls
	}
	client, err := clientv3.New(cfg)
	if err != nil {
		return nil, fmt.Errorf("%w: %w; check cluster.endpoints", ErrUnavailable, err)
	}
	return client, nil
}

// Ping does a linearizable read: it succeeds when the database answers, and ErrUnavailable says that
// it does not.
func (db *DB) Ping(ctx context.Context) error {
	if _, err := db.client.Get(ctx, root, clientv3.WithCountOnly()); err != nil {
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
	var err error
	if db.client != nil {
		if e := db.client.Close(); e != nil && !errors.Is(e, context.Canceled) {
			err = fmt.Errorf("cluster: close client: %w", e)
		}
	}
	if db.server != nil {
		err = errors.Join(err, stop(db.server))
	}
	if db.lock != nil {
		db.lock.release()
	}
	return err
}
