package heartbeat

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	kernel "lunar/bpf/heartbeat"
	"lunar/netft/beat"
	"lunar/netft/detector"
	"lunar/netft/internal/netns"
)

// MaxPaths bounds the paths of a Heart.
const MaxPaths = kernel.MaxPaths

// maxRetired bounds the paths whose numbers are remembered when they are gone.
const maxRetired = 8 * MaxPaths

// shares is in how many shares an interval's beats go out, one at each tick.
const shares = 8

// Stamps is the part that lives in the kernel; bpf/heartbeat's Heartbeat is one.
type Stamps interface {
	Attach(ifindex int, network uint16) error
	Detach(ifindex int) error
	SetPaths([]kernel.Path) error
	Stamps(to []kernel.Stamp) []kernel.Stamp
	Node() kernel.Node
}

// Options are what Start needs.
type Options struct {
	Number      uint16
	Incarnation uint64
	Key         [beat.KeySize]byte
	Port        uint16
	Interval    time.Duration // between two beats of a path
	Kernel      Stamps        // nil: the sockets alone
	Log         *slog.Logger
	// Judge is called by the thread at each tick, after all that came was read, with what is known of all paths. It
	// must not block, and keeps nothing of the stamps.
	Judge func(detector.Tick, []kernel.Stamp)
}

// Validate tells what is wrong.
func (o *Options) Validate() error {
	switch {
	case o.Number == 0 || o.Incarnation == 0:
		return fmt.Errorf("heartbeat: number %d and incarnation %d: neither may be 0", o.Number, o.Incarnation)
	case o.Port == 0:
		return errors.New("heartbeat: no port")
	case o.Interval < detector.MinInterval:
		return fmt.Errorf("heartbeat: an interval of %v: give %v or more", o.Interval, detector.MinInterval)
	case o.Judge == nil || o.Log == nil:
		return errors.New("heartbeat: no judge, or no log")
	}
	return nil
}

// Interface is one over which heartbeats go.
type Interface struct {
	Index   int
	Name    string
	Network uint16
	// IPv4 and IPv6 tell whether it has an address of the family.
	IPv4, IPv6 bool
}

// Target is where the heartbeats of a path go.
type Target struct {
	detector.Path
	Interface int // index of ours
	// Remote is the peer's address, without a zone.
	Remote netip.Addr
}

// Counters count datagrams that are of no path.
type Counters struct {
	Forged, Foreign, Malformed, Misplaced, Unknown uint64
	// LateTicks is how often the thread or the kernel came late; Unsent are beats that the kernel would not take.
	LateTicks, Unsent uint64
}

// Heart beats until it is closed.
type Heart struct {
	o        Options
	key      beat.Key
	probeKey beat.Key
	ns       *netns.Namespace
	ending   atomic.Bool
	done     chan struct{}

	setting sync.Mutex // one Set at a time: guards attached
	// attached has the networks of the interfaces on which the kernel stamps.
	attached map[int]uint16

	mu         sync.Mutex // guards all below
	sockets    map[door]*socket
	paths      []*path // in the order of Set
	byPath     map[detector.Path]*path
	retired    map[detector.Path]uint64 // the last sequence numbers of paths that are gone
	kept       map[kernel.Path]bool     // stamped by the kernel
	counters   Counters
	drained    time.Duration // when the sockets were empty last
	lateTick   time.Duration // the kernel's latest, as known
	kernelTick time.Duration // the kernel's last, as known
	share      int
	probes     map[uint64]chan struct{} // that wait for an answer, by nonce
	nonce      uint64                   // of probes, and of notices
	notices    map[uint16]uint64        // the last one of each peer
	gone       []detector.Gone          // for the next tick
	buffer     []byte
	oob        []byte
	scratch    []kernel.Stamp
	stamps     []kernel.Stamp // the thread's own, for the judge
}

// door is what a datagram came in by.
type door struct {
	index  int
	family detector.Family
}

// Start begins to tick, with no path yet.
func Start(o Options) (*Heart, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	ns, err := netns.Current()
	if err != nil {
		return nil, fmt.Errorf("heartbeat: %w", err)
	}
	h := &Heart{
		o: o, key: beat.NewKey(o.Key), probeKey: probeKey(o.Key), ns: ns, done: make(chan struct{}), attached: map[int]uint16{},
		sockets: map[door]*socket{}, byPath: map[detector.Path]*path{}, retired: map[detector.Path]uint64{}, kept: map[kernel.Path]bool{},
		probes: map[uint64]chan struct{}{}, notices: map[uint16]uint64{}, buffer: make([]byte, maxDatagram), oob: make([]byte, 128),
	}
	go h.run()
	return h, nil
}

// Close stops the thread, waits, and closes the sockets.
func (h *Heart) Close() error {
	h.ending.Store(true)
	<-h.done
	h.setting.Lock()
	defer h.setting.Unlock()
	h.mu.Lock()
	defer h.mu.Unlock()
	var errs []error
	for at, s := range h.sockets {
		errs = append(errs, s.close())
		delete(h.sockets, at)
	}
	for index := range h.attached {
		errs = append(errs, h.o.Kernel.Detach(index))
		delete(h.attached, index)
	}
	return errors.Join(append(errs, h.ns.Close())...)
}

// Stamps appends what is known of all paths, the kernel's word where it has one.
func (h *Heart) Stamps(to []kernel.Stamp) []kernel.Stamp {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, p := range h.paths {
		if !h.kept[p.stamp.Path] {
			to = append(to, p.stamp)
		}
	}
	if h.o.Kernel == nil {
		return to
	}
	h.scratch = h.o.Kernel.Stamps(h.scratch[:0])
	for i := range h.scratch {
		if s := &h.scratch[i]; h.kept[s.Path] {
			to = append(to, *s)
		}
	}
	return to
}

// Remote is where heartbeats of the path go now: as told, or where the peer's came from when nothing answered there.
func (h *Heart) Remote(p detector.Path) netip.Addr {
	h.mu.Lock()
	defer h.mu.Unlock()
	if way := h.byPath[p]; way != nil {
		return way.remote
	}
	return netip.Addr{}
}

// Counters are those of the sockets and of the kernel together.
func (h *Heart) Counters() Counters {
	h.mu.Lock()
	defer h.mu.Unlock()
	c := h.counters
	if h.o.Kernel != nil {
		n := h.o.Kernel.Node()
		c.Forged, c.Malformed, c.Misplaced = c.Forged+n.Forged, c.Malformed+n.Malformed, c.Misplaced+n.Misplaced
		c.LateTicks += n.LateTicks // what is foreign or unknown to the kernel is passed on, and counted by the sockets
	}
	return c
}

func kernelPath(p detector.Path) kernel.Path {
	return kernel.Path{Peer: p.Peer, Network: p.Network, Family: kernel.Family(p.Family)}
}

func detectorPath(p kernel.Path) detector.Path {
	return detector.Path{Peer: p.Peer, Network: p.Network, Family: detector.Family(p.Family)}
}

// Judged is what the detector needs of a stamp. What was never confirmed by an answer may be a recording.
func Judged(s *kernel.Stamp) detector.Stamp {
	out := detector.Stamp{Path: detectorPath(s.Path), Gaps: s.Gaps - min(s.Reordered, s.Gaps)}
	if s.Confirmed {
		out.Seen, out.Heard = max(s.LastBeat, s.LastAnswer), s.LastAnswer
		out.Daemon, out.Incarnation = s.Daemon, s.Incarnation
	}
	return out
}
