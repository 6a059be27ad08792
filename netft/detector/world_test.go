package detector

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"time"
)

// world is a simulated observer and its peers, with the truth about both. One seed gives one history.
type world struct {
	r       *rand.Rand
	profile Profile
	d       *Detector
	kernel  bool // stamps are made by the observer's kernel, not by its process
	answers bool // peers' kernels answer for their daemons
	buffer  int  // datagrams that the observer's socket keeps, without kernel
	tick    time.Duration
	now     time.Duration
	end     time.Duration
	calm    time.Duration // no fault after it
	peers   []*node
	links   []*link
	byPath  map[Path]*link
	queue   queue
	serial  int
	waiting int // datagrams in the socket's buffer

	stopped, frozen, busy time.Duration // the observer's process, its kernel, its slow ticks, until then
	lateMin, lateMax      time.Duration // of a slow tick
	lastTick              time.Duration
	lastLate, lateFrom    time.Duration // latest tick that was late, and the first of its row
	blind                 []Span
	reported              int // of blind, by the kernel
	tally                 map[string]int
	log                   func(string, ...any)
}

// node is a peer and the truth about it.
type node struct {
	number      uint16
	incarnation uint64
	dead        bool
	diedAt      time.Duration // the first time
	alive       time.Duration // by the detector's word, the first time
	stalled     time.Duration // its daemon, until then
	stalledAt   time.Duration
	recorded    time.Duration // something of it was stamped
	due         time.Duration // observed silence reached the threshold then
	lost        bool          // by the detector's word
	stall       bool          // by the detector's word
	restarts    int
	told        int // restarts that the detector told of
}

// link is a path and what the network does to it.
type link struct {
	Path
	owner            *node
	loss             float64
	cutIn, cutOut    bool
	removed, down    bool
	in, out          time.Duration // clean since, per direction; 0: is not
	duplicate        float64
	slow             time.Duration // reordering
	seq, top         uint64
	heard            time.Duration
	seen             time.Duration
	daemon           time.Duration
	inc              uint64
	held             []stampNews
	lastFresh, gapAt time.Duration // of what was stamped in both directions
	state            State
	since            time.Duration // the path is watched
}

type stampNews struct {
	at, daemon time.Duration
	answer     bool
	inc, seq   uint64
}

type eventKind uint8

const (
	evPeerBeat eventKind = iota
	evBeat
	evArrive // at the observer
	evAsked  // a beat of ours at the peer
	evTick
	evFault
)

type event struct {
	at     time.Duration
	serial int
	kind   eventKind
	link   *link
	news   stampNews
	do     func()
}

type queue []event

func (q queue) less(i, j int) bool {
	return q[i].at < q[j].at || q[i].at == q[j].at && q[i].serial < q[j].serial
}

func (q *queue) push(e event) {
	*q = append(*q, e)
	h := *q
	for i := len(h) - 1; i > 0 && h.less(i, (i-1)/2); i = (i - 1) / 2 {
		h[i], h[(i-1)/2] = h[(i-1)/2], h[i]
	}
}

func (q *queue) pop() event {
	h := *q
	first, n := h[0], len(h)-1
	h[0] = h[n]
	h = h[:n]
	for i := 0; ; {
		c := 2*i + 1
		if c >= n {
			break
		}
		if c+1 < n && h.less(c+1, c) {
			c++
		}
		if !h.less(c, i) {
			break
		}
		h[i], h[c] = h[c], h[i]
		i = c
	}
	*q = h
	return first
}

