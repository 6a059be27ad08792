package daemon

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"lunar/appliance/api"
	"lunar/appliance/cluster"
	"lunar/datapath/coordinator"
	"lunar/datapath/layout/protocol"
	"lunar/datapath/volume"
	"lunar/datapath/wire/nbd"
)

// The bounds of transfers.
const (
	maxTransfers  = 16               // under way on a node
	transferEnd   = 30 * time.Second // for one to let its image go
	sweepInterval = 2 * time.Second  // between looks for volumes that may have something of transfers of before
)

// transferFolder has the images of transfers: VOLUME/.transfer/NODE/ID. They are in no list. An import's
// gets its name when it is whole; an export's is a clone.
const transferFolder = ".transfer/"

func isTransfer(path string) bool { return strings.HasPrefix(path, transferFolder) }

// transfers are those under way. The zero value is ready.
type transfers struct {
	mu      sync.Mutex                    // guards what follows
	running map[uint64]context.CancelFunc // ends them, from when they are opened on
	number  uint64                        // of the last one
	all     map[string]*transfer
	taken   map[string]bool // those that somebody ends
	opening int
	stopped bool
	ended   sync.WaitGroup // of every transfer
}

// transfer is one image being filled or read by NBD, over a socket of its own.
type transfer struct {
	node  *Node
	r     api.Transfer
	point api.TransferPoint
	v     *volumeState
	path  string // VOLUME's part of r.Image
	work  string // path of what is served; "": the image itself
	job   *job

	image  *volume.Image
	server *nbd.Server
	served chan struct{} // closed when Serve has returned
	track  written

	over chan struct{} // closed by whoever took it, when nothing of it is left
}

// enter makes room for one more. Its context ends when the node is stopped; leave is called when nothing of it is left.
func (t *transfers) enter(ctx context.Context) (_ context.Context, leave func(), err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.stopped:
		return nil, nil, errStopping
	case len(t.running) >= maxTransfers:
		return nil, nil, api.Errorf(api.Full, "%d imports and exports are under way on this node", maxTransfers).WithHint("wait until one has ended")
	}
	ctx, cancel := context.WithCancel(ctx)
	t.number++
	number := t.number
	if t.running == nil {
		t.running, t.all, t.taken = map[uint64]context.CancelFunc{}, map[string]*transfer{}, map[string]bool{}
	}
	t.running[number] = cancel
	t.opening++
	t.ended.Add(1)
	return ctx, func() {
		cancel()
		t.mu.Lock()
		delete(t.running, number)
		t.mu.Unlock()
		t.ended.Done()
	}, nil
}

var errStopping = api.Errorf(api.Unavailable, "this node is being stopped")

// add publishes one that was opened, unless the node is being stopped.
func (t *transfers) add(one *transfer) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.opening--
	if t.stopped {
		return errStopping
	}
	t.all[one.point.ID] = one
	return nil
}

func (t *transfers) failed() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.opening--
}

// take gives a transfer to the one who ends it: nobody else gets it any more.
func (t *transfers) take(id string) (*transfer, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	one, ok := t.all[id]
	if ok {
		t.mark(id)
	}
	return one, ok
}

// mark notes that somebody ends a transfer; mu is locked.
func (t *transfers) mark(id string) {
	delete(t.all, id)
	t.taken[id] = true
}

// gone forgets one of which nothing is left.
func (t *transfers) gone(id string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.taken, id)
}

// stop drops all, and lets none in any more.
func (t *transfers) stop() {
	t.mu.Lock()
	t.stopped = true
	for _, cancel := range t.running {
		cancel()
	}
	t.mu.Unlock()
	t.ended.Wait()
}

// Transfer implements server.Transfers.
func (n *Node) Transfer(ctx context.Context, r api.Transfer, ready func(api.TransferPoint) error) error {
	ctx, leave, err := n.transfers.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	t, err := n.openTransfer(ctx, r)
	if err != nil {
		n.transfers.failed()
		return refusal(err)
	}
	if err := n.transfers.add(t); err != nil {
		return errors.Join(err, t.drop()) //nolint:contextcheck // it must not end early
	}
	err = ready(t.point)
	if err == nil {
		select {
		case <-t.over:
		case <-ctx.Done():
		}
	}
	if t, mine := n.transfers.take(t.point.ID); mine {
		return errors.Join(err, t.drop()) //nolint:contextcheck // it must not end early
	}
	<-t.over
	return err
}

