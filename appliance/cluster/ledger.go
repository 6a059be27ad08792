package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// ErrWentBack says that an external etcd knows less than this node has seen of it: it was restored from an older backup,
// or is another one. What it says of coordinators and of who has to be fenced counts for nothing then.
var ErrWentBack = errors.New("the database of cluster.endpoints was put back to an older state")

// wentBackAdvice is what to do.
const wentBackAdvice = "stop lunard on all nodes; restore the latest state of the database, or have this one accepted by " +
	"`lunard --accept-database` on one node; then start lunard again"

// acceptedKey has the number of the last AcceptExternal.
const acceptedKey = root + "accepted"

// ledger is what this node has seen of an external etcd, kept in the state directory: an embedded database is never older
// than what it told, and one that Restore put back is ahead of it.
type ledger struct {
	path string
	of   func() string // names the database
	log  *slog.Logger

	mu     sync.Mutex // guards what follows
	mark   mark
	dirty  bool
	broken error // it went back
}

type mark struct {
	Of          string `json:"of"`
	Etcd        uint64 `json:"etcd"` // the id of its cluster
	Revision    int64  `json:"revision"`
	Incarnation uint64 `json:"incarnation"` // of this node's last session
	Accepted    int64  `json:"accepted"`
}

// ledgerInterval bounds what a loss of power takes from the ledger: revisions, no incarnations.
const ledgerInterval = 10 * time.Second

func (db *DB) openLedger() (*ledger, error) {
	l := &ledger{path: filepath.Join(db.options.Dir, "external.json"), log: db.log, of: func() string {
		if id := db.InCluster(); id != "" {
			return id
		}
		return "alone at " + strings.Join(db.options.Config.Endpoints, " ")
	}}
	text, err := os.ReadFile(l.path)
	if errors.Is(err, fs.ErrNotExist) {
		return l, nil
	}
	if err == nil {
		err = json.Unmarshal(text, &l.mark)
	}
	if err != nil {
		return nil, fmt.Errorf("%s, which holds what this node has seen of cluster.endpoints: %w: %w", l.path, ErrDamaged, err)
	}
	return l, nil
}

// external connects to the etcd of cluster.endpoints, unless it went back.
func (db *DB) external(ctx context.Context, last *lastWord) (*clientv3.Client, error) {
	l, err := db.openLedger()
	if err != nil {
		return nil, err
	}
	remote, err := dialExternal(&db.options, zapLogger(db.log, last))
	if err != nil {
		return nil, err
	}
	starting, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	err = db.try(starting, func(ctx context.Context) error {
		resp, err := remote.Get(ctx, acceptedKey)
		if err != nil {
			return unavailable(err)
		}
		return l.begin(resp)
	})
	if err != nil {
		return nil, errors.Join(err, remote.Close())
	}
	remote.KV = ledgerKV{remote.KV, l}
	db.ledger = l
	return remote, nil
}

// begin compares the database with the ledger, at a start.
func (l *ledger) begin(resp *clientv3.GetResponse) error {
	accepted := int64(0)
	if len(resp.Kvs) > 0 {
		r, err := decode[int64](resp.Kvs[0])
		if err != nil {
			return err
		}
		accepted = r.value
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.mark.Of != l.of() || accepted > l.mark.Accepted:
		l.mark = mark{Of: l.of(), Accepted: accepted}
	case resp.Header.Revision < l.mark.Revision:
		return l.refuse("it is at revision %d, and this node has seen %d", resp.Header.Revision, l.mark.Revision)
	}
	l.mark.Etcd, l.mark.Revision, l.dirty = resp.Header.ClusterId, resp.Header.Revision, true
	return l.store()
}

// refuse stores what was seen until now, so that the next start refuses too. It needs l.mu.
func (l *ledger) refuse(format string, args ...any) error {
	err := fmt.Errorf("%w: %s: %s", ErrWentBack, fmt.Sprintf(format, args...), wentBackAdvice)
	l.broken = errors.Join(err, l.store())
	l.log.Error("nothing of the cluster database is believed any more", "reason", l.broken)
	return l.broken
}

// sent is the revision that an answer to what is asked now has to have at least.
func (l *ledger) sent() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mark.Revision
}

