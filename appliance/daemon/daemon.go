package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	systemd "github.com/coreos/go-systemd/v22/daemon"

	"lunar/appliance/api"
	"lunar/appliance/cluster"
	"lunar/appliance/config"
	"lunar/appliance/fence"
	"lunar/appliance/fence/guard"
	"lunar/appliance/namespace"
	"lunar/appliance/server"
	"lunar/datapath/uring"
	"lunar/iscsi"
)

// The bounds of the parts of a stop. The second signal ends the waits for others at once; what
// keeps data whole then still has quickTime.
const (
	quickTime   = 5 * time.Second
	logoutTime  = 20 * time.Second // initiators log out, commands under way end
	unmountTime = 40 * time.Second // volumes are flushed and unmounted
	drainTime   = 10 * time.Second // the engine ends
	apiTime     = 5 * time.Second  // API calls under way end
	othersTime  = 30 * time.Second // other nodes that stop too, and need this one's vote, end
)

// Daemon is a running lunard.
type Daemon struct {
	config config.Config
	log    *slog.Logger
	notify notifier

	db           *cluster.DB
	engine       *uring.Engine
	front        *iscsi.Server
	reservations *reservationStore
	node         *Node
	namespace    *namespace.Namespace // nil: not mounted
	listeners    *listeners
	api, metrics *http.Server
	stopWeb      context.CancelFunc     // nil: it was not started
	told         atomic.Pointer[string] // systemd, as the status
	stopTasks    context.CancelFunc
	tasks        sync.WaitGroup // the API's servers, the watchdog, the retries
}

// Open starts every part and restores what was exported. On failure nothing is left behind.
func Open(ctx context.Context, c config.Config, log *slog.Logger) (_ *Daemon, err error) {
	if bad := c.Validate(); bad != nil {
		return nil, bad
	}
	d := &Daemon{config: c, log: log, notify: notifier{log}, node: newNode(c.Node.Name, log)}
	d.node.web = &webConsole{config: c.Web, node: d.node, log: log}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.Close(ctx))
		}
	}()
	for _, part := range []struct {
		name string
		open func(context.Context) error
	}{
		{"cluster database", d.openDatabase}, {"io_uring engine", d.openEngine}, {"iSCSI server", d.openFront},
		{"sockets", d.openSockets}, {"cluster", d.openMembership}, {"exports", d.openExports}, {"control API", d.openAPI},
	} {
		d.notify.status("Starting: %s", part.name)
		if err := part.open(ctx); err != nil {
			return nil, fmt.Errorf("%s: %w", part.name, err)
		}
	}
	return d, nil
}

func (d *Daemon) openDatabase(ctx context.Context) (err error) {
	d.node.fabric = newFabric(&d.config, d.log)
	d.db, err = cluster.Open(ctx, cluster.Options{
		Dir: d.config.StateDir, Node: d.config.Node.Name, Config: d.config.Cluster, Log: d.log, NodeAPI: d.node.nodeAPI(), Network: d.node.fabric,
	})
	d.node.db, d.node.stateDir = d.db, d.config.StateDir
	if errors.Is(err, cluster.ErrUnavailable) {
		return fmt.Errorf("%w; if the cluster has evicted this node, `lunarctl cluster leave --force` makes it a node of its own", err)
	}
	return err
}

func (d *Daemon) openEngine(context.Context) (err error) {
	e := d.config.Engine
	o := uring.Options{
		Rings: e.Rings, InFlight: e.InFlight, Queue: e.Queue, PoolBytes: int64(e.BufferPoolMiB) << 20,
		Deadline: time.Duration(e.Deadline), Sockets: min(d.config.ISCSI.MaxConnections+64, uring.MaxSockets), Log: d.log,
	}
	if o.Rings == 0 {
		o.Rings = min((runtime.NumCPU()+1)/2, uring.MaxRings) // the kernel's part of the work is as much
	}
	runtime.GOMAXPROCS(max(runtime.GOMAXPROCS(0), runtime.NumCPU()+o.Rings)) // busy rings keep theirs
	d.node.tracing = d.node.newTracing(d.config.Trace, o.Rings)
	o.Clock = d.node.tracing.ringClock
	d.engine, err = uring.Open(o) //nolint:contextcheck // an engine outlives the call that opens it
	d.node.engine, d.node.poolBytes = d.engine, o.PoolBytes
	return err
}