func (n *Node) openTransfer(ctx context.Context, r api.Transfer) (_ *transfer, err error) {
	volume, path, err := api.SplitImage(r.Image)
	if err != nil {
		return nil, err
	}
	v, err := n.volume(volume)
	if err != nil {
		return nil, err
	}
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails
	t := &transfer{node: n, r: r, v: v, path: path, over: make(chan struct{})}
	t.point.ID = hex.EncodeToString(id[:])
	t.point.Name, t.point.Socket = r.Image, n.socket+"."+t.point.ID[:8]
	t.work = transferFolder + n.name + "/" + t.point.ID
	kind := map[bool]string{false: "image.import", true: "image.export"}[r.Export]
	t.job = n.jobs.begin(kind, r.Image, r.Size)
	open := map[bool]func(context.Context, *parts) error{false: t.openImport, true: t.openExport}[r.Export]
	err = n.on(volume, func(_ *volumeState, p *parts) error {
		err := open(ctx, p)
		if err == nil {
			t.image, err = p.vol.OpenImage(ctx, t.shown())
		}
		return err
	})
	if err == nil {
		t.point.Size = t.image.Size()
		n.jobs.size(t.job, t.point.Size)
		err = t.serve()
	}
	if err != nil {
		return nil, errors.Join(err, t.drop()) //nolint:contextcheck // it must not end early
	}
	return t, nil
}

// shown is the path of what is served.
func (t *transfer) shown() string {
	if t.work == "" {
		return t.path
	}
	return t.work
}

// openImport makes the image that is to be filled, when there is room for it and for its name.
func (t *transfer) openImport(ctx context.Context, p *parts) error {
	r := t.r
	if r.Size <= 0 || r.Data < 0 || r.Data > r.Size {
		return api.Errorf(api.Invalid, "an image of %d bytes with %d bytes of data cannot be", r.Size, r.Data)
	}
	if isTransfer(t.path) {
		return api.Errorf(api.Invalid, "%s is a name that Lunar keeps", r.Image)
	}
	if err := t.free(ctx, p); err != nil {
		return err
	}
	space, err := p.vol.Space(ctx)
	if err != nil {
		return err
	}
	wants := r.Data
	if r.Thick {
		wants = r.Size
	}
	if wants > space.Free {
		return api.Errorf(api.Full, "%s holds %s, volume %s has %s left", r.Image, api.FormatSize(wants), t.v.name(), api.FormatSize(space.Free)).
			WithHint("delete or move images, or grow the volume; nothing was imported")
	}
	unit := int64(t.block(p))
	t.r.Size = (r.Size + unit - 1) / unit * unit
	return p.vol.Create(ctx, t.work, protocol.CreateOptions{Size: t.r.Size, Thick: r.Thick, Eager: r.Thick, Progress: t.job.done.Store})
}

func (t *transfer) block(p *parts) int { return max(512, p.dev.LogicalBlock) }

// free refuses an import to a name that is taken.
func (t *transfer) free(ctx context.Context, p *parts) error {
	s, err := p.vol.Stat(ctx, t.path)
	switch {
	case errors.Is(err, coordinator.ErrNotFound):
		return nil
	case err != nil:
		return err
	case !t.r.Force:
		return api.Errorf(api.Exists, "image %s is there already, with %s of data", t.r.Image, api.FormatSize(s.Used)).
			WithHint("--force replaces it: that data is lost")
	}
	return t.node.notExported(t.v, t.path)
}

// openExport makes a clone, so that what is read is one moment's. Where the file system cannot, it is the image
// itself, when nobody is logged in to it.
func (t *transfer) openExport(ctx context.Context, p *parts) error {
	err := p.vol.Clone(ctx, t.path, t.work)
	t.point.Taken = time.Now().UTC()
	if !errors.Is(err, coordinator.ErrUnsupported) {
		return err
	}
	t.work = ""
	return t.unused(ctx)
}

