package daemon

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"lunar/appliance/api"
	"lunar/appliance/cluster"
	"lunar/datapath/layout/protocol"
	"lunar/datapath/volume"
	"lunar/datapath/wire/nbd"
)

// backup is one of this node: it coordinates the volume when it begins, and serves the snapshot. One goroutine, keep,
// ends it.
type backup struct {
	node     *Node
	v        *volumeState
	r        api.BeginBackup
	record   cluster.Backup
	begun    time.Time
	hold     *held
	taken    bool // the snapshot is there
	holdNS   int64
	hooks    int // that ran around the snapshot
	warnings []string
	images   []*backupImage
	socket   string
	address  string // of NBD by TLS; "" without
	keys     *api.BackupKeys

	servers []*backupServer
	renewed atomic.Int64 // when its caller's node gave a sign of life, in nanoseconds since 1970

	orders chan backupOver // of one
	over   chan struct{}   // closed when nothing of it is left
	left   error           // what could not be cleared away; set before over is closed
}

// backupOver is why a backup ends; in order means that its caller has what it wants.
type backupOver struct {
	Reason  string `json:"reason"`
	Ordered bool   `json:"ordered,omitempty"`
}

// order asks for the end. It does not block; the first one counts.
func (b *backup) order(why backupOver) {
	select {
	case b.orders <- why:
	default:
	}
}

// newBackup checks what is asked for.
func (n *Node) newBackup(r api.BeginBackup) (*backup, error) {
	v, err := n.volume(r.Volume)
	if err != nil {
		return nil, err
	}
	wait, limit := int64(api.BackupWait), int64(api.BackupLimit)
	if r.WaitNS != nil {
		wait = *r.WaitNS
	}
	if r.LimitNS != 0 {
		limit = r.LimitNS
	}
	switch {
	case limit < int64(time.Second) || limit > int64(api.MaxBackupLimit):
		return nil, api.Errorf(api.Invalid, "a backup cannot last %v", time.Duration(limit)).WithHint("give a limit of 1s to %v", api.MaxBackupLimit)
	case wait < 0 || wait > int64(api.MaxBackupWait):
		return nil, api.Errorf(api.Invalid, "changes cannot wait for %v", time.Duration(wait)).WithHint("give 0 to %v", api.MaxBackupWait)
	case r.Since != "" && protocol.CheckSnapshotName(r.Since) != nil:
		return nil, api.Errorf(api.Invalid, "%v", protocol.CheckSnapshotName(r.Since))
	case r.Since != "" && r.Since == r.Snapshot:
		return nil, api.Errorf(api.Invalid, "snapshot %s cannot be compared with itself", r.Since)
	}
	var id [4]byte
	_, _ = rand.Read(id[:]) // never fails
	b := &backup{node: n, v: v, r: r, begun: time.Now().UTC(), orders: make(chan backupOver, 1), over: make(chan struct{})}
	b.record = cluster.Backup{ID: hex.EncodeToString(id[:]), Snapshot: r.Snapshot, Since: r.Since, Wait: time.Duration(wait), Until: b.begun.Add(time.Duration(limit))}
	b.socket = n.socket + "." + b.record.ID
	if b.record.Snapshot == "" {
		b.record.Snapshot = passingSnapshot + b.record.ID
	}
	if err := checkSnapshotName(r.Snapshot); r.Snapshot != "" && err != nil {
		return nil, err
	}
	b.renewed.Store(b.begun.UnixNano())
	return b, nil
}

// passingSnapshot begins the name of a snapshot that goes with its backup, whose ID follows.
const passingSnapshot = "backup-"

// isPassing tells whether a snapshot's name is of a backup, and of which.
func isPassing(name string) (id string, ok bool) {
	id, ok = strings.CutPrefix(name, passingSnapshot)
	raw, err := hex.DecodeString(id)
	return id, ok && err == nil && len(raw) == 4
}

// checkSnapshotName refuses a name that a snapshot of people cannot have.
func checkSnapshotName(name string) error {
	if err := protocol.CheckSnapshotName(name); err != nil {
		return api.Errorf(api.Invalid, "%v", err)
	}
	if _, passing := isPassing(name); passing {
		return api.Errorf(api.Invalid, "snapshot name %q is kept for backups", name).WithHint("choose another name")
	}
	return nil
}