func newWorld(seed uint64, left rule, tally map[string]int, log func(string, ...any)) *world {
	r := rand.New(rand.NewPCG(seed, 5))
	period := time.Duration(50+r.IntN(100)) * time.Millisecond
	p := Profile{Period: period, Missed: 3 + r.IntN(6), Interval: period / time.Duration(1+r.IntN(3))}
	p.Interval = max(p.Interval, MinInterval)
	p = p.WithDefaults()
	d, err := New(Options{Profile: p})
	if err != nil {
		panic(err)
	}
	d.left = left
	w := &world{
		r: r, profile: p, d: d, kernel: r.IntN(2) == 0, answers: r.IntN(3) > 0, buffer: 20 + r.IntN(400),
		tick: p.Tick(), byPath: map[Path]*link{}, tally: tally, now: time.Hour, log: log,
	}
	w.calm = w.now + 4*p.Threshold() + 10*period
	w.end = w.calm + 2*p.RoutedThreshold() + 40*period
	w.people()
	w.plan()
	return w
}

// people makes the peers: mostly a few, now and then 64.
func (w *world) people() {
	n, networks := 1+w.r.IntN(3), 1+w.r.IntN(3)
	if w.r.IntN(100) == 0 {
		n, networks = 64, 3
		w.end, w.buffer = w.calm+w.profile.RoutedThreshold(), 1<<16
	}
	families := 1 + w.r.IntN(2)
	var numbers []uint16
	for i := range n {
		peer := &node{number: uint16(i + 2), incarnation: 100, recorded: w.now}
		w.peers = append(w.peers, peer)
		numbers = append(numbers, peer.number)
		for network := range networks {
			for f := range families {
				l := &link{Path: Path{peer.number, uint16(network + 1), Family(4 + 2*f)}, owner: peer, in: w.now, out: w.now, since: w.now}
				w.links = append(w.links, l)
				w.byPath[l.Path] = l
				w.at(w.now+w.upTo(w.profile.Interval), event{kind: evPeerBeat, link: l})
				w.at(w.now+w.upTo(w.profile.Interval), event{kind: evBeat, link: l})
			}
		}
	}
	w.d.Watch(w.now, numbers, w.watched())
	w.lastTick = w.now
	w.at(w.now+w.tick, event{kind: evTick})
}

func (w *world) watched() []Watched {
	var out []Watched
	for _, l := range w.links {
		if l.removed {
			continue
		}
		one := Watched{Path: l.Path}
		if l.down {
			one.Down = "no carrier"
		}
		out = append(out, one)
	}
	return out
}

func (w *world) upTo(d time.Duration) time.Duration { return time.Duration(w.r.Int64N(int64(d)) + 1) }

func (w *world) at(t time.Duration, e event) {
	w.serial++
	e.at, e.serial = t, w.serial
	w.queue.push(e)
}

// plan draws the faults.
func (w *world) plan() {
	for range 1 + w.r.IntN(6) {
		at := w.now + w.upTo(w.calm-w.now)
		until := min(at+w.upTo(w.profile.Threshold()*3/2), w.calm)
		if w.r.IntN(3) == 0 {
			until = w.calm
		}
		w.fault(at, until)
	}
}

func (w *world) when(t time.Duration, do func()) { w.at(t, event{kind: evFault, do: do}) }

