package daemon

import (
	"cmp"
	"context"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"lunar/appliance/api"
	"lunar/appliance/cluster"
	"lunar/appliance/config"
	"lunar/appliance/fence"
	"lunar/appliance/fence/guard"
	"lunar/datapath/uring"
	"lunar/iscsi"
)

// Node is what the control API acts on: it implements the interfaces of package server.
type Node struct {
	name         string
	log          *slog.Logger
	db           *cluster.DB
	engine       *uring.Engine
	front        *iscsi.Server
	reservations *reservationStore
	poolBytes    int64
	directory    *directory
	reconciler   *reconciler
	events       chan cluster.Event // for who cannot wait until they are recorded
	database     databaseState
	jobs         jobs
	tallies      tallies
	ledger       ledger
	transfers    transfers
	backups      backups
	holds        ownHolds
	hooks        hooks
	narrator     narrator
	repairs      repairs
	fabric       *fabric
	tracing      *tracing // nil until the engine is open
	web          *webConsole
	echoes       chan struct{}         // those that answer probes
	networks     atomic.Pointer[known] // nil: not heard of yet, or in no cluster

	membership  atomic.Pointer[membership]
	halt        chan struct{}          // closed when the daemon begins to end
	joining     atomic.Pointer[string] // how the join by credentials is; nil: none is under way
	stopping    atomic.Bool            // the daemon ends
	incarnation atomic.Uint64          // of the session, its last one while there is none

	// What the configuration says of this node among others.
	stateDir     string
	socket       string        // of the API
	witness      bool          // it only votes: no volume, no target
	lease        time.Duration // of its session
	portals      []net.Addr
	storage      config.Storage
	fenceAgent   fence.AgentOptions
	inFlight     time.Duration // bound of a write that the device has
	sharesKernel bool          // nodes on one machine, as the demonstration has them
	guardOptions guard.Options

	// changes has one token: who holds it may change what is on line or exported, and may block.
	changes chan struct{}

	following sync.Mutex // orders the changes of the units' access states

	mu       sync.RWMutex      // guards the maps and what their values say is guarded; held for moments
	verdicts map[string]uint64 // on other nodes, by kind
	volumes  map[string]*volumeState
	targets  map[string]*target
	units    map[unitKey]*unit
}

func newNode(name string, log *slog.Logger) *Node {
	n := &Node{
		name: name, log: log, directory: newDirectory(), reconciler: newReconciler(),
		events: make(chan cluster.Event, maxEvents), changes: make(chan struct{}, 1), echoes: make(chan struct{}, maxEchoes),
		halt: make(chan struct{}), verdicts: map[string]uint64{}, volumes: map[string]*volumeState{}, targets: map[string]*target{}, units: map[unitKey]*unit{},
	}
	n.changes <- struct{}{}
	return n
}

// begin waits for the turn to change something; the caller calls end.
func (n *Node) begin(ctx context.Context) (end func(), err error) {
	end = func() { n.changes <- struct{}{} }
	select {
	case <-n.changes: // even if ctx has ended
		return end, nil
	default:
	}
	select {
	case <-n.changes:
		return end, nil
	case <-ctx.Done():
		return nil, api.Errorf(api.Busy, "another change of this node's configuration is still under way: %v", ctx.Err())
	}
}

// maxEvents bounds the events that wait to be recorded; more are in this node's own log only.
const maxEvents = 256

// noteSoon is note for who must not wait for the database.
func (n *Node) noteSoon(_ context.Context, e cluster.Event) {
	n.tallies.event(e.Kind)
	n.log.Info(e.Text, "event", e.Kind, "volume", e.Volume, "epoch", e.Epoch)
	select {
	case n.events <- e:
	default:
		n.log.Warn("the event was not recorded: too many wait")
	}
}

// keepNoting records what noteSoon was told, until ctx ends.
func (n *Node) keepNoting(ctx context.Context) {
	for {
		select {
		case e := <-n.events:
			limited, cancel := context.WithTimeout(ctx, databaseTimeout)
			if err := n.db.Append(limited, e); err != nil {
				n.log.Warn("the event was not recorded", "error", err)
			}
			cancel()
		case <-ctx.Done():
			return
		}
	}
}

// note writes the operation log, which must not make the operation itself fail.
func (n *Node) note(ctx context.Context, e cluster.Event) {
	n.tallies.event(e.Kind)
	n.log.Info(e.Text, "event", e.Kind, "volume", e.Volume, "target", e.Target)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), databaseTimeout)
	defer cancel()
	if err := n.db.Append(ctx, e); err != nil {
		n.log.Warn("the event was not recorded", "error", err)
	}
}

// Events implements server.Events.
func (n *Node) Events(ctx context.Context, follow bool, fn func(api.Event) error) error {
	past, revision, err := n.db.Events(ctx)
	if err != nil {
		return refusal(err)
	}
	for i := range past {
		if err := fn(eventOf(past[i])); err != nil {
			return err
		}
	}
	if !follow {
		return nil
	}
	return n.db.Follow(ctx, revision, func(e cluster.Event) error { return fn(eventOf(e)) })
}

func eventOf(e cluster.Event) api.Event {
	return api.Event{Time: e.Time, Node: e.Node, Kind: e.Kind, Volume: e.Volume, Target: e.Target, Epoch: e.Epoch, Reason: e.Reason, Text: e.Text}
}

// sortedVolumes is the volumes by name.
func (n *Node) sortedVolumes() []*volumeState {
	n.mu.RLock()
	defer n.mu.RUnlock()
	out := make([]*volumeState, 0, len(n.volumes))
	for _, v := range n.volumes {
		out = append(out, v)
	}
	slices.SortFunc(out, func(a, b *volumeState) int { return cmp.Compare(a.record.Name, b.record.Name) })
	return out
}

// volume finds a volume by name.
func (n *Node) volume(name string) (*volumeState, error) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	for _, v := range n.volumes {
		if v.record.Name == name {
			return v, nil
		}
	}
	return nil, api.Errorf(api.NotFound, "there is no volume %q", name).WithHint("`lunarctl volume list` shows the volumes")
}

// record is a copy of a volume's record.
func (n *Node) record(v *volumeState) cluster.Volume {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return v.record
}
