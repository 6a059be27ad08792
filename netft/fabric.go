package netft

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	kernel "lunar/bpf/heartbeat"
	"lunar/netft/detector"
	"lunar/netft/heartbeat"
	"lunar/netft/link"
	"lunar/netft/network"
	"lunar/netft/route"
)

// Fabric is a running node's cluster network. All methods may be called from any goroutine.
type Fabric struct {
	o      Options
	log    *slog.Logger
	method string
	kernel *kernel.Heartbeat // nil: the sockets stamp
	heart  *heartbeat.Heart
	links  *link.Watcher
	routes *route.Keeper // nil: no cluster address
	cancel context.CancelFunc
	done   chan struct{}
	kick   chan struct{} // wakes the worker; holds one

	storing sync.Mutex // one write of the StateFile at a time

	// The worker's own, and the start's before it.
	unset bool              // heart did not take all of the plan
	said  map[string]string // errors that last, by what could not be done

	judging  sync.Mutex // guards detector, stamps and waiting; held for microseconds only
	detector *detector.Detector
	stamps   []detector.Stamp
	waiting  []detector.Verdict // for the worker
	lost     int                // verdicts that did not fit

	mu       sync.Mutex // guards all below
	own      []network.Interface
	peers    []Peer
	settings []network.Setting
	changed  bool // own, peers or settings are newer than what follows
	view     network.View
	plan     plan
	chosen   map[uint16]network.Choice
	closed   bool
}

// Start begins to watch, to send heartbeats and to keep routes, in the network namespace of the calling thread. The
// context bounds the start only.
func Start(ctx context.Context, o Options) (*Fabric, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	o.Profile = o.Profile.WithDefaults()
	if o.Port == 0 {
		o.Port = Port
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	d, err := detector.New(detector.Options{Profile: o.Profile, Tick: o.Profile.Interval / 8})
	if err != nil {
		return nil, err
	}
	f := &Fabric{
		o: o, log: o.Log, detector: d, kick: make(chan struct{}, 1), done: make(chan struct{}),
		chosen: map[uint16]network.Choice{}, changed: true, said: map[string]string{},
	}
	f.remember()
	if err := f.begin(ctx); err != nil {
		return nil, errors.Join(err, f.end())
	}
	return f, nil
}

// remember takes the peers and settings of the last run.
func (f *Fabric) remember() {
	s, err := readState(f.o.StateFile)
	if err != nil {
		f.log.Warn("the peers as last known cannot be read: waiting for the cluster's database", "error", err)
		return
	}
	f.peers, f.settings = s.Peers, s.Settings
}

func (f *Fabric) begin(ctx context.Context) error {
	var err error
	if f.o.Cluster.IsValid() {
		if f.routes, err = route.Start(f.o.Cluster, f.log); err != nil { //nolint:contextcheck // the Keeper outlives the start
			return err
		}
	}
	f.loadKernel()
	o := heartbeat.Options{
		Number: f.o.Number, Incarnation: f.o.Incarnation, Key: f.o.Key, Port: f.o.Port, Interval: f.o.Profile.Interval,
		Log: f.log, Judge: f.judge,
	}
	if f.kernel != nil {
		o.Kernel = f.kernel
	}
	if f.heart, err = heartbeat.Start(o); err != nil {
		return err
	}
	own, cancel := context.WithCancel(context.WithoutCancel(ctx))
	f.cancel = cancel
	if f.links, err = link.Watch(own, f.log, f.linksChanged); err != nil {
		f.links = nil // closed already
		return err
	}
	if !f.follow(false) {
		f.wake()
	}
	go f.run(own)
	return nil
}

// loadKernel lets the kernel stamp, where it can.
func (f *Fabric) loadKernel() {
	f.method = MethodSocket + ": switched off"
	if !f.o.BPF {
		f.unpin()
		return
	}
	if f.o.Port != Port {
		f.method = fmt.Sprintf("%s: the kernel's programs know port %d only", MethodSocket, Port)
		f.log.Warn("heartbeats are stamped by socket", "why", f.method)
		return
	}
	o := kernel.Options{
		Number: f.o.Number, Incarnation: f.o.Incarnation, Keys: [][kernel.KeySize]byte{f.o.Key}, Pin: f.o.Pin,
		Tick: min(max(f.o.Profile.Interval/4, kernel.MinTick), kernel.DefaultTick),
	}
	h, err := kernel.Load(o)
	if errors.Is(err, kernel.ErrNotPinned) {
		f.log.Info("the heartbeats' programs go with this process: if it is killed, peers see a node that is silent", "error", err)
		o.Pin = ""
		h, err = kernel.Load(o)
	}
	if err != nil {
		f.method = MethodSocket + ": " + err.Error()
		f.log.Warn("heartbeats are stamped by socket, not in the kernel: while this process does not run, peers see a node that is silent", "error", err)
		return
	}
	f.kernel, f.method = h, MethodKernel
}

// unpin takes out of the kernel what a process before this one left there: nobody would keep it.
func (f *Fabric) unpin() {
	if f.o.Pin == "" {
		return
	}
	if err := kernel.Unpin(f.o.Pin); err != nil && !errors.Is(err, kernel.ErrNotPinned) {
		f.log.Warn("the kernel may still answer heartbeats", "error", err)
	}
}

// Close stops, takes back the routes and the cluster address, and waits.
func (f *Fabric) Close() error {
	f.mu.Lock()
	if f.closed {
		f.mu.Unlock()
		return nil
	}
	f.closed = true
	f.mu.Unlock()
	f.cancel()
	<-f.done
	return f.end()
}

// end stops what was begun.
func (f *Fabric) end() error {
	var errs []error
	if f.cancel != nil {
		f.cancel()
	}
	if f.links != nil {
		f.links.Close()
	}
	if f.heart != nil {
		errs = append(errs, f.heart.Close())
	}
	if f.kernel != nil {
		errs = append(errs, f.kernel.Close())
	}
	if f.routes != nil {
		errs = append(errs, f.routes.Close())
	}
	return errors.Join(errs...)
}

// SetPeers replaces the peers and stores them in the StateFile. The error is that of the file, or names a peer that
// cannot be used; the peers hold all the same, without that one.
func (f *Fabric) SetPeers(peers []Peer) error {
	good, bad := f.usable(peers)
	if !f.change(func() { f.peers = good }) {
		return errors.Join(ErrClosed, bad)
	}
	return errors.Join(bad, f.store())
}

// change is for what the worker has to follow. It returns false after Close.
func (f *Fabric) change(do func()) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return false
	}
	do()
	f.changed = true
	f.wake()
	return true
}

