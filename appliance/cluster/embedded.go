package cluster

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"time"

	bolt "go.etcd.io/bbolt"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.uber.org/zap"
)

// The sizes for a small machine: a few thousand keys of some hundred bytes.
const (
	quotaBytes       = 256 << 20
	walSegmentBytes  = 8 << 20 // etcd's own default of 64 MB is preallocated at once
	snapshotCount    = 2000    // entries between snapshots; bounds the log held in memory
	catchUpEntries   = 500
	keepRevisions    = "1000"
	maxRequestBytes  = 2 << 20
	leaderTick       = 100  // ms
	electionTimeout  = 1000 // ms
	backendLockLimit = 2 * time.Second
)

var setSegmentSize = sync.OnceFunc(func() { wal.SegmentSizeBytes = walSegmentBytes })

// startEmbedded runs a single etcd member under o.Dir. It listens nowhere: the only client is this
// process. The advertised address is a place holder until the node joins others.
func startEmbedded(ctx context.Context, o Options, log *zap.Logger) (*embed.Etcd, error) {
	setSegmentSize()
	dir := filepath.Join(o.Dir, "etcd")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if err := checkBackend(filepath.Join(dir, "member")); err != nil {
		return nil, damaged(dir, err)
	}
	server, err := start(embedConfig(dir, o, log))
	if err != nil {
		return nil, damaged(dir, err)
	}
	select {
	case <-server.Server.ReadyNotify():
		return server, nil
	case err := <-server.Err():
		server.Close()
		return nil, damaged(dir, err)
	case <-time.After(startTimeout):
		server.Close()
		return nil, fmt.Errorf("%w: no leader within %v", ErrUnavailable, startTimeout)
	case <-ctx.Done():
		server.Close()
		return nil, ctx.Err()
	}
}

func damaged(dir string, err error) error {
	var errno interface{ Timeout() bool }
	if errors.Is(err, fs.ErrPermission) || (errors.As(err, &errno) && errno.Timeout()) {
		return fmt.Errorf("database in %s: %w", dir, err)
	}
	return fmt.Errorf("database in %s: %w: %w; restore that directory from a backup, or move it away to start empty "+
		"(volumes and images are not touched; volumes and targets must be added again)", dir, ErrDamaged, err)
}

func embedConfig(dir string, o Options, log *zap.Logger) *embed.Config {
	const placeholder = "http://localhost:2380"
	peer, _ := url.Parse(placeholder)
	cfg := embed.NewConfig()
	cfg.Name = o.Node
	cfg.Dir = dir
	cfg.ListenPeerUrls, cfg.ListenClientUrls, cfg.AdvertiseClientUrls = nil, nil, nil
	cfg.AdvertisePeerUrls = []url.URL{*peer}
	cfg.InitialCluster = o.Node + "=" + placeholder
	cfg.InitialClusterToken = "lunar"
	cfg.TickMs, cfg.ElectionMs = leaderTick, electionTimeout
	cfg.SnapshotCount, cfg.SnapshotCatchUpEntries = snapshotCount, catchUpEntries
	cfg.QuotaBackendBytes = quotaBytes
	cfg.MaxRequestBytes = maxRequestBytes
	cfg.AutoCompactionMode, cfg.AutoCompactionRetention = embed.CompactorModeRevision, keepRevisions
	cfg.EnableGRPCGateway = false
	cfg.LogLevel = "warn"
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(log)
	return cfg
}

// start turns etcd's panics on unreadable files into errors.
func start(cfg *embed.Config) (server *embed.Etcd, err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			server, err = nil, fmt.Errorf("etcd cannot read its files: %v", p)
		}
	}()
	return embed.StartEtcd(cfg)
}

// stopTimeout bounds the wait for a member that has died in the middle of something.
const stopTimeout = 10 * time.Second

// stop ends a member; one that hangs is left behind, with an error.
func stop(server *embed.Etcd) error {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		server.Close()
	}()
	select {
	case <-ended:
		return nil
	case <-time.After(stopTimeout):
		return fmt.Errorf("cluster: %w: the embedded member did not stop within %v", ErrUnavailable, stopTimeout)
	}
}

func inProcess(server *embed.Etcd) *clientv3.Client { return v3client.New(server.Server) }

// checkBackend looks for damage that etcd itself would meet as a fault much later, or not at all: a
// member whose log is gone takes new entries for old ones and drops them. A file that does not exist
// is sound.
func checkBackend(member string) (err error) {
	path := filepath.Join(member, "snap", "db")
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%s: %v", path, p)
		}
	}()
	db, err := bolt.Open(path, 0o600, &bolt.Options{ReadOnly: true, Timeout: backendLockLimit})
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	return db.View(func(tx *bolt.Tx) error {
		if tx.Size() > info.Size() {
			return fmt.Errorf("%s: cut off at %d of %d bytes", path, info.Size(), tx.Size())
		}
		if applied(tx) > 0 && !wal.Exist(filepath.Join(member, "wal")) {
			return fmt.Errorf("the log in %s is gone", filepath.Join(member, "wal"))
		}
		return readAll(tx)
	})
}

// applied is the number of the last entry of the log that the backend has.
func applied(tx *bolt.Tx) uint64 {
	meta := tx.Bucket([]byte("meta"))
	if meta == nil {
		return 0
	}
	if index := meta.Get([]byte("consistent_index")); len(index) == 8 {
		return binary.BigEndian.Uint64(index)
	}
	return 0
}

// readAll walks every bucket, so that a broken page shows now.
func readAll(tx *bolt.Tx) error {
	return tx.ForEach(func(_ []byte, b *bolt.Bucket) error {
		return b.ForEach(func(_, _ []byte) error { return nil })
	})
}
