package cluster

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"sync"
	"time"

	bolt "go.etcd.io/bbolt"
	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/client/pkg/v3/types"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.uber.org/zap"

	"lunar/appliance/config"
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
	fastElection     = 500  // ms
	maxLearners      = 4    // enough to go from one voter to five at once
	backendLockLimit = 2 * time.Second
	// backendInterval is between the commits of what the log has safe already; etcd's own is 100 ms, of two syncs each.
	backendInterval = time.Second
)

var setSegmentSize = sync.OnceFunc(func() { wal.SegmentSizeBytes = walSegmentBytes })

// member is a running etcd member of this process.
type member struct {
	etcd   *embed.Etcd
	client *clientv3.Client // straight into it
	calls  *callGuard       // of other nodes; nil without listeners
	died   <-chan struct{}  // closed when etcd ended in the middle of its work
}

// runMember runs an etcd member from dir until stop. The caller waits with ready.
func runMember(dir string, cfg *embed.Config, calls *callGuard, died <-chan struct{}) (*member, error) {
	setSegmentSize()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if err := checkBackend(filepath.Join(dir, "member")); err != nil {
		return nil, damaged(dir, err)
	}
	server, err := start(cfg)
	if err != nil {
		return nil, damaged(dir, err)
	}
	return &member{etcd: server, client: inProcess(server), calls: calls, died: died}, nil
}

// ready waits until the member serves.
func (m *member) ready(ctx context.Context) error {
	select {
	case <-m.etcd.Server.ReadyNotify():
		return nil
	case <-m.ended():
		return m.reason(errors.New("the member ended while it started"))
	case err := <-m.etcd.Err():
		return m.reason(err)
	case <-time.After(startTimeout):
		return fmt.Errorf("%w: no leader within %v; most voters must be up and reachable", ErrUnavailable, startTimeout)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// reason waits a moment, so that a member that ended by itself is seen to have ended.
func (m *member) reason(err error) error {
	select {
	case <-m.ended():
	case <-time.After(time.Second):
	}
	return damaged(m.etcd.Config().Dir, err)
}

func (m *member) ended() <-chan struct{} { return m.etcd.Server.StopNotify() }

// removed tells whether a member that has ended knows that the cluster removed it. One that was off
// then hears it from its peers and keeps no note of it: see DB.wasRemoved.
func (m *member) removed() bool {
	c, ok := m.etcd.Server.Cluster().(interface{ IsIDRemoved(types.ID) bool })
	return ok && c.IsIDRemoved(m.etcd.Server.MemberID())
}

// over tells that the member has ended and did not die of a fault.
func (m *member) over() bool {
	select {
	case <-m.died:
		return false
	default:
	}
	select {
	case <-m.ended():
		return true
	default:
		return false
	}
}

func (m *member) id() uint64 { return uint64(m.etcd.Server.MemberID()) }

func (m *member) leads() bool { return m.etcd.Server.Leader() == m.etcd.Server.MemberID() }

// votes tells whether the member has caught up and is a voter, as far as it knows. Until it has caught up
// it takes itself for one. Server.IsLearner must not be asked: it panics once the cluster has removed
// the member, which ends the goroutine that asks.
func (m *member) votes() bool {
	select {
	case <-m.etcd.Server.ReadyNotify():
		own := m.etcd.Server.Cluster().Member(m.etcd.Server.MemberID())
		return own != nil && !own.IsLearner
	default:
		return false
	}
}

// stop ends the member and what others do through it; one that hangs is left behind, with an error.
func (m *member) stop() error {
	var err error
	if e := m.client.Close(); e != nil && !errors.Is(e, context.Canceled) {
		err = fmt.Errorf("cluster: close client: %w", e)
	}
	if m.calls != nil {
		m.calls.end()
	}
	return errors.Join(err, stop(m.etcd))
}

func damaged(dir string, err error) error {
	var errno interface{ Timeout() bool }
	if errors.Is(err, fs.ErrPermission) || (errors.As(err, &errno) && errno.Timeout()) {
		return fmt.Errorf("database in %s: %w", dir, err)
	}
	return fmt.Errorf("database in %s: %w: %w; restore that directory from a backup, or move it away to start empty "+
		"(volumes and images are not touched; volumes and targets must be added again)", dir, ErrDamaged, err)
}

// aloneConfig is for a single member that listens nowhere: the only client is this process. The
// advertised address is a place holder until the node is in a cluster.
func aloneConfig(dir string, o Options, log *zap.Logger) *embed.Config {
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
	if o.Config.Profile == config.ProfileFast {
		cfg.ElectionMs = fastElection
	}
	cfg.SnapshotCount, cfg.SnapshotCatchUpEntries = snapshotCount, catchUpEntries
	cfg.QuotaBackendBytes = o.quota
	cfg.BackendBatchInterval = backendInterval
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

// stop ends a member; one that hangs is left behind, with an error. Its ports are free afterwards in any case.
func stop(server *embed.Etcd) error { return stopBy(server, server.Close) }

// stopBy closes the listeners itself too: one that has died, or was removed by the others, may end the goroutine
// that closes it (see lastWord) before it comes to them.
func stopBy(server *embed.Etcd, end func()) error {
	defer closeListeners(server)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		end()
	}()
	select {
	case <-ended:
		return nil
	case <-time.After(stopTimeout):
		return fmt.Errorf("cluster: %w: the embedded member did not stop within %v", ErrUnavailable, stopTimeout)
	}
}

func closeListeners(server *embed.Etcd) {
	for _, l := range server.Clients {
		_ = l.Close()
	}
	for _, l := range server.Peers {
		_ = l.Close()
	}
}

// clusterConfig is for a member among others: mutual TLS on both ports, with this node's certificate.
// peers is etcd's initial cluster for a member without files of its own, "" for one that has them.
func clusterConfig(dir string, o Options, s *self, calls *callGuard, peers string, log *zap.Logger) *embed.Config {
	cfg := aloneConfig(dir, o, log)
	id := s.identity()
	peer, client := endpoint(id.Address, peerPort), endpoint(id.Address, clientPort)
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	cfg.InitialCluster = id.Node + "=" + peer.String()
	if peers != "" {
		cfg.InitialCluster, cfg.ClusterState = peers, embed.ClusterStateFlagExisting
	}
	files := transport.TLSInfo{
		CertFile: s.path(certFile), KeyFile: s.path(keyFile), TrustedCAFile: s.path(caFile), CRLFile: s.path(crlFile),
		ClientCertAuth: true, MinVersion: tls.VersionTLS13,
		SkipClientSANVerify: true, // a peer may call from any of its addresses
	}
	cfg.PeerTLSInfo, cfg.ClientTLSInfo = files, files
	cfg.GRPCAdditionalServerOptions = calls.options()
	cfg.MaxLearners = maxLearners
	cfg.StrictReconfigCheck = false // plan looks at who is alive, which that check does too late to replace a dead voter
	return cfg
}

func endpoint(address string, port uint16) url.URL {
	return url.URL{Scheme: "https", Host: hostPort(address, port)}
}

func hostPort(address string, port uint16) string {
	return net.JoinHostPort(address, strconv.Itoa(int(port)))
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