func (d *Daemon) openFront(context.Context) (err error) {
	d.front, err = iscsi.New(iscsi.Options{
		Lanes: lanes(d.engine), Buffers: d.engine.Pool(), MaxConnections: d.config.ISCSI.MaxConnections,
		MaxPending: d.config.ISCSI.MaxPending, Log: d.log, Clock: d.node.tracing.frontClock,
	})
	d.reservations = newReservationStore(d.node)
	d.node.front, d.node.reservations = d.front, d.reservations
	return err
}

// openSockets listens everywhere, so that who connects while volumes are being mounted waits
// instead of being refused.
func (d *Daemon) openSockets(context.Context) (err error) {
	if d.listeners, err = d.listen(); err == nil {
		d.node.tracing.openKernel(d.config.Trace, d.listeners.portals)
	}
	return err
}

// openAPI serves the API, once everything is restored: until then it could only answer what is not so.
func (d *Daemon) openAPI(ctx context.Context) error {
	version := api.BuildVersion()
	version.Node = d.config.Node.Name
	s, err := server.New(server.Options{
		Volumes: d.node, Images: d.node, Targets: d.node, Sessions: d.node, Events: d.node, Jobs: d.node,
		Cluster: d.node, Nodes: d.node, Networks: d.node, Transfers: d.node, Backups: d.node, Traces: d.node,
		Lines: d.node, Web: d.node, Stats: d.node.Stats, Version: version, Log: d.log,
	})
	if err != nil {
		return err
	}
	d.api = d.serve(d.listeners.api, s.Handler())
	if d.listeners.metrics != nil {
		d.metrics = d.serve(d.listeners.metrics, s.Metrics())
	}
	ctx, d.stopWeb = context.WithCancel(context.WithoutCancel(ctx))
	d.tasks.Go(func() { d.keepWeb(ctx, s.Handler()) })
	return nil
}

// serve runs an HTTP server as one of the daemon's tasks.
func (d *Daemon) serve(l net.Listener, h http.Handler) *http.Server {
	s := &http.Server{
		Handler: h, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 64 << 10,
		ErrorLog: slog.NewLogLogger(d.log.Handler(), slog.LevelDebug),
	}
	d.tasks.Go(func() {
		if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			d.log.Error("http server ended", "address", l.Addr(), "error", err)
		}
	})
	return s
}

// openMembership takes this node's place in the cluster, also in one of its own.
func (d *Daemon) openMembership(ctx context.Context) error {
	n := d.node
	n.witness = d.config.Cluster.Role == config.RoleWitness
	n.socket = d.config.Socket
	n.lease, n.storage = time.Duration(d.config.Cluster.Lease), d.config.Storage
	n.inFlight, n.sharesKernel = time.Duration(d.config.Fence.InFlight), d.config.Storage.SharedKernel
	n.fenceAgent = fence.AgentOptions{Command: d.config.Fence.Agent, Timeout: time.Duration(d.config.Fence.AgentTimeout)}
	n.guardOptions = guard.Options{Watchdog: d.config.Fence.Watchdog, WatchdogTimeout: time.Duration(d.config.Fence.WatchdogTimeout)}
	for _, l := range d.listeners.portals {
		n.portals = append(n.portals, l.Addr())
	}
	m, err := n.openMembership(ctx)
	if err != nil {
		return err
	}
	m.run(ctx)
	return nil
}

