package daemon

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"lunar/appliance/api"
	"lunar/appliance/cluster"
	"lunar/appliance/namespace"
	"lunar/datapath/coordinator"
	"lunar/datapath/volume"
)

// The bounds of backups.
const (
	backupBeginLimit = 2 * time.Minute  // for a node to begin one: its coordinator may have to move
	backupEndLimit   = 30 * time.Second // for one to let everything go
	backupLease      = 15 * time.Second // of an attached one, without a sign of life of the node that has its caller
	backupRenewal    = time.Second      // between these signs
	backupFollow     = 5 * time.Second  // for the coordinator to suspend changes, or to allow them again
)

var errNoBackup = api.Errorf(api.NotFound, "there is no such backup").WithHint("`lunarctl backup list` shows those that are under way")

// backups are those of this node. The zero value is ready.
type backups struct {
	mu      sync.Mutex // guards what follows
	all     map[string]*backup
	opening map[*context.CancelFunc]struct{}
	past    []endedBackup               // the last maxPast that have ended, for their callers
	shown   map[string][]namespace.File // by ID, of any node's
	stopped bool
	running sync.WaitGroup // each, from its begin until nothing of it is left
}

// enter makes room for one more. Its context ends when the node is stopped; leave is called when nothing of it is left.
func (b *backups) enter(ctx context.Context) (_ context.Context, leave func(), err error) {
	ctx, cancel := context.WithCancel(ctx)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.stopped {
		cancel()
		return nil, nil, errStopping
	}
	if b.all == nil {
		b.all, b.opening = map[string]*backup{}, map[*context.CancelFunc]struct{}{}
	}
	b.opening[&cancel] = struct{}{}
	b.running.Add(1)
	return ctx, func() {
		cancel()
		b.mu.Lock()
		delete(b.opening, &cancel)
		b.mu.Unlock()
		b.running.Done()
	}, nil
}

// add publishes one that was opened, unless the node is being stopped.
func (b *backups) add(one *backup) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.stopped {
		return errStopping
	}
	b.all[one.record.ID] = one
	return nil
}

// endedBackup is why one has ended.
type endedBackup struct {
	id  string
	why backupOver
}

// maxPast bounds the backups of which it is known why they have ended.
const maxPast = 64

func (b *backups) remove(id string, why backupOver) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.all, id)
	b.past = append(b.past[max(0, len(b.past)-maxPast+1):], endedBackup{id, why})
}

// ended is why a backup has ended.
func (b *backups) ended(id string) (why backupOver, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, one := range b.past {
		if one.id == id {
			return one.why, true
		}
	}
	return why, false
}

func (b *backups) get(id string) *backup {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.all[id]
}

func (b *backups) list() []*backup {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := make([]*backup, 0, len(b.all))
	for _, one := range b.all {
		out = append(out, one)
	}
	return out
}

// stop ends all, and lets none in any more.
func (b *backups) stop() {
	b.mu.Lock()
	b.stopped = true
	for cancel := range b.opening {
		(*cancel)()
	}
	b.mu.Unlock()
	for _, one := range b.list() {
		one.order(backupOver{Reason: "node " + one.node.name + " was stopped"})
	}
	b.running.Wait()
}

// suspensionOf is what a backup among a volume's holds wants of its coordinator; nil: there is none.
func suspensionOf(holds map[string]cluster.Hold) *coordinator.Suspension {
	h, ok := holds[volume.Backup.String()]
	if !ok || h.Backup == nil {
		return nil
	}
	b := h.Backup
	return &coordinator.Suspension{
		ID: b.ID, Wait: b.Wait, Until: b.Until, Snapshot: b.Snapshot,
		Why: fmt.Sprintf("backup %s on node %s since %s, until %s at the latest", b.ID, h.Node, h.Since.Format(time.TimeOnly), b.Until.UTC().Format(time.DateTime)),
	}
}

// backupHold is the hold of a backup of the volume, if there is one.
func (n *Node) backupHold(volumeID string) (cluster.Hold, bool) {
	h, ok := n.holdsOf(volumeID)[volume.Backup.String()]
	return h, ok && h.Backup != nil
}

// backedUp refuses a second backup.
func (n *Node) backedUp(v *volumeState, h cluster.Hold) error {
	return api.Errorf(api.Busy, "volume %s is being backed up already: backup %s on node %s since %s", v.name(), h.Backup.ID, h.Node, h.Since.Format(time.TimeOnly)).
		WithHint("wait for its end, or end it: lunarctl backup end %s", v.name())
}