// store writes the StateFile; nothing else waits for the disk.
func (f *Fabric) store() error {
	f.storing.Lock()
	defer f.storing.Unlock()
	f.mu.Lock()
	s := state{Peers: f.peers, Settings: f.settings}
	f.mu.Unlock()
	return writeState(f.o.StateFile, s)
}

func (f *Fabric) usable(peers []Peer) (good []Peer, bad error) {
	var errs []error
	seen := map[uint16]bool{f.o.Number: true}
	for _, p := range peers {
		switch {
		case p.Number == 0 || seen[p.Number]:
			errs = append(errs, fmt.Errorf("netft: node %s has the number %d, which is not free: it is not watched", p.Name, p.Number))
		case len(good) == MaxPeers:
			errs = append(errs, fmt.Errorf("netft: node %s is not watched: %d peers are the most", p.Name, MaxPeers))
		default:
			seen[p.Number] = true
			good = append(good, p)
		}
	}
	return good, errors.Join(errs...)
}

// SetSettings replaces what the cluster has recorded of its networks.
func (f *Fabric) SetSettings(settings []network.Setting) {
	if !f.change(func() { f.settings = slices.Clone(settings) }) {
		return
	}
	if err := f.store(); err != nil {
		f.log.Warn("the networks' settings could not be stored for the next start", "error", err)
	}
}

func (f *Fabric) linksChanged(own []network.Interface) {
	f.change(func() { f.own = own })
}

func (f *Fabric) wake() {
	select {
	case f.kick <- struct{}{}:
	default:
	}
}

// Interfaces are this node's own.
func (f *Fabric) Interfaces() []network.Interface {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.own)
}

// Networks are the networks of all nodes known, in the order of the list.
func (f *Fabric) Networks() []network.Network { return f.View().Networks }

// View is Networks, with the settings to store and the warnings. The caller changes nothing of it.
func (f *Fabric) View() network.View {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.view
}

// Migration are the names of the networks for live migration to a peer, best first; none if none works.
func (f *Fabric) Migration(peer uint16) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var names []string
	for _, p := range f.chosen[peer].Migration {
		names = append(names, p.Network)
	}
	return names
}

// Method is MethodKernel, or MethodSocket followed by why the kernel does not stamp.
func (f *Fabric) Method() string { return f.method }

// ProbeMTU sends packets of size bytes to a peer over a network that may not be fragmented, and waits for its daemon's
// answer in the same size. It returns heartbeat.ErrTooBig when none comes.
func (f *Fabric) ProbeMTU(ctx context.Context, peer uint16, name string, size int) error {
	f.mu.Lock()
	p := f.plan
	f.mu.Unlock()
	for _, t := range p.targets {
		if t.Peer == peer && p.names[t.Network] == name {
			return f.heart.ProbeMTU(ctx, t.Path, size)
		}
	}
	return fmt.Errorf("netft: no path to node %d over network %q", peer, name)
}

// remote is where heartbeats of a path go, so also where a route may.
func (f *Fabric) remote(p detector.Path) netip.Addr { return f.heart.Remote(p) }

// pauseAfterError is how long the worker waits before it tries again what failed; then twice as long, to longestPause.
const (
	pauseAfterError = 500 * time.Millisecond
	longestPause    = 10 * time.Second
)
