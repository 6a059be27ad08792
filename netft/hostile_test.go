package netft

import (
	"bytes"
	"encoding/binary"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lunar/netft/detector"
)

// intruder sits in the switch: it sees what node 2 sends over netA, and sends to node 1 what it likes.
type intruder struct {
	t       *testing.T
	in, out int // packet sockets on the ports of node 2 and of node 1
	done    chan struct{}
	wg      sync.WaitGroup

	mu       sync.Mutex // guards all below
	treat    func(frame []byte)
	recorded [][]byte
	paused   map[detector.Family][]byte // beats that wait for the next one
}

func newIntruder(t *testing.T, l *lab) *intruder {
	t.Helper()
	x := &intruder{t: t, done: make(chan struct{}), paused: map[detector.Family][]byte{}}
	x.in, x.out = x.tap(l, port(2, 0)), x.tap(l, port(1, 0))
	if err := unix.SetsockoptTimeval(x.in, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50_000}); err != nil {
		t.Fatal(err)
	}
	x.wg.Add(1)
	go x.run()
	t.Cleanup(func() {
		close(x.done)
		x.wg.Wait()
		_, _ = unix.Close(x.in), unix.Close(x.out)
	})
	return x
}

func (x *intruder) tap(l *lab, name string) (fd int) {
	x.t.Helper()
	index := l.hub.Link(name)
	l.hub.Must(func() (err error) {
		const all = unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, all); err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: index})
	})
	return fd
}

func (x *intruder) run() {
	defer x.wg.Done()
	b := make([]byte, 2048)
	for {
		select {
		case <-x.done:
			return
		default:
		}
		n, from, err := unix.Recvfrom(x.in, b, 0)
		link, ok := from.(*unix.SockaddrLinklayer)
		if err != nil || !ok || link.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		x.saw(bytes.Clone(b[:n]))
	}
}

// saw treats heartbeats only.
func (x *intruder) saw(frame []byte) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if !bytes.Contains(frame, []byte("LNHB")) {
		return
	}
	x.recorded = append(x.recorded, frame)
	if x.treat != nil {
		x.treat(frame)
	}
}

func (x *intruder) set(treat func(frame []byte)) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.treat = treat
}

func (x *intruder) send(frame []byte) {
	sum(frame)
	_, _ = unix.Write(x.out, frame)
}

// family is the one of the frame's packet, and where its UDP header begins.
func family(frame []byte) (f detector.Family, udp int) {
	if frame[12] == 8 {
		return detector.IPv4, 14 + 20
	}
	return detector.IPv6, 14 + 40
}

// sum fills the UDP checksum, which a virtual card leaves to the next one.
func sum(frame []byte) {
	f, udp := family(frame)
	b := frame[udp:]
	b[6], b[7] = 0, 0
	if f == detector.IPv4 {
		return // none
	}
	total := uint32(len(b)) + unix.IPPROTO_UDP
	for _, part := range [][]byte{frame[udp-32 : udp], b} {
		for i := 0; i+1 < len(part); i += 2 {
			total += uint32(part[i])<<8 | uint32(part[i+1])
		}
	}
	for total>>16 != 0 {
		total = total>>16 + total&0xffff
	}
	binary.BigEndian.PutUint16(b[6:], ^uint16(total))
}

// isBeat tells a beat from an answer.
func isBeat(frame []byte) bool {
	_, udp := family(frame)
	return frame[udp+8+5] == 1
}

// forge changes the heartbeat's sequence.
func forge(frame []byte) []byte {
	b := bytes.Clone(frame)
	at := bytes.Index(b, []byte("LNHB")) + 32 // the sequence
	b[at]++
	return b
}

func (x *intruder) replayAll() {
	x.mu.Lock()
	frames := x.recorded
	x.mu.Unlock()
	for _, f := range frames {
		x.send(f)
	}
}