// openExports restores volumes and targets, and then lets initiators in: they never see a target
// without its LUNs because of a restart.
func (d *Daemon) openExports(ctx context.Context) error {
	if err := d.node.restore(ctx); err != nil {
		return err
	}
	d.node.followStates()
	d.openNamespace()
	for _, l := range d.listeners.portals {
		if err := d.front.AddPortal(iscsi.Portal{Listener: l}); err != nil {
			return err
		}
	}
	ctx, d.stopTasks = context.WithCancel(context.WithoutCancel(ctx))
	d.tasks.Go(func() { d.notify.watch(ctx, d.alive) })
	d.tasks.Go(func() { d.node.keepTrying(ctx, d.status) })
	d.tasks.Go(func() { d.node.keepWatch(ctx) })
	d.tasks.Go(func() { d.node.keepAsking(ctx, d.status) })
	d.tasks.Go(func() { d.node.keepReconciled(ctx) })
	d.tasks.Go(func() { d.node.keepNoting(ctx) })
	d.tasks.Go(func() { d.node.keepJudging(ctx) })
	d.tasks.Go(func() { d.node.keepTransfersSwept(ctx) })
	d.tasks.Go(func() { d.node.recoverHooks(ctx) })
	d.tasks.Go(func() { d.node.keepBackupsSwept(ctx) })
	d.tasks.Go(func() { d.keepTelling(ctx) })
	d.tasks.Go(func() { d.node.joinByCredential(ctx) })
	d.tasks.Go(func() { newVolumeUnits(d.log).keepUnits(ctx, d.node.lines) })
	return nil
}

// Portals are the addresses on which initiators connect.
func (d *Daemon) Portals() []net.Addr { return d.front.Portals() }

// Ready tells systemd and the log that the node serves.
func (d *Daemon) Ready() {
	d.status()
	d.notify.send(systemd.SdNotifyReady)
}

// Close stops everything in order: initiators first, then volumes, then the engine and the
// database. It takes at most the sum of the bounds above; once ctx has ended it hurries.
func (d *Daemon) Close(ctx context.Context) error {
	d.notify.send(systemd.SdNotifyStopping)
	d.notify.status("Stopping: initiators log out, then the volumes are handed over")
	d.node.end()
	if d.stopTasks != nil {
		d.stopTasks()
	}
	d.node.sayStopping()
	errs := []error{
		d.closeFront(ctx), d.closeNamespace(ctx), d.closeAPI(ctx), d.closeVolumes(ctx), d.closeMembership(ctx), d.closeEngine(ctx), d.node.tracing.close(),
	}
	d.tasks.Wait()
	if d.reservations != nil {
		d.reservations.close()
	}
	d.awaitOthers(ctx)
	if d.db != nil {
		errs = append(errs, d.db.Close())
	}
	return errors.Join(errs...)
}

func (d *Daemon) closeFront(ctx context.Context) error {
	if d.front == nil {
		return nil
	}
	limited, cancel := context.WithTimeout(ctx, logoutTime)
	defer cancel()
	err := d.front.Close(limited)
	if ctx.Err() != nil && err != nil {
		d.log.Warn("initiators were cut off", "error", err)
		return nil
	}
	return err
}

func (d *Daemon) closeAPI(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, apiTime)
	defer cancel()
	d.node.transfers.stop()
	d.node.hooks.stop()
	d.node.repairs.stop()
	d.node.backups.stop()
	if d.stopWeb != nil {
		d.stopWeb()
	}
	for _, s := range []*http.Server{d.api, d.metrics} {
		if s != nil && s.Shutdown(ctx) != nil {
			_ = s.Close()
		}
	}
	if d.listeners != nil {
		d.listeners.close()
	}
	return nil
}

func (d *Daemon) closeVolumes(ctx context.Context) error {
	if d.engine == nil {
		return nil
	}
	ctx, cancel := bounded(ctx, unmountTime)
	defer cancel()
	return d.node.quiesce(ctx)
}

func (d *Daemon) closeMembership(ctx context.Context) error {
	m := d.node.membership.Load()
	if m == nil {
		return nil
	}
	ctx, cancel := bounded(ctx, serveLimit)
	defer cancel()
	return m.close(ctx)
}

func (d *Daemon) closeEngine(ctx context.Context) error {
	if d.engine == nil {
		return nil
	}
	ctx, cancel := bounded(ctx, drainTime)
	defer cancel()
	return d.engine.Close(ctx)
}

// awaitOthers keeps the database for other nodes that stop at the same time; a hurry does not wait for them.
func (d *Daemon) awaitOthers(ctx context.Context) {
	if d.db == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, othersTime)
	defer cancel()
	d.db.AwaitOthers(ctx)
}

// bounded is a context that ends after limit, or quickTime after ctx has ended.
func bounded(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	out, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
	stop := context.AfterFunc(ctx, func() {
		select {
		case <-time.After(quickTime):
			cancel()
		case <-out.Done():
		}
	})
	return out, func() { stop(); cancel() }
}