// beginBackup begins one on this node.
func (n *Node) beginBackup(ctx context.Context, r api.BeginBackup) (_ api.Backup, err error) {
	b, err := n.newBackup(r)
	if err != nil {
		return api.Backup{}, err
	}
	ctx, leave, err := n.backups.enter(ctx)
	if err != nil {
		return api.Backup{}, err
	}
	defer func() { //nolint:contextcheck // it must not end early
		if err != nil {
			err = errors.Join(err, b.clear(false))
			leave()
		}
	}()
	limited, cancel := context.WithTimeout(ctx, backupBeginLimit)
	defer cancel()
	if err := b.begin(limited); err != nil {
		return api.Backup{}, err
	}
	if err := n.backups.add(b); err != nil {
		return api.Backup{}, err
	}
	out := b.describe()
	out.Keys = b.keys
	n.note(ctx, cluster.Event{Kind: "backup.begin", Volume: b.v.name(), Reason: volume.Backup.String(), Text: fmt.Sprintf(
		"backup %s of volume %s: %d images in snapshot %s on node %s, I/O was held for %v", b.record.ID, b.v.name(), len(b.images), b.record.Snapshot,
		n.name, time.Duration(b.holdNS).Round(time.Microsecond))})
	go func() { //nolint:gosec,contextcheck // it outlives the call; backups.running waits for it
		defer leave()
		b.keep()
	}()
	return out, nil
}