// unsuspended waits, before a change of names takes this node's turn to change something, for the end of a backup. The
// coordinator has the last word.
func (n *Node) unsuspended(ctx context.Context, name string) error {
	v, err := n.volume(name)
	if err != nil {
		return err
	}
	return n.unsuspendedID(ctx, v.id)
}

// unsuspendedID is unsuspended for a volume by its ID.
func (n *Node) unsuspendedID(ctx context.Context, volumeID string) error {
	began := time.Now()
	for {
		h, ok := n.backupHold(volumeID)
		s := suspensionOf(n.holdsOf(volumeID))
		if !ok || !time.Now().Before(h.Backup.Until) {
			return nil
		}
		if time.Since(began) >= h.Backup.Wait {
			return s.Refuse()
		}
		if err := pause(ctx, viewPoll); err != nil {
			return fmt.Errorf("%w: %s: %w", coordinator.ErrSuspended, s.Why, err)
		}
	}
}

// BeginBackup implements server.Backups.
func (n *Node) BeginBackup(ctx context.Context, r api.BeginBackup) (api.Backup, error) {
	if r.Node == "" || r.Node == n.name {
		b, err := n.beginBackup(ctx, r)
		return b, refusal(err)
	}
	peer, err := n.peer(r.Node)
	if err != nil {
		return api.Backup{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, backupBeginLimit)
	defer cancel()
	b, err := askPeer[api.Backup](ctx, n, peer, http.MethodPost, pathBackups, r)
	return b, refusal(err)
}

// peer is another node that has a session.
func (n *Node) peer(name string) (cluster.Member, error) {
	all := n.presentPeers()
	i := slices.IndexFunc(all, func(m cluster.Member) bool { return m.Name == name })
	if i < 0 {
		return cluster.Member{}, api.Errorf(api.NotFound, "there is no node %q in the cluster now", name).WithHint("`lunarctl node list` shows the nodes")
	}
	return all[i], nil
}

// Backups implements server.Backups: what the cluster records, and what their nodes tell of them.
func (n *Node) Backups(ctx context.Context) ([]api.Backup, error) {
	view := n.lastView(ctx)
	out := []api.Backup{}
	for _, v := range n.sortedVolumes() {
		h, ok := view.Holds[v.id][volume.Backup.String()]
		if !ok || h.Backup == nil {
			continue
		}
		out = append(out, n.describeBackup(ctx, v, h))
	}
	slices.SortFunc(out, func(a, b api.Backup) int { return cmp.Compare(a.Volume, b.Volume) })
	return out, nil
}

func (n *Node) describeBackup(ctx context.Context, v *volumeState, h cluster.Hold) api.Backup {
	b, err := n.backupOn(ctx, h.Node, h.Backup.ID)
	if err == nil {
		return b
	}
	return api.Backup{ID: h.Backup.ID, Volume: v.name(), Node: h.Node, Snapshot: h.Backup.Snapshot, Since: h.Backup.Since, Redirect: h.Redirect,
		Begun: h.Since, Until: h.Backup.Until, WaitNS: int64(h.Backup.Wait), Images: []api.BackupImage{}, Silent: err.Error()}
}

// backupOn asks the node that has a backup.
func (n *Node) backupOn(ctx context.Context, node, id string) (api.Backup, error) {
	if node == n.name {
		return n.ownBackup(id)
	}
	peer, err := n.peer(node)
	if err != nil {
		return api.Backup{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, peerLimit)
	defer cancel()
	return askPeer[api.Backup](ctx, n, peer, http.MethodGet, backupPath(id), nil)
}

func (n *Node) ownBackup(id string) (api.Backup, error) {
	b := n.backups.get(id)
	if b == nil {
		return api.Backup{}, api.Errorf(api.Unavailable, "it is being begun or ended")
	}
	return b.describe(), nil
}

// EndBackup implements server.Backups.
func (n *Node) EndBackup(ctx context.Context, name string) error {
	view := n.lastView(ctx)
	for _, v := range n.sortedVolumes() {
		h, ok := view.Holds[v.id][volume.Backup.String()]
		if ok && h.Backup != nil && (h.Backup.ID == name || v.name() == name) {
			return refusal(n.endBackup(ctx, h.Node, h.Backup.ID, backupOver{Reason: "by order", Ordered: true}))
		}
	}
	return errNoBackup
}

func (n *Node) endBackup(ctx context.Context, node, id string, why backupOver) error {
	if node == n.name {
		return n.endOwnBackup(ctx, id, why)
	}
	peer, err := n.peer(node)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, backupEndLimit+peerLimit)
	defer cancel()
	_, err = askPeer[struct{}](ctx, n, peer, http.MethodDelete, backupPath(id), why)
	return err
}

func (n *Node) endOwnBackup(ctx context.Context, id string, why backupOver) error {
	b := n.backups.get(id)
	if b == nil {
		return errNoBackup
	}
	b.order(why)
	select {
	case <-b.over:
		return b.left
	case <-ctx.Done():
		return fmt.Errorf("backup %s is being ended: %w", id, ctx.Err())
	}
}

// AwaitBackup implements server.Backups. It gives the node that has the backup signs of life.
func (n *Node) AwaitBackup(ctx context.Context, b api.Backup) string {
	for {
		if pause(ctx, backupRenewal) != nil {
			return n.abandonBackup(context.WithoutCancel(ctx), b)
		}
		why, err := n.renewBackup(ctx, b)
		switch {
		case err == nil && why.Reason == "":
		case err == nil:
			return why.Reason
		case api.CodeOf(refusal(err)) == api.NotFound:
			return "it is not there any more"
		case !n.hasSession(b.Node):
			return "node " + b.Node + " has gone"
		}
	}
}

// abandonBackup ends a backup whose caller has gone.
func (n *Node) abandonBackup(ctx context.Context, b api.Backup) string {
	ctx, cancel := context.WithTimeout(ctx, backupEndLimit)
	defer cancel()
	gone := backupOver{Reason: "who asked for it has gone"}
	if err := n.endBackup(ctx, b.Node, b.ID, gone); err != nil && api.CodeOf(err) != api.NotFound {
		n.log.Warn("a backup whose caller has gone was not ended yet", "backup", b.ID, "node", b.Node, "error", err)
	}
	return gone.Reason
}

// renewBackup is a sign of life to the node that has the backup; its answer has a reason when the backup has ended.
func (n *Node) renewBackup(ctx context.Context, b api.Backup) (backupOver, error) {
	if b.Node == n.name {
		return n.renewOwnBackup(b.ID)
	}
	peer, err := n.peer(b.Node)
	if err != nil {
		return backupOver{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, peerLimit)
	defer cancel()
	return askPeer[backupOver](ctx, n, peer, http.MethodPost, backupPath(b.ID)+"/renew", nil)
}

func (n *Node) renewOwnBackup(id string) (backupOver, error) {
	if b := n.backups.get(id); b != nil {
		b.renewed.Store(time.Now().UnixNano())
		return backupOver{}, nil
	}
	if why, ok := n.backups.ended(id); ok {
		return why, nil
	}
	return backupOver{}, errNoBackup
}

// pathBackups is where nodes ask each other about backups.
const pathBackups = "/node/v1/backups"

func backupPath(id string) string { return pathBackups + "/" + url.PathEscape(id) }

// answerBackups answers other nodes about the backups of this one.
func (n *Node) answerBackups(mux *http.ServeMux) {
	mux.HandleFunc("POST "+pathBackups, func(w http.ResponseWriter, r *http.Request) {
		answerPeer(n, w, r, func(ctx context.Context, in api.BeginBackup) (api.Backup, error) {
			in.Node = ""
			return n.BeginBackup(ctx, in)
		})
	})
	mux.HandleFunc("GET "+pathBackups+"/{id}", func(w http.ResponseWriter, r *http.Request) {
		answerPeer(n, w, r, func(context.Context, any) (api.Backup, error) { return n.ownBackup(r.PathValue("id")) })
	})
	mux.HandleFunc("DELETE "+pathBackups+"/{id}", func(w http.ResponseWriter, r *http.Request) {
		answerPeer(n, w, r, func(ctx context.Context, why backupOver) (struct{}, error) {
			return struct{}{}, n.endOwnBackup(ctx, r.PathValue("id"), why)
		})
	})
	mux.HandleFunc("POST "+pathBackups+"/{id}/renew", func(w http.ResponseWriter, r *http.Request) {
		answerPeer(n, w, r, func(context.Context, any) (backupOver, error) { return n.renewOwnBackup(r.PathValue("id")) })
	})
}

// answerPeer answers another node's call.
func answerPeer[In, Out any](n *Node, w http.ResponseWriter, r *http.Request, call func(context.Context, In) (Out, error)) {
	var in In
	err := json.NewDecoder(http.MaxBytesReader(w, r.Body, api.MaxBody)).Decode(&in)
	if err != nil {
		err = api.Errorf(api.Invalid, "node %s cannot read the call: %v", n.name, err)
	}
	var out Out
	if err == nil {
		out, err = call(r.Context(), in)
	}
	var refused *api.Error
	if err = refusal(err); errors.As(err, &refused) {
		n.tell(w, nil, refused)
		return
	}
	n.tell(w, out, nil)
}
