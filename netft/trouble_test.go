package netft

import (
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"lunar/netft/detector"
)

// journal keeps what is logged.
type journal struct {
	mu   sync.Mutex // guards text
	text strings.Builder
}

func (j *journal) Write(b []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.Write(b)
}

func (j *journal) count(what string) int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return strings.Count(j.text.String(), what)
}

// TestLastingTrouble has a network on which the kernel's programs cannot be: a tunnel's packets have no Ethernet header.
// That is said once, the sockets stamp there, and nobody is told of changes that are none.
func TestLastingTrouble(t *testing.T) {
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		t.Skip(err)
	}
	l := newLab(t, 2, 1)
	a := l.nodes[0]
	for _, n := range l.nodes {
		n.Must(func() error {
			return netlink.LinkAdd(&netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "tunnel"}, Mode: netlink.TUNTAP_MODE_TUN})
		})
		n.Up("tunnel")
		n.Address("tunnel", map[uint16]string{1: "10.99.0.1/24", 2: "10.99.0.2/24"}[n.number])
	}
	var j journal
	var changes atomic.Int64
	o := a.options(Options{Profile: detector.Fast(), BPF: true})
	o.Log, o.Changed = slog.New(slog.NewTextHandler(&j, nil)), func() { changes.Add(1) }
	a.Must(func() (err error) { a.fabric, err = Start(t.Context(), o); return err })
	t.Cleanup(a.stop)
	l.nodes[1].start(Options{Profile: detector.Fast(), BPF: true})
	l.introduce()
	until(t, 10*time.Second, "the trouble is said", func() bool { return j.count("do not go over all paths") > 0 })
	l.settled(1)
	said, told := j.count("do not go over all paths"), changes.Load()
	time.Sleep(3 * pauseAfterError)
	if now := j.count("do not go over all paths"); now != said || said > 2 {
		t.Errorf("said %d times, then %d", said, now)
	}
	if now := changes.Load(); now != told {
		t.Errorf("%d changes were told, and %d while nothing changed", told, now-told)
	}
}

// settled waits until all paths over so many networks are up.
func (l *lab) settled(networks int) {
	l.t.Helper()
	until(l.t, 20*time.Second, "paths up", func() bool {
		l.publish()
		up := 0
		for _, p := range l.nodes[0].fabric.Paths() {
			if p.State == detector.Up {
				up++
			}
		}
		return up >= 2*networks
	})
	time.Sleep(pauseAfterError)
}

// TestTroubleEnds has another program use the port at first. What wakes the worker meanwhile keeps it from no retry.
func TestTroubleEnds(t *testing.T) {
	l := newLab(t, 2, 1)
	a := l.nodes[0]
	var other net.PacketConn
	a.Must(func() (err error) { other, err = net.ListenPacket("udp4", ":3343"); return err })
	var j journal
	o := a.options(Options{Profile: detector.Fast()})
	o.Log = slog.New(slog.NewTextHandler(&j, nil))
	a.Must(func() (err error) { a.fabric, err = Start(t.Context(), o); return err })
	t.Cleanup(a.stop)
	l.nodes[1].start(Options{Profile: detector.Fast()})
	l.introduce()
	until(t, 10*time.Second, "the trouble is said", func() bool { return j.count("address already in use") > 0 })
	for range 5 { // as verdicts do
		a.fabric.wake()
		time.Sleep(20 * time.Millisecond)
	}
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(3 * pauseAfterError); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		a.fabric.wake()
	}
	l.healthy(1)
}