// unused refuses an image to which initiators are logged in.
func (t *transfer) unused(ctx context.Context) error {
	all, err := t.node.Sessions(ctx)
	if err != nil {
		return err
	}
	for _, m := range t.node.mappings(unitKey{t.v.id, t.path}) {
		for i := range all.Sessions {
			if s := &all.Sessions[i]; s.Target == m.Target {
				return api.Errorf(api.Busy, "%s is logged in to target %s, which maps image %s", s.Initiator, m.Target, t.r.Image).
					WithHint("log it out: on ext4 an image in use cannot be exported as it is at one moment; XFS volumes can do that")
			}
		}
	}
	return nil
}

// serve opens the socket.
func (t *transfer) serve() error {
	l, err := listenUnix(t.point.Socket)
	if err != nil {
		return err
	}
	t.server, err = nbd.NewServer(nbd.Options{Open: t.open, Limits: nbd.Limits{Connections: 4, Handshakes: 4, Window: 8}, Log: t.node.log})
	if err != nil {
		return errors.Join(err, l.Close())
	}
	t.served = make(chan struct{})
	go func(s *nbd.Server) {
		defer close(t.served)
		if err := s.Serve(l); !errors.Is(err, nbd.ErrStopped) {
			t.node.log.Error("the socket of an import or export ended", "image", t.r.Image, "error", err)
		}
	}(t.server)
	return nil
}

func (t *transfer) open(_ context.Context, name string, _ nbd.Peer) (nbd.Export, error) {
	if name != t.point.Name {
		return nil, fmt.Errorf("this socket serves %s alone: %w", t.point.Name, unix.ENOENT)
	}
	return &transferExport{t: t, image: t.image, readOnly: t.r.Export}, nil
}

// FinishTransfer implements server.Transfers.
func (n *Node) FinishTransfer(ctx context.Context, id string) (api.Image, error) {
	t, ok := n.transfers.take(id)
	if !ok {
		return api.Image{}, api.Errorf(api.NotFound, "that import or export has ended already")
	}
	ctx = context.WithoutCancel(ctx)
	if err := t.finish(ctx); err != nil {
		return api.Image{}, refusal(errors.Join(err, t.drop())) //nolint:contextcheck // it must not end early
	}
	defer t.end()
	kind, done := "image.import", "imported"
	if t.r.Export {
		kind, done = "image.export", "exported"
	}
	n.note(ctx, cluster.Event{Kind: kind, Volume: t.v.name(), Text: fmt.Sprintf("image %s was %s", t.r.Image, done)})
	return n.Image(ctx, t.v.name(), t.path)
}

// DropTransfer implements server.Transfers.
func (n *Node) DropTransfer(_ context.Context, id string) error {
	t, ok := n.transfers.take(id)
	if !ok {
		return api.Errorf(api.NotFound, "that import or export has ended already")
	}
	return refusal(t.drop()) //nolint:contextcheck // it must not end early
}

// finish makes what was imported durable, and gives it its name. On an error the caller drops it.
func (t *transfer) finish(ctx context.Context) error {
	limited, cancel := context.WithTimeout(ctx, transferEnd)
	defer cancel()
	if err := t.unserve(limited); err != nil {
		return err
	}
	if t.r.Export {
		return t.clear(limited)
	}
	if err := t.makeSparse(); err != nil {
		return err
	}
	if err := errors.Join(t.image.Sync(), t.letGo(limited)); err != nil {
		return err
	}
	return t.name(limited)
}

// unserve ends the socket; everything that was asked is answered.
func (t *transfer) unserve(ctx context.Context) error {
	if t.server == nil {
		return nil
	}
	err := t.server.Stop(ctx)
	<-t.served
	t.server = nil
	return err
}

func (t *transfer) letGo(ctx context.Context) error {
	if t.image == nil {
		return nil
	}
	err := t.image.Close(ctx)
	if err == nil {
		t.image = nil
	}
	return err
}