func (w *world) fault(at, until time.Duration) {
	l, n := w.links[w.r.IntN(len(w.links))], w.peers[w.r.IntN(len(w.peers))]
	between := func(begin, end func()) { w.when(at, begin); w.when(until, end) }
	name := ""
	switch w.r.IntN(12) {
	case 0:
		name = "loss"
		loss := 0.05 + 0.4*w.r.Float64()
		between(func() { l.loss = loss; w.dirty(l) }, func() { l.loss = 0; w.clean(l) })
	case 1:
		name = "one way in"
		between(func() { l.cutIn = true; w.dirty(l) }, func() { l.cutIn = false; w.clean(l) })
	case 2:
		name = "one way out"
		between(func() { l.cutOut = true; w.dirty(l) }, func() { l.cutOut = false; w.clean(l) })
	case 3:
		name = "network cut"
		w.network(l, at, until)
	case 4:
		name = "flapping"
		for on := at; on < until; on += 2 * w.upTo(w.profile.Threshold()/2) {
			w.network(l, on, min(on+w.upTo(w.profile.Threshold()), until))
		}
	case 5:
		name = "death"
		w.when(at, func() { w.die(n) })
		if w.r.IntN(2) == 0 {
			w.when(until, func() { w.restart(n) })
		}
	case 6:
		name = "daemon stalled"
		w.when(at, func() { n.stalled, n.stalledAt = max(n.stalled, until), w.now })
	case 7:
		name = "observer stopped"
		w.when(at, func() { w.stopped = max(w.stopped, min(w.now+3*time.Second, w.calm)) })
	case 8:
		name = "observer's kernel stood still"
		w.when(at, func() { w.frozen = max(w.frozen, min(w.now+w.upTo(2*w.profile.Threshold()), w.calm)) })
	case 9:
		name = "observer busy"
		late, least := w.upTo(3*w.profile.Period), time.Duration(0)
		if w.r.IntN(2) == 0 {
			least, until = w.profile.Interval, w.calm
		}
		w.when(at, func() { w.busy, w.lateMin, w.lateMax = max(w.busy, until), least, late })
	case 10:
		name = "duplicates and reordering"
		between(func() { l.duplicate, l.slow = 0.5, w.profile.Interval }, func() { l.duplicate, l.slow = 0, 0 })
	case 11:
		name = "interface gone"
		gone := w.r.IntN(2) == 0
		between(func() { w.take(l.Network, gone, !gone) }, func() { w.take(l.Network, false, false) })
	}
	w.tally[name]++
	if w.log != nil {
		w.log("fault %s, %v to %v: %+v, node %d", name, at-time.Hour, until-time.Hour, l.Path, n.number)
	}
}

// network cuts a peer off one network, both ways and families.
func (w *world) network(like *link, at, until time.Duration) {
	set := func(cut bool) {
		for _, l := range w.links {
			if l.owner == like.owner && l.Network == like.Network {
				l.cutIn, l.cutOut = cut, cut
				if w.dirty(l); !cut {
					w.clean(l)
				}
			}
		}
	}
	w.when(at, func() { set(true) })
	w.when(until, func() { set(false) })
}

// take makes the observer's own interface go or lose its carrier; its traffic goes too.
func (w *world) take(network uint16, removed, down bool) {
	for _, l := range w.links {
		if l.Network == network {
			if l.removed && !removed {
				l.since, l.state, l.gapAt, l.lastFresh = w.now, None, 0, 0
			}
			l.removed, l.down = removed, down
			w.dirty(l)
			w.clean(l)
		}
	}
	var numbers []uint16
	for _, n := range w.peers {
		numbers = append(numbers, n.number)
	}
	w.d.Watch(w.now, numbers, w.watched())
}

func (w *world) die(n *node) {
	if !n.dead {
		n.dead = true
		n.diedAt = w.now
	}
	for _, l := range w.links {
		if l.owner == n {
			w.dirty(l)
		}
	}
}

func (w *world) restart(n *node) {
	if !n.dead {
		return
	}
	n.dead, n.incarnation, n.stalled = false, n.incarnation+1, 0
	n.restarts++
	for _, l := range w.links {
		if l.owner == n {
			l.seq = 0
			w.clean(l)
		}
	}
}

func (w *world) dirty(l *link) { l.in, l.out = 0, 0 }

func (w *world) clean(l *link) {
	if l.loss != 0 || l.cutIn || l.cutOut || l.removed || l.down || l.owner.dead {
		return
	}
	l.in, l.out = w.now, w.now
}

func (w *world) run() error {
	for w.now < w.end {
		e := w.queue.pop()
		w.now = e.at
		switch e.kind {
		case evPeerBeat:
			w.peerBeats(e.link)
		case evBeat:
			w.beat(e.link)
		case evAsked:
			w.asked(e.link)
		case evArrive:
			w.arrive(e.link, e.news)
		case evFault:
			e.do()
		case evTick:
			if err := w.judge(); err != nil {
				return fmt.Errorf("at %v: %w", w.now-time.Hour, err)
			}
		}
	}
	return w.settled()
}

