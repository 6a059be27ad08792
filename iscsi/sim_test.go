package iscsi

import (
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"lunar/iscsi/pdu"
	"lunar/iscsi/scsi"
)

var (
	simSeed  = flag.Uint64("seed", 0, "replay this seed of TestSimulation alone")
	simSeeds = flag.Uint64("seeds", 300, "seeds that TestSimulation runs")
)

// TestSimulation runs a whole server, its host replaced by a deterministic one, against model initiators;
// one seed decides everything that happens. Time is the bubble's.
func TestSimulation(t *testing.T) {
	if *simSeed != 0 {
		simulate(t, *simSeed)
		return
	}
	for seed := uint64(1); seed <= *simSeeds && !t.Failed(); seed++ {
		simulate(t, seed)
	}
}

// TestSimulationReplays: a seed that fails has to fail again.
func TestSimulationReplays(t *testing.T) {
	for seed := uint64(1); seed <= 10; seed++ {
		a, b := runSeed(t, seed, true), runSeed(t, seed, true)
		for i := range min(len(a.trace), len(b.trace)) {
			if a.trace[i] != b.trace[i] {
				t.Fatalf("seed %d, line %d: %s, then %s", seed, i, a.trace[i], b.trace[i])
			}
		}
	}
}

func simulate(t *testing.T, seed uint64) {
	w := runSeed(t, seed, false)
	if w.failure == nil {
		return
	}
	again := runSeed(t, seed, true)
	t.Errorf("%s\nseed %d: %v\nreplay with -run TestSimulation$ -seed %d", again.tail(), seed, w.failure, seed)
}

func runSeed(t *testing.T, seed uint64, tracing bool) (w *world) {
	synctest.Test(t, func(t *testing.T) {
		w = newWorld(t, seed, tracing)
		defer func() {
			if p := recover(); p != nil {
				w.fail("NoPanic", "%v\n%s", p, debug.Stack())
			}
		}()
		for range simRounds {
			w.chaos()
			w.settleDown()
		}
		w.end()
	})
	return w
}

const (
	simRounds = 2
	simSteps  = 350 // of chaos in a round
	simTick   = 250 * time.Millisecond
	simTicks  = 8 // in chaos at most: less than what makes the target give an initiator up
	simLUNs   = 2
	simPorts  = 4
	simTail   = 400 // lines of the trace that a failure shows
)

// world is everything there is.
type world struct {
	rnd     *rand.Rand
	failure error
	tracing bool
	trace   []string

	server  *Server
	options Options
	target  *scsi.Target
	units   []*scsi.LogicalUnit
	portal  *portal
	lanes   []*simLane
	sockets []*simSocket
	pool    *simPool
	disks   []*simDisk
	ports   []*simPort
	conns   []*simConn // that the target may know of yet
	tasks   []*simTask

	clock    int // of commands' beginnings and ends
	order    int // of requests
	commands uint32
	writes   map[uint32]*simCommand
	history  [][][]*simCommand // writes by LUN and block, as issued

	slow      bool // no backend call ends
	faulty    bool // backend calls fail
	wasFaulty bool
	tight     bool // the pool has been limited
	remapped  bool // a LUN has been away
	mutes     bool // initiators may fall silent
	cold      bool // a cold reset may end any session
	leaving   bool // the target asks everyone to log out
	ticks     int
}