// name gives the image its name. What it replaces stays under another one until it has it.
func (t *transfer) name(ctx context.Context) error {
	if err := t.node.unsuspended(ctx, t.v.name()); err != nil {
		return err
	}
	end, err := t.node.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	return t.with(func(p *parts) error {
		if err := t.free(ctx, p); err != nil {
			return err
		}
		old := t.path + ".replaced-" + t.point.ID[:8]
		err := p.vol.Rename(ctx, t.path, old)
		if errors.Is(err, coordinator.ErrNotFound) {
			old, err = "", nil
		}
		if err == nil {
			err = p.vol.Rename(ctx, t.work, t.path)
		}
		if err != nil || old == "" {
			return err
		}
		return p.vol.Delete(ctx, old)
	})
}

// with runs call with the volume's parts.
func (t *transfer) with(call func(p *parts) error) error {
	return t.node.on(t.v.name(), func(_ *volumeState, p *parts) error { return call(p) })
}

// drop ends a transfer that somebody has taken, and takes away what it made.
func (t *transfer) drop() error {
	defer t.end()
	ctx, cancel := context.WithTimeout(context.Background(), transferEnd)
	defer cancel()
	_ = t.unserve(ctx) // nobody waits for what is cut off
	return t.clear(ctx)
}

// end says that nothing is left of it.
func (t *transfer) end() {
	t.node.jobs.end(t.job)
	t.node.transfers.gone(t.point.ID)
	close(t.over)
}

// clear removes what was made for the transfer.
func (t *transfer) clear(ctx context.Context) error {
	if err := t.letGo(ctx); err != nil || t.work == "" {
		return err
	}
	err := t.with(func(p *parts) error { return p.vol.Delete(ctx, t.work) })
	if api.CodeOf(err) == api.NotFound {
		return nil
	}
	return err
}

// keepTransfersSwept takes away, once per volume, what transfers left that ended with their daemon, until ctx ends.
func (n *Node) keepTransfersSwept(ctx context.Context) {
	n.sweepSockets()
	swept := map[string]bool{}
	for {
		for _, v := range n.sortedVolumes() {
			if !swept[v.id] {
				swept[v.id] = n.sweepTransfers(ctx, v)
			}
		}
		if pause(ctx, sweepInterval) != nil {
			return
		}
	}
}

// sweepSockets removes sockets of transfers that a killed daemon left.
func (n *Node) sweepSockets() {
	left, _ := filepath.Glob(n.socket + ".????????")
	for _, path := range left {
		c, err := net.DialTimeout("unix", path, time.Second)
		if err == nil {
			_ = c.Close()
			continue
		}
		if info, err := os.Lstat(path); err == nil && info.Mode()&os.ModeSocket != 0 {
			_ = os.Remove(path)
		}
	}
}

// sweepTransfers takes away what lies in this node's folder, and in those of nodes that are not there.
func (n *Node) sweepTransfers(ctx context.Context, v *volumeState) (done bool) {
	p, release := v.borrow()
	if p == nil {
		return false
	}
	defer release()
	all, err := p.vol.List(ctx)
	if err != nil {
		return false
	}
	done = true
	for _, s := range all {
		if !isTransfer(s.Path) || n.transferLives(s.Path) {
			continue
		}
		if err := p.vol.Delete(ctx, s.Path); err != nil && !errors.Is(err, coordinator.ErrNotFound) {
			n.log.Warn("what an import or export left was not cleared away", "volume", v.name(), "path", s.Path, "error", err)
			done = false
		}
	}
	return done
}

// transferLives tells whether an image may be of a transfer that is under way.
func (n *Node) transferLives(path string) bool {
	node, id, ok := strings.Cut(strings.TrimPrefix(path, transferFolder), "/")
	if !ok || node != n.name {
		return ok && n.hasSession(node)
	}
	n.transfers.mu.Lock()
	defer n.transfers.mu.Unlock()
	return n.transfers.all[id] != nil || n.transfers.opening > 0 || n.transfers.taken[id]
}