// begin takes all steps; clear undoes those that were taken.
func (b *backup) begin(ctx context.Context) error {
	for _, step := range []func(context.Context) error{b.holdVolume, b.coordinate, b.awaitSuspended, b.snapshot, b.open, b.serve} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// holdVolume records the backup: there is one for a volume.
func (b *backup) holdVolume(ctx context.Context) error {
	n := b.node
	if err := n.freeForBackup(ctx, b.v, ""); err != nil {
		return err
	}
	record := b.record
	var err error
	b.hold, err = n.holdAs(ctx, b.v, volume.Backup, cluster.Hold{
		Redirect: b.r.Redirect, Operation: "backup " + record.ID + " of volume " + b.v.name(), Backup: &record,
	})
	if err != nil {
		b.hold = nil
		if other := n.freeForBackup(ctx, b.v, ""); other != nil {
			return other
		}
		return err
	}
	return n.freeForBackup(ctx, b.v, volume.Backup.String()) // what has come at the same time
}

// freeForBackup refuses a volume that is held for another reason than one.
func (n *Node) freeForBackup(ctx context.Context, v *volumeState, but string) error {
	for reason, h := range n.lastView(ctx).Holds[v.id] {
		switch {
		case reason == but:
		case h.Backup != nil:
			return n.backedUp(v, h)
		default:
			return api.Errorf(api.Busy, "volume %s is held: %s, on node %s since %s", v.name(), h.Operation, h.Node, h.Since.Format(time.TimeOnly)).
				WithHint("begin the backup after its end; lunarctl log --volume %s tells of it", v.name())
		}
	}
	return nil
}

func (b *backup) coordinate(ctx context.Context) error { return b.node.coordinateHere(ctx, b.v) }

// awaitSuspended returns when nobody changes the volume's images any more.
func (b *backup) awaitSuspended(ctx context.Context) error {
	limited, cancel := context.WithTimeout(ctx, backupFollow)
	defer cancel()
	for b.suspended() != b.record.ID {
		if pause(limited, heldPoll) != nil {
			return api.Errorf(api.Unavailable, "this node does not coordinate volume %s, or is not told of the backup", b.v.name()).
				WithHint("`lunarctl volume show %s` says how the nodes are; then try again", b.v.name())
		}
	}
	if b.r.Redirect {
		return b.hold.redirected(ctx)
	}
	return nil
}

// suspended is the ID of what suspends changes at this node's own coordinator.
func (b *backup) suspended() string {
	if s := b.v.seat.Load(); s != nil {
		if c := s.coordinator(0); c != nil {
			return c.Suspended()
		}
	}
	return ""
}

// snapshot takes all images as they are at one instant.
func (b *backup) snapshot(ctx context.Context) error {
	paths, err := b.paths(ctx)
	if err != nil {
		return err
	}
	if err := b.unused(ctx); err != nil {
		return err
	}
	b.taken = true // also a try that fails may have made it
	err = b.with(func(p *parts) error {
		if err := b.take(ctx, p, paths); err != nil || b.r.Snapshot == "" {
			return err
		}
		return b.doubt(ctx, p)
	})
	slices.Sort(paths)
	for _, path := range paths {
		b.images = append(b.images, &backupImage{b: b, path: path})
	}
	return err
}

// take takes the snapshot, between the hooks of its images.
func (b *backup) take(ctx context.Context, p *parts, paths []string) (err error) {
	name := b.record.Snapshot
	take := func() error {
		hold, err := p.vol.Snapshot(ctx, name, paths)
		b.holdNS = int64(hold)
		return err
	}
	if b.r.NoHooks {
		return take()
	}
	undo := func() error { return p.vol.DeleteSnapshot(context.WithoutCancel(ctx), name, "") }
	b.hooks, b.warnings, err = b.node.quiesced(ctx, b.v, name, paths, take, undo)
	return err
}

// doubt records that the snapshot stays only when the backup ends in order.
func (b *backup) doubt(ctx context.Context, p *parts) error {
	all, err := p.vol.Snapshots(ctx)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(all, func(s protocol.Snapshot) bool { return s.Name == b.record.Snapshot })
	if i < 0 {
		return api.Errorf(api.Unavailable, "snapshot %s is gone again", b.record.Snapshot).WithHint("try again")
	}
	return b.node.beginUnended(ctx, b.v, cluster.UnendedBackup{ID: b.record.ID, Snapshot: b.record.Snapshot, Set: uint64(all[i].Set), Taken: all[i].Taken})
}

// unused refuses the name of a snapshot that is there, and the lack of the one that is compared with. Nobody else makes
// or deletes one meanwhile.
func (b *backup) unused(ctx context.Context) error {
	return b.with(func(p *parts) error {
		all, err := p.vol.Snapshots(ctx)
		if err != nil {
			return err
		}
		has := func(name string) bool {
			return slices.ContainsFunc(all, func(s protocol.Snapshot) bool { return s.Name == name })
		}
		switch {
		case has(b.record.Snapshot):
			return api.Errorf(api.Exists, "volume %s has a snapshot %s already", b.v.name(), b.record.Snapshot).WithHint("choose another name")
		case b.r.Since != "" && !has(b.r.Since):
			return api.Errorf(api.NotFound, "volume %s has no snapshot %s", b.v.name(), b.r.Since).
				WithHint("`lunarctl snapshot list %s` shows what there is; without --since the backup is a full one", b.v.name())
		}
		return nil
	})
}

// paths are those of the images.
func (b *backup) paths(ctx context.Context) ([]string, error) {
	if len(b.r.Images) > 0 {
		on, paths, err := imagesOfOneVolume(b.r.Images)
		if err == nil && on != b.v.name() {
			err = api.Errorf(api.Invalid, "image %s is not on volume %s", b.r.Images[0], b.v.name())
		}
		return paths, err
	}
	all, err := b.node.imagesOn(ctx, b.v.name())
	switch {
	case err != nil:
		return nil, err
	case len(all) == 0:
		return nil, api.Errorf(api.NotFound, "volume %s has no images", b.v.name())
	case len(all) > protocol.MaxSnapshotImages:
		return nil, api.Errorf(api.Invalid, "volume %s has %d images, and a backup has %d at most", b.v.name(), len(all), protocol.MaxSnapshotImages).
			WithHint("name images: --image %s, once for each", all[0].Name())
	}
	var paths []string
	for i := range all {
		paths = append(paths, all[i].Path)
	}
	return paths, nil
}

// with runs call with the volume's parts.
func (b *backup) with(call func(p *parts) error) error {
	return b.node.on(b.v.name(), func(_ *volumeState, p *parts) error { return call(p) })
}

// The bounds of what tools ask at once of one socket.
var backupLimits = nbd.Limits{Connections: 256, Handshakes: 32, Window: 32}

// serve opens the sockets.
func (b *backup) serve(ctx context.Context) error {
	l, err := listenUnix(b.socket)
	if err != nil {
		return err
	}
	if err := b.listen(l, nil); err != nil || b.r.Listen == "" {
		return err
	}
	return b.serveTLS(ctx)
}

// serveTLS listens on the address that was asked for, for who has the backup's own keys.
func (b *backup) serveTLS(ctx context.Context) error {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", b.r.Listen)
	if err != nil {
		return api.Errorf(api.Invalid, "a backup cannot be served on %q: %v", b.r.Listen, err).
			WithHint("give an address of node %s and a free port, such as 192.0.2.1:10810", b.node.name)
	}
	config, keys, err := backupTLS(b.node.name, l.Addr(), b.record.Until)
	if err != nil {
		return errors.Join(err, l.Close())
	}
	b.address, b.keys = l.Addr().String(), keys
	return b.listen(l, config)
}

// listen serves on l; with a config by TLS alone.
func (b *backup) listen(l net.Listener, config *tls.Config) error {
	s, err := nbd.NewServer(nbd.Options{Open: b.export, List: b.exports, TLS: config, RequireTLS: config != nil, Limits: backupLimits, Log: b.node.log})
	if err != nil {
		return errors.Join(err, l.Close())
	}
	ended := make(chan struct{})
	b.servers = append(b.servers, &backupServer{s, ended})
	go func() {
		defer close(ended)
		if err := s.Serve(l); !errors.Is(err, nbd.ErrStopped) {
			b.node.log.Error("a socket of a backup ended", "backup", b.record.ID, "error", err)
		}
	}()
	return nil
}

// backupServer is a server on one socket.
type backupServer struct {
	*nbd.Server
	ended chan struct{} // closed when Serve has returned
}

// cut ends a server; nobody waits for what is under way.
func (s *backupServer) cut() {
	ctx, now := context.WithCancel(context.Background())
	now()
	_ = s.Stop(ctx) // its error says just that
	<-s.ended
}

// keep ends the backup when it is ordered, when its time has come, or when its caller or its record has gone.
func (b *backup) keep() {
	why := b.await()
	left := b.clear(why.Ordered)
	text := fmt.Sprintf("backup %s of volume %s has ended: %s", b.record.ID, b.v.name(), why.Reason)
	switch {
	case api.CodeOf(left) == api.Busy:
		text += "; its snapshot goes when nobody reads it any more"
		left = nil
	case left != nil:
		b.node.log.Warn("a backup left something, which is cleared away later", "backup", b.record.ID, "error", left)
	}
	b.node.note(context.Background(), cluster.Event{Kind: "backup.end", Volume: b.v.name(), Reason: volume.Backup.String(), Text: text})
	b.left = left
	b.node.backups.remove(b.record.ID, why)
	close(b.over)
}

func (b *backup) await() backupOver {
	limit := time.NewTimer(time.Until(b.record.Until))
	defer limit.Stop()
	look := time.NewTicker(backupRenewal)
	defer look.Stop()
	for {
		select {
		case why := <-b.orders:
			return why
		case <-limit.C:
			return backupOver{Reason: fmt.Sprintf("its limit of %v has come", b.record.Until.Sub(b.begun))}
		case <-b.hold.Lost():
			return backupOver{Reason: "node " + b.node.name + " has lost its session"}
		case <-look.C:
			silent := time.Since(time.Unix(0, b.renewed.Load()))
			if b.r.Attached && silent > backupLease {
				return backupOver{Reason: fmt.Sprintf("nothing was heard for %v of the node that its caller is connected to", silent.Round(time.Second))}
			}
		}
	}
}

// clear lets everything go, and removes what was made; the snapshot stays when it has a name of its own and the end is in
// order. It goes on after an error.
func (b *backup) clear(ordered bool) error {
	ctx, cancel := context.WithTimeout(context.Background(), backupEndLimit)
	defer cancel()
	for _, s := range b.servers {
		s.cut()
	}
	var errs []error
	for _, im := range b.images {
		errs = append(errs, im.close(ctx))
	}
	if b.taken {
		errs = append(errs, b.settleSnapshot(ctx, ordered))
	}
	if b.hold != nil {
		b.hold.end(ctx)
		b.awaitAllowed(ctx)
	}
	return errors.Join(errs...)
}

// settleSnapshot removes the snapshot, or keeps it for good.
func (b *backup) settleSnapshot(ctx context.Context, ordered bool) error {
	if b.r.Snapshot == "" || !ordered {
		if err := absent(b.with(func(p *parts) error { return p.vol.DeleteSnapshot(ctx, b.record.Snapshot, "") })); err != nil || b.r.Snapshot == "" {
			return err
		}
		return b.node.endUnended(ctx, b.v, b.record.ID)
	}
	if err := b.node.endUnended(ctx, b.v, b.record.ID); err != nil {
		return fmt.Errorf("snapshot %s may be removed, as that of a backup that was cut off: %w", b.record.Snapshot, err)
	}
	return nil
}

// absent is nil for what is not there.
func absent(err error) error {
	if api.CodeOf(err) == api.NotFound {
		return nil
	}
	return err
}

// awaitAllowed returns when changes go on, as far as this node coordinates the volume.
func (b *backup) awaitAllowed(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, backupFollow)
	defer cancel()
	for b.suspended() == b.record.ID && pause(ctx, heldPoll) == nil {
	}
}

// describe tells all of a backup but its keys.
func (b *backup) describe() api.Backup {
	out := api.Backup{ID: b.record.ID, Volume: b.v.name(), Node: b.node.name, Snapshot: b.record.Snapshot, Since: b.record.Since, Keep: b.r.Snapshot != "",
		Redirect: b.r.Redirect, Attached: b.r.Attached, Begun: b.begun, Until: b.record.Until, WaitNS: int64(b.record.Wait), HoldNS: b.holdNS, Hooks: b.hooks, Warnings: b.warnings,
		Socket: b.socket, Address: b.address, Images: []api.BackupImage{}}
	for _, im := range b.images {
		out.Images = append(out.Images, im.describe())
	}
	return out
}