// answered takes an answer in. ErrWentBack: now and from now on.
func (l *ledger) answered(h *etcdserverpb.ResponseHeader, sent int64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.broken != nil:
		return l.broken
	case h.ClusterId != l.mark.Etcd:
		return l.refuse("another etcd answers: its cluster has the id %x, not %x", h.ClusterId, l.mark.Etcd)
	case h.Revision < sent:
		return l.refuse("it is at revision %d, and this node has seen %d", h.Revision, sent)
	}
	if h.Revision > l.mark.Revision {
		l.mark.Revision, l.dirty = h.Revision, true
	}
	return nil
}

// counted takes the number of sessions in that the database knows of this node.
func (l *ledger) counted(n uint64) error {
	if l == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if n < l.mark.Incarnation {
		return l.refuse("it knows %d sessions of this node, which has had %d", n, l.mark.Incarnation)
	}
	return nil
}

// had notes a session that the database has, before anything is done under it.
func (l *ledger) had(incarnation uint64) error {
	if l == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mark.Incarnation, l.dirty = incarnation, true
	return l.store()
}

// keep stores the ledger now and then, until ctx ends.
func (l *ledger) keep(ctx context.Context) {
	for more := true; more; {
		more = sleep(ctx, ledgerInterval)
		l.mu.Lock()
		if err := l.store(); err != nil {
			l.log.Warn("what was seen of cluster.endpoints was not stored", "path", l.path, "error", err)
		}
		l.mu.Unlock()
	}
}

// store needs l.mu.
func (l *ledger) store() error {
	if !l.dirty || l.broken != nil {
		return l.broken
	}
	l.mark.Of = l.of()
	text, err := json.Marshal(&l.mark)
	if err == nil {
		err = writeSynced(l.path+".new", text)
	}
	if err == nil {
		err = os.Rename(l.path+".new", l.path)
	}
	if err == nil {
		err = syncDir(filepath.Dir(l.path))
	}
	if err != nil {
		return fmt.Errorf("note what was seen of cluster.endpoints: %w", err)
	}
	l.dirty = false
	return nil
}

// ledgerKV has each answer of an external etcd go through the ledger.
type ledgerKV struct {
	clientv3.KV
	l *ledger
}

// Get implements clientv3.KV.
func (k ledgerKV) Get(ctx context.Context, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	sent := k.l.sent()
	resp, err := k.KV.Get(ctx, key, opts...)
	if err == nil {
		err = k.l.answered(resp.Header, sent)
	}
	return resp, err
}

// Put implements clientv3.KV.
func (k ledgerKV) Put(ctx context.Context, key, val string, opts ...clientv3.OpOption) (*clientv3.PutResponse, error) {
	sent := k.l.sent()
	resp, err := k.KV.Put(ctx, key, val, opts...)
	if err == nil {
		err = k.l.answered(resp.Header, sent)
	}
	return resp, err
}

// Delete implements clientv3.KV.
func (k ledgerKV) Delete(ctx context.Context, key string, opts ...clientv3.OpOption) (*clientv3.DeleteResponse, error) {
	sent := k.l.sent()
	resp, err := k.KV.Delete(ctx, key, opts...)
	if err == nil {
		err = k.l.answered(resp.Header, sent)
	}
	return resp, err
}

// Txn implements clientv3.KV.
func (k ledgerKV) Txn(ctx context.Context) clientv3.Txn { return &ledgerTxn{k.KV.Txn(ctx), k.l} }

type ledgerTxn struct {
	txn clientv3.Txn
	l   *ledger
}

// If implements clientv3.Txn.
func (t *ledgerTxn) If(guards ...clientv3.Cmp) clientv3.Txn { t.txn = t.txn.If(guards...); return t }

// Then implements clientv3.Txn.
func (t *ledgerTxn) Then(ops ...clientv3.Op) clientv3.Txn { t.txn = t.txn.Then(ops...); return t }

// Else implements clientv3.Txn.
func (t *ledgerTxn) Else(ops ...clientv3.Op) clientv3.Txn { t.txn = t.txn.Else(ops...); return t }

// Commit implements clientv3.Txn.
func (t *ledgerTxn) Commit() (*clientv3.TxnResponse, error) {
	sent := t.l.sent()
	resp, err := t.txn.Commit()
	if err == nil {
		err = t.l.answered(resp.Header, sent)
	}
	return resp, err
}