func (w *world) again(e event, l *link) {
	w.at(w.now+w.profile.Interval*19/20+w.upTo(w.profile.Interval/10), event{kind: e.kind, link: l})
}

func (w *world) peerBeats(l *link) {
	w.again(event{kind: evPeerBeat}, l)
	if l.owner.dead || w.now < l.owner.stalled {
		return
	}
	l.seq++
	w.send(l, stampNews{inc: l.owner.incarnation, seq: l.seq, daemon: w.now})
}

// send carries something of the peer's to the observer.
func (w *world) send(l *link, news stampNews) {
	for range 1 + boolInt(w.r.Float64() < l.duplicate) {
		if l.cutIn || l.removed || l.down || w.r.Float64() < l.loss {
			continue
		}
		w.at(w.now+w.delay(l), event{kind: evArrive, link: l, news: news})
	}
}

func (w *world) delay(l *link) time.Duration {
	d := w.upTo(2 * time.Millisecond)
	if l.slow != 0 && w.r.IntN(3) == 0 {
		d += w.upTo(l.slow)
	}
	return d
}

// beat is one of ours. A stopped or frozen observer sends none.
func (w *world) beat(l *link) {
	w.again(event{kind: evBeat}, l)
	if w.now < w.stopped || w.now < w.frozen || l.removed || l.down || l.cutOut || w.r.Float64() < l.loss {
		return
	}
	w.at(w.now+w.delay(l), event{kind: evAsked, link: l})
}

func (w *world) asked(l *link) {
	stalled := w.now < l.owner.stalled
	if l.owner.dead || stalled && !w.answers {
		return
	}
	daemon := w.now - w.upTo(w.profile.Interval)
	if stalled {
		daemon = l.owner.stalledAt
	}
	w.send(l, stampNews{answer: true, inc: l.owner.incarnation, daemon: daemon})
}

func (w *world) arrive(l *link, news stampNews) {
	news.at = w.now
	switch {
	case w.now < w.frozen, l.removed, l.down:
	case w.kernel:
		w.stamp(l, news)
	case w.waiting < w.buffer:
		w.waiting++
		l.held = append(l.held, news)
	}
}

// stamp does what the receiver does: only what is new counts.
func (w *world) stamp(l *link, n stampNews) {
	if n.inc < l.inc || !n.answer && n.inc == l.inc && n.seq <= l.top {
		return
	}
	if n.inc > l.inc {
		l.inc, l.top = n.inc, 0
	}
	l.seen, l.daemon = max(l.seen, n.at), max(l.daemon, n.daemon)
	if n.answer {
		l.heard = max(l.heard, n.at)
	} else {
		l.top = n.seq
	}
}

func (w *world) drain() {
	for _, l := range w.links {
		for _, n := range l.held {
			w.stamp(l, n)
		}
		l.held = l.held[:0]
		if !l.removed { // an interface that goes takes what came since the last tick with it
			l.owner.recorded = max(l.owner.recorded, l.seen)
		}
	}
	w.waiting = 0
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// gone is how much of the time from from to now the observer saw nothing, by the truth.
func (w *world) gone(from time.Duration) time.Duration {
	return spans(w.blind).within(from, w.now)
}

func (w *world) stamps() []Stamp {
	out := make([]Stamp, 0, len(w.links))
	for _, l := range w.links {
		out = append(out, Stamp{Path: l.Path, Seen: l.seen, Heard: l.heard, Daemon: l.daemon, Incarnation: l.inc})
	}
	return out
}

func (w *world) find(number uint16) *node {
	return w.peers[slices.IndexFunc(w.peers, func(n *node) bool { return n.number == number })]
}
