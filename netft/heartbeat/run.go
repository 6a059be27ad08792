package heartbeat

import (
	"errors"
	"net/netip"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	kernel "lunar/bpf/heartbeat"
	"lunar/netft/beat"
	"lunar/netft/detector"
)

// run is the thread. It sleeps in the kernel and not by a timer of the runtime, whose threads have no priority.
func (h *Heart) run() {
	defer close(h.done)
	runtime.LockOSThread() // and never unlocked: a thread with a priority of its own ends with its goroutine
	h.hurry()
	tick := h.o.Interval / shares
	next := Now()
	for !h.ending.Load() {
		if now := Now(); next < now-tick {
			next = now // late: no burst to catch up
		}
		next += tick
		sleepUntil(next)
		if h.ending.Load() {
			return
		}
		h.noteLate(Now() - next)
		t := h.tick()
		h.stamps = h.Stamps(h.stamps[:0])
		h.learnKept(h.stamps)
		h.o.Judge(t, h.stamps)
	}
}

// noteLate counts a tick that came so late that the detector gives grace for it.
func (h *Heart) noteLate(by time.Duration) {
	if by <= h.o.Interval/2 {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.counters.LateTicks++
}

func sleepUntil(t time.Duration) {
	ts := unix.NsecToTimespec(int64(t))
	for unix.ClockNanosleep(unix.CLOCK_MONOTONIC, unix.TIMER_ABSTIME, &ts, nil) == unix.EINTR {
		continue
	}
}

// hurry asks for the lowest real-time priority, which is above every ordinary thread, else for a better nice value.
func (h *Heart) hurry() {
	err := unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 1, Flags: unix.SCHED_FLAG_RESET_ON_FORK}, 0)
	if err == nil {
		return
	}
	if nice := unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), -15); nice == nil {
		h.o.Log.Info("heartbeats go out at a better nice value, not at a real-time priority", "error", os.NewSyscallError("sched_setattr", err))
		return
	}
	h.o.Log.Warn("heartbeats go out at an ordinary priority: on a busy machine some may be late", "error", os.NewSyscallError("sched_setattr", err))
}

// tick reads, beats, and tells the moment.
func (h *Heart) tick() detector.Tick {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.drain()
	h.beat()
	t := detector.Tick{Now: Now(), Kernel: h.o.Kernel != nil && len(h.kept) == len(h.paths)}
	if t.Kernel {
		t.Blind = h.kernelBlind()
	}
	t.Gone, h.gone = h.gone, nil
	return t
}

// kernelBlind is the latest span in which the kernel stood still, once.
func (h *Heart) kernelBlind() detector.Span {
	n, before := h.o.Kernel.Node(), h.kernelTick
	h.kernelTick = n.LastTick
	if n.LateTick == 0 || n.LateTick == h.lateTick {
		return detector.Span{}
	}
	h.lateTick = n.LateTick
	return detector.Span{From: max(n.LateTick-n.MaxLate, before), To: n.LateTick}
}

// beat sends a share of the beats.
func (h *Heart) beat() {
	h.share = (h.share + 1) % shares
	var b [beat.Size]byte
	for i := h.share; i < len(h.paths); i += shares {
		p := h.paths[i]
		s := h.sockets[door{p.index, detector.Family(p.stamp.Family)}]
		if s == nil || !p.remote.IsValid() {
			continue
		}
		now := Now()
		m := p.next(h, now)
		h.key.Seal(&b, &m)
		if err := s.send(b[:], p.destination(h.o.Port)); err != nil {
			h.counters.Unsent++
			continue
		}
		p.stamp.Sent++
		p.stamp.LastSent = now
	}
}

// drain reads all that the sockets hold. What came, came after they were empty last: so no jump of CLOCK_REALTIME,
// in which the kernel stamps, can put it further off.
func (h *Heart) drain() {
	now := Now()
	offset := readClock(unix.CLOCK_REALTIME) - now
	for _, s := range h.sockets {
		for range maxDrain {
			n, from, came, err := s.receive(h.buffer, h.oob)
			if err != nil {
				break // empty; or an error that an earlier beat met, such as a port unreachable
			}
			at := now
			if came != 0 {
				at = min(max(came-offset, h.drained), now)
			}
			h.take(s, h.buffer[:n], from, at)
		}
	}
	h.drained = now
}

// take is for one datagram.
func (h *Heart) take(s *socket, b []byte, from netip.Addr, at time.Duration) {
	if len(b) > beat.Size {
		h.takeProbe(s, b, from)
		return
	}
	var m beat.Message
	if err := h.key.Open(b, &m); err != nil {
		h.refuse(err)
		return
	}
	if m.To != h.o.Number {
		h.counters.Foreign++
		return
	}
	if m.Network != s.network || detector.Family(m.Family) != s.family {
		h.counters.Misplaced++
		return
	}
	p := h.byPath[detector.Path{Peer: m.From, Network: m.Network, Family: s.family}]
	if p == nil {
		h.counters.Unknown++
		return
	}
	if m.Kind == beat.Answer {
		p.takeAnswer(&m, at)
		return
	}
	if !p.takeBeat(&m, at) {
		return
	}
	h.learn(p, from, p.stamp.LastAnswer)
	h.answer(s, &m, from, at)
}

// learn has a path go to where its peer's beats come from, if nothing was answered for a while where it goes now.
func (h *Heart) learn(p *path, from netip.Addr, answered time.Duration) {
	if !p.learns(from, answered, Now(), 4*h.o.Interval) {
		return
	}
	h.o.Log.Info("a peer's heartbeats come from another address", "node", p.stamp.Peer, "network", p.stamp.Network, "address", from, "before", p.remote)
	p.point(from)
}

// learnKept does the same for the paths whose beats the kernel keeps.
func (h *Heart) learnKept(stamps []kernel.Stamp) {
	if h.o.Kernel == nil {
		return
	}
	now := Now()
	h.mu.Lock()
	defer h.mu.Unlock()
	for i := range stamps {
		s := &stamps[i]
		if now-s.LastAnswer <= 4*h.o.Interval || now-s.LastBeat > 4*h.o.Interval || !h.kept[s.Path] {
			continue
		}
		if p := h.byPath[detectorPath(s.Path)]; p != nil {
			h.learn(p, s.Source, s.LastAnswer)
		}
	}
}

func (h *Heart) refuse(err error) {
	switch {
	case errors.Is(err, beat.ErrForged):
		h.counters.Forged++
	case errors.Is(err, beat.ErrContent):
		h.counters.Malformed++
	default:
		h.counters.Foreign++
	}
}

// answer goes back to where the beat came from. Its age is 0, as the daemon itself makes it.
func (h *Heart) answer(s *socket, m *beat.Message, to netip.Addr, came time.Duration) {
	now := Now()
	answer := beat.Message{
		Kind: beat.Answer, From: h.o.Number, To: m.From, Network: m.Network, Family: m.Family, Age: beat.AgeOf(0),
		Incarnation: h.o.Incarnation, Sequence: m.Sequence, Sent: uint64(now), Echo: m.Sent, Hold: uint64(now - came),
	}
	var b [beat.Size]byte
	h.key.Seal(&b, &answer)
	if s.send(b[:], sockaddr(to, s.index, h.o.Port)) != nil {
		h.counters.Unsent++
	}
}
