package heartbeat

import (
	"fmt"
	"io"
	"net"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// BenchmarkProgram runs the programs by BPF_PROG_TEST_RUN. Each packet is a new beat, so each is checked, stamped and,
// at ingress, answered; a duplicate ends after the check; another packet ends at its port.
func BenchmarkProgram(b *testing.B) {
	path := Path{7, 2, IPv6}
	h := loopback(b, Options{Number: 3}, 2, path)
	seq := uint64(0)
	in := func() []byte {
		seq++
		return packet(IPv6, frame{kind: 1, from: 7, to: 3, network: 2, family: IPv6, inc: 55, seq: seq}.bytes(testKey()))
	}
	out := func() []byte {
		seq++
		return packet(IPv6, frame{kind: 1, from: 3, to: 7, network: 2, family: IPv6, inc: 55, seq: seq}.bytes(testKey()))
	}
	old := in()
	forged := in()
	forged[len(forged)-1] ^= 1
	other := packet(IPv6, make([]byte, beatSize))
	other[57] = 80
	for _, c := range []struct {
		name    string
		program *ebpf.Program
		next    func() []byte
	}{
		{"ingress/beat", h.objects.HbIngress, in},
		{"ingress/duplicate", h.objects.HbIngress, func() []byte { return old }},
		{"ingress/forged", h.objects.HbIngress, func() []byte { return forged }},
		{"ingress/other", h.objects.HbIngress, func() []byte { return other }},
		{"egress/beat", h.objects.HbEgress, out},
		{"egress/other", h.objects.HbEgress, func() []byte { return other }},
	} {
		b.Run(c.name, func(b *testing.B) {
			var costs []time.Duration
			for b.Loop() {
				_, d, err := c.program.Benchmark(c.next(), 1, nil)
				if err != nil {
					b.Fatal(err)
				}
				costs = append(costs, d)
			}
			slices.Sort(costs)
			b.ReportMetric(float64(costs[len(costs)/2]), "ns-p50/run")
			b.ReportMetric(float64(costs[len(costs)*99/100]), "ns-p99/run")
		})
	}
}

// BenchmarkTraffic is the cost of beats between two nodes, as the kernel accounts it: both programs of both nodes see
// each beat and each answer.
func BenchmarkTraffic(b *testing.B) {
	stats, err := ebpf.EnableStats(uint32(unix.BPF_STATS_RUN_TIME))
	if err != nil {
		b.Fatal(err)
	}
	defer stats.Close()
	one, two := pair(b, Options{}, 1)
	for b.Loop() {
		one.beat(two.host, Path{2, 1, IPv6}, false)
	}
	for name, p := range map[string]*ebpf.Program{
		"send": one.objects.HbEgress, "receive+answer": two.objects.HbIngress,
		"answer-out": two.objects.HbEgress, "answer-in": one.objects.HbIngress,
	} {
		s, err := p.Stats()
		if err != nil {
			b.Fatal(err)
		}
		if s.RunCount > 0 {
			b.ReportMetric(float64(s.Runtime)/float64(s.RunCount), "ns-"+name)
		}
	}
	s := one.stamp(Path{2, 1, IPv6})
	if s.Answers < uint64(b.N)*9/10 {
		b.Errorf("%d beats, %d answers", b.N, s.Answers)
	}
	b.ReportMetric(float64(s.MinRTT), "ns-min-rtt")
}

func BenchmarkStamp(b *testing.B) {
	h := loopback(b, Options{Number: 3}, 2, Path{7, 2, IPv6})
	var s Stamp
	for b.Loop() {
		h.Stamp(Path{7, 2, IPv6}, &s)
	}
}

// BenchmarkAccuracy compares how long after its departure, which the sender's kernel stamped, a beat is seen: by the
// kernel's stamp, by SO_TIMESTAMPNS, and by a Go program that reads the socket, idle and beside threads that spin.
func BenchmarkAccuracy(b *testing.B) {
	for _, threads := range []int{0, 2, 8} {
		b.Run(fmt.Sprintf("spinning=%d", threads), func(b *testing.B) {
			stop := spin(threads)
			defer stop()
			measureAccuracy(b)
		})
	}
}

func spin(threads int) (stop func()) {
	var ended atomic.Bool
	var wait sync.WaitGroup
	before := runtime.GOMAXPROCS(threads + runtime.NumCPU())
	for range threads {
		wait.Go(func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			for !ended.Load() {
			}
		})
	}
	return func() { ended.Store(true); wait.Wait(); runtime.GOMAXPROCS(before) }
}

// received is when one beat was seen.
type received struct{ socket, user time.Duration }

func measureAccuracy(b *testing.B) {
	one, two := pair(b, Options{Deliver: true}, 1)
	c := two.conn(two.addr(1, IPv4, false))
	if err := stampSocket(c); err != nil {
		b.Fatal(err)
	}
	arrivals := make(chan received)
	go receive(c, arrivals)
	path, back := Path{2, 1, IPv4}, Path{1, 1, IPv4}
	var kernel, socket, user []time.Duration
	for b.Loop() {
		time.Sleep(time.Millisecond) // the receiver waits, as a daemon does between beats
		one.beat(two.host, path, false)
		r, ok := <-arrivals
		if !ok {
			b.Fatal("the receiver failed")
		}
		left := one.stamp(path).LastSent
		kernel = append(kernel, two.stamp(back).LastBeat-left)
		socket = append(socket, r.socket-left)
		user = append(user, r.user-left)
	}
	for name, v := range map[string][]time.Duration{"tcx": kernel, "timestampns": socket, "recv": user} {
		slices.Sort(v)
		b.ReportMetric(float64(v[len(v)/2])/1e3, "µs-p50-"+name)
		b.ReportMetric(float64(v[len(v)*99/100])/1e3, "µs-p99-"+name)
		b.ReportMetric(float64(v[len(v)-1])/1e3, "µs-max-"+name)
	}
}

// receive reads beats until the socket is closed.
func receive(c *net.UDPConn, arrivals chan<- received) {
	defer close(arrivals)
	data, extra := make([]byte, 100), make([]byte, 100)
	for {
		_, n, _, _, err := c.ReadMsgUDPAddrPort(data, extra)
		user := Now()
		if err != nil {
			return
		}
		at, err := socketTime(extra[:n])
		if err != nil {
			return
		}
		arrivals <- received{socket: at - realMinusMonotonic(), user: user}
	}
}

func stampSocket(c *net.UDPConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		failed = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1)
	})
	if err != nil {
		return err
	}
	return failed
}

func socketTime(extra []byte) (time.Duration, error) {
	messages, err := unix.ParseSocketControlMessage(extra)
	if err != nil {
		return 0, err
	}
	for _, m := range messages {
		if m.Header.Type == unix.SO_TIMESTAMPNS {
			return time.Duration(le64(m.Data))*time.Second + time.Duration(le64(m.Data[8:])), nil
		}
	}
	return 0, io.ErrUnexpectedEOF
}

func le64(b []byte) (v uint64) {
	for i := range 8 {
		v |= uint64(b[i]) << (8 * i)
	}
	return v
}

func realMinusMonotonic() time.Duration {
	var r unix.Timespec
	before := Now()
	_ = unix.ClockGettime(unix.CLOCK_REALTIME, &r)
	return time.Duration(r.Nano()) - (before+Now())/2
}