// totals adds what node 1 counted on its paths to node 2.
func totals(n *labNode) (s PathStats) {
	for _, p := range n.fabric.Paths() {
		s.Duplicates += p.Duplicates
		s.Reordered += p.Reordered
		s.Replayed += p.Replayed
		s.Unsolicited += p.Unsolicited
	}
	return s
}

// TestHostileNetwork sends copies, late ones, forged ones and recordings: no verdict comes of it, and a node that dies
// is lost in time though its recordings go on.
func TestHostileNetwork(t *testing.T) {
	both(t, func(t *testing.T, o Options) {
		l := newLab(t, 2, 1)
		a, b := l.nodes[0], l.nodes[1]
		l.start(o)
		l.healthy(1)
		a.forget()
		x := newIntruder(t, l)
		x.set(func(frame []byte) { x.send(frame); x.send(forge(frame)) })
		until(t, 20*time.Second, "copies and forged ones counted", func() bool {
			return totals(a).Duplicates > 10 && a.fabric.Counters().Forged > 10
		})
		// From now on the switch delivers nothing itself: the intruder does, each pair of beats in the wrong order.
		x.set(func(frame []byte) {
			f, _ := family(frame)
			switch held := x.paused[f]; {
			case !isBeat(frame):
				x.send(frame)
			case held == nil:
				x.paused[f] = frame
			default:
				x.send(frame)
				x.send(held)
				x.paused[f] = nil
			}
		})
		l.deaf(a, 0, true)
		until(t, 20*time.Second, "reordered ones counted", func() bool { return totals(a).Reordered > 3 })
		l.deaf(a, 0, false)
		x.set(nil)
		if got := a.count(detector.NodeRestarted); got != 0 {
			t.Errorf("%d restarts of a node that goes on", got)
		}
		l.blameless()
		a.forget()
		before := totals(a)
		b.stop()
		died := time.Now()
		until(t, 5*time.Second, "node lost", func() bool { x.replayAll(); return a.count(detector.NodeLost) == 1 })
		took, limit := time.Since(died), o.Profile.Threshold()+o.Profile.Period
		t.Logf("lost after %v, threshold %v", took, o.Profile.Threshold())
		if took > limit+5*time.Second { // of a busy machine
			t.Errorf("lost after %v, want at most %v", took, limit)
		}
		x.replayAll()
		until(t, 5*time.Second, "recordings counted", func() bool {
			now := totals(a)
			return now.Duplicates+now.Replayed+now.Unsolicited > before.Duplicates+before.Replayed+before.Unsolicited+10
		})
		if a.count(detector.NodeAlive) != 0 {
			t.Error("recordings brought the dead node back")
		}
	})
}

// TestFlapping plugs a network in and out: traffic stays on the other one until it has been calm for a while.
func TestFlapping(t *testing.T) {
	l := newLab(t, 3, 2)
	a := l.nodes[0]
	l.start(Options{Profile: detector.Fast(), BPF: true})
	l.healthy(2)
	until(t, 5*time.Second, "routes over netA", func() bool { return a.via(2) == "netA" && a.via(3) == "netA" })
	s := newStream(t, a, l.nodes[1])
	s.flows()
	s.turn()
	moves, last := 0, "netA"
	for range 5 {
		for _, cut := range []bool{true, false} {
			l.deaf(l.nodes[1], 0, cut)
			for end := time.Now().Add(300 * time.Millisecond); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
				if via := a.via(2); via != last {
					moves, last = moves+1, via
				}
			}
		}
		if via := a.via(3); via != "netA" {
			t.Errorf("traffic to the third node goes over %s", via)
		}
	}
	_, stall := s.turn()
	t.Logf("5 cuts of 300 ms: %d moves of the route, the connection waited %v at most", moves, stall)
	if moves > 8 { // 10 if each cut moved it both ways
		t.Errorf("the route moved %d times", moves)
	}
	until(t, 20*time.Second, "back on netA", func() bool { return a.via(2) == "netA" })
	l.blameless()
}