func newWorld(t *testing.T, seed uint64, tracing bool) *world {
	w := &world{rnd: rand.New(rand.NewPCG(seed, 0x15c51)), tracing: tracing, writes: map[uint32]*simCommand{}}
	w.pool = newSimPool(w)
	w.options = w.drawOptions()
	s, err := New(w.options)
	if err != nil {
		t.Fatal(err)
	}
	w.server = s
	if w.rnd.IntN(3) == 0 {
		s.opts.ConnectionBytes, w.tight = 32<<10, true // Validate wants more
	}
	w.portal = &portal{Portal: Portal{Group: 1, Advertise: "target:3260"}, server: s}
	s.portals.Store(&[]*portal{w.portal})
	w.target = scsi.NewTarget(testTarget, scsi.TargetOptions{Buffers: w.pool, Post: func(lane int, fn func()) error { return w.lanes[lane].Post(fn) }})
	for lun := range simLUNs {
		d := &simDisk{world: w, lun: lun, data: make([]byte, simBlocks*512)}
		lu, err := scsi.NewLogicalUnit(d, scsi.UnitOptions{NAA: []byte("\x61lunar-test-000" + fmt.Sprint(lun)), Serial: fmt.Sprint(lun)})
		if err != nil {
			t.Fatal(err)
		}
		w.disks, w.units = append(w.disks, d), append(w.units, lu)
		w.history = append(w.history, make([][]*simCommand, simBlocks))
		if err := w.target.Map(uint16(lun), lu); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.AddTarget(Export{Name: testTarget, Target: w.target}); err != nil {
		t.Fatal(err)
	}
	for i := range simPorts { // two initiators with two ports each
		w.ports = append(w.ports, &simPort{index: i, name: testInitiator + fmt.Sprint(i/2), isid: [6]byte{0x80, 0, 0, 0, 0, byte(i % 2)}})
	}
	w.stock()
	w.mutes = w.rnd.IntN(4) == 0
	return w
}

func (w *world) drawOptions() Options {
	for i := range 1 + w.rnd.IntN(2) {
		w.lanes = append(w.lanes, &simLane{world: w, index: i})
	}
	o := Options{
		Buffers: w.pool, Log: slog.New(slog.DiscardHandler),
		QueueDepth: pickOne(w.rnd, 1, 2, 4, 8, 32), ReceiveBuffer: pickOne(w.rnd, 4<<10, 16<<10, 64<<10),
		MaxRecvData: pickOne(w.rnd, 512, 4096, 16<<10, 64<<10), MaxBurst: pickOne(w.rnd, 1024, 16<<10, 64<<10), MaxR2T: pickOne(w.rnd, 1, 4, 8),
		IdleTime: time.Second, StallTime: 3 * time.Second, LoginTime: 6 * time.Second, LogoutTime: time.Second,
	}
	o.LendMin, o.LendBytes = pickOne(w.rnd, 512, 4096), pickOne(w.rnd, lendSize-1, 2*lendSize, 128<<20)
	o.FirstBurst = pickOne(w.rnd, 512, 1024, o.MaxBurst)
	for _, l := range w.lanes {
		o.Lanes = append(o.Lanes, l)
	}
	if w.tracing {
		o.Log = slog.New(slog.NewTextHandler(traceWriter{w}, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	return o
}

func pickOne[T any](r *rand.Rand, list ...T) T { return list[r.IntN(len(list))] }

// fail keeps the first violation.
func (w *world) fail(name, format string, args ...any) {
	if w.failure == nil {
		w.failure = fmt.Errorf("%s: "+format, append([]any{name}, args...)...)
		w.log("FAILED %v", w.failure)
	}
}

func (w *world) log(format string, args ...any) {
	if w.tracing {
		w.trace = append(w.trace, fmt.Sprintf(format, args...))
	}
}

// traceWriter puts the server's log into the trace.
type traceWriter struct{ world *world }

func (t traceWriter) Write(p []byte) (int, error) {
	_, line, _ := strings.Cut(string(p), "level=")
	t.world.log("  server: %s", strings.TrimSpace(line))
	return len(p), nil
}

func (w *world) tail() string {
	return strings.Join(w.trace[max(0, len(w.trace)-simTail):], "\n")
}

func (c *simConn) String() string {
	return fmt.Sprintf("port %d socket %d", c.port.index, c.sock.number)
}

func (w *world) uses(p []byte) bool {
	for _, l := range w.lanes {
		for _, f := range l.flights {
			if overlap(f.p, p) {
				return true
			}
		}
	}
	return slices.ContainsFunc(w.sockets, func(s *simSocket) bool { return s.uses(p) })
}

// closedByTarget: an initiator that did no wrong keeps its connection.
func (w *world) closedByTarget(s *simSocket) {
	for _, c := range w.conns {
		if refused := c.phase == simLogin && c.mayRefuse != nil; c.sock == s && !c.doomed && !refused && !w.cold {
			w.fail("ConnectionKept", "%v was closed", c)
		}
	}
}

// dial opens a connection for a port and sends its login.
func (w *world) dial(p *simPort) {
	n := len(w.sockets)
	s := &simSocket{world: w, number: n, rnd: rand.New(rand.NewPCG(w.rnd.Uint64(), 1)), room: pickOne(w.rnd, 600, 16<<10, 1<<20), lends: w.rnd.IntN(4) > 0}
	w.sockets = append(w.sockets, s)
	c := &simConn{
		world: w, port: p, sock: s, recvMax: pdu.DefaultMaxData, nops: map[uint32][]byte{}, texts: map[uint32]bool{},
		rejects: map[pdu.Header][]simReject{}, cmdSN: pickOne[uint32](w.rnd, 1, 0xfffffff0, 0x7ffffff8), statSN: pickOne[uint32](w.rnd, 0, 0xfffffff8),
	}
	c.wire = client{isid: p.isid, name: p.name, cmdSN: c.cmdSN}
	c.exp, c.last = c.cmdSN, c.cmdSN-1
	if old := p.conn; old != nil {
		old.doomed = true
		if old.tsih != 0 && w.rnd.IntN(3) == 0 {
			c.wire.tsih, c.mayRefuse = old.tsih, []pdu.LoginStatus{pdu.LoginNoSession, pdu.LoginSuccess}
		}
	}
	p.conn = c
	w.conns = append(w.conns, c)
	addr := &net.TCPAddr{IP: net.IPv4(10, 0, 0, byte(p.index)), Port: 1024 + n}
	w.server.admit(w.portal, simDescriptor+n, addr, &net.TCPAddr{IP: net.IPv4(10, 0, 1, 1), Port: 3260})
	c.startLogin()
}

// entered: a port's older sessions are over when a new one begins, their commands too.
func (w *world) entered(c *simConn) {
	for _, old := range w.conns {
		if old.port != c.port || old.sock.number >= c.sock.number {
			continue
		}
		if !old.sock.closing {
			c.fail("Reinstated", "%v is open", old)
		}
		w.bury(old)
		old.over()
	}
}

// bury ends the commands of a session that is gone.
func (w *world) bury(c *simConn) {
	for _, cmd := range slices.Clone(c.open) {
		cmd.settle(false)
	}
}

// mayDial tells whether a login of the port can only meet sessions that are older than itself.
func (p *simPort) mayDial() bool {
	c := p.conn
	return c == nil || c.phase == simFull || c.tsih != 0 || c.sock.gone
}

// chaos lets everything happen in any order.
func (w *world) chaos() {
	w.ticks = 0
	for range simSteps {
		if w.failure != nil {
			return
		}
		switch k := w.rnd.IntN(100); {
		case k < 35:
			w.lanes[w.rnd.IntN(len(w.lanes))].run(1 + w.rnd.IntN(6))
		case k < 82:
			w.act(w.ports[w.rnd.IntN(len(w.ports))])
		case k < 94:
			w.receive(w.conns)
		default:
			w.weather()
		}
	}
}

func (w *world) act(p *simPort) {
	c := p.conn
	switch {
	case c == nil || c.phase == simOver || w.rnd.IntN(150) == 0:
		if p.mayDial() && !w.leaving {
			w.dial(p)
		}
	case c.phase == simLogin && w.rnd.IntN(40) == 0:
		c.severe()
	case c.phase == simFull && !c.mute && !c.fatal:
		simActions[w.rnd.IntN(len(simActions))](c)
	}
}

func (w *world) receive(conns []*simConn) {
	for _, c := range conns {
		if !c.mute {
			c.read(pickOne(w.rnd, 1, 48, 700, 1<<20))
		}
	}
}

// weather is what neither side decides.
func (w *world) weather() {
	switch w.rnd.IntN(8) {
	case 0:
		if w.ticks++; w.ticks <= simTicks {
			w.tick()
		}
	case 1, 2:
		w.slow = w.rnd.IntN(3) > 0
	case 3:
		w.faulty = w.rnd.IntN(4) == 0
		w.wasFaulty = w.wasFaulty || w.faulty
	case 4, 5:
		w.pool.limit = pickOne(w.rnd, 0, 512, 4<<10, 40<<10, noPoolLimit, noPoolLimit)
		w.tight = w.tight || w.pool.limit != noPoolLimit
	case 6:
		w.remap(w.rnd.IntN(simLUNs))
	case 7:
		w.slow = false
	}
}

func (w *world) tick() {
	time.Sleep(simTick)
	w.log("tick")
	for _, l := range w.lanes {
		l.tick(time.Now())
	}
}

// remap takes a LUN away or brings it back.
func (w *world) remap(lun int) {
	w.remapped = true
	w.log("remap LUN %d", lun)
	if err := w.target.Unmap(uint16(lun)); err != nil {
		if err := w.target.Map(uint16(lun), w.units[lun]); err != nil {
			w.fail("Remap", "%v", err)
		}
	}
}

// settleDown delivers all that is under way: then everything has to have ended.
func (w *world) settleDown() {
	w.slow, w.faulty, w.pool.limit = false, false, noPoolLimit
	for quiet := 0; quiet < 3 && w.failure == nil; {
		if w.ticks++; w.ticks > 60 {
			break
		}
		w.exhaust()
		w.checkWindows()
		if quiet++; w.busy() {
			quiet = 0
		}
		w.tick()
	}
	if w.exhaust(); w.failure == nil {
		w.checkQuiet()
	}
}

// exhaust goes on until nothing moves.
func (w *world) exhaust() {
	for idle := 0; idle < 12 && w.failure == nil; idle++ {
		for _, l := range w.lanes {
			if l.run(8) {
				idle = 0
			}
		}
		for _, c := range w.conns {
			if c.mute {
				c.noticeGone()
				continue
			}
			if len(c.sock.toInitiator) > 0 {
				idle = 0
			}
			c.read(1 << 20)
			if c.phase == simFull && !c.fatal {
				c.work()
			}
		}
		w.conns = slices.DeleteFunc(w.conns, func(c *simConn) bool { return c.phase == simOver && c.sock.gone })
	}
}

// busy tells whether an initiator still waits for something.
func (w *world) busy() bool {
	return slices.ContainsFunc(w.conns, func(c *simConn) bool {
		waits := slices.ContainsFunc(c.open, func(cmd *simCommand) bool { return !cmd.vanish })
		return c.fatal || c.mute || c.phase != simFull || waits || len(c.held)+len(c.lost)+len(c.nops)+len(c.texts) > 0 || c.logout
	}) || slices.ContainsFunc(w.tasks, func(t *simTask) bool { return t.conn.phase != simOver })
}
