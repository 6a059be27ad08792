package netft

import (
	"context"
	"net"
	"os"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"lunar/netft/detector"
)

func (n *labNode) context() context.Context { return context.Background() }

// rounds is how often the long form repeats; 1 in CI.
func rounds() int {
	n, err := strconv.Atoi(os.Getenv("LUNAR_NETFT_ROUNDS"))
	if err != nil {
		return 1
	}
	return n
}

// watched is a lab of node 1 here and node 2 in a process of its own, with a plain detector beside it.
func watched(t *testing.T, o Options) (*labNode, *observer) {
	l := newLab(t, 2, 2)
	a, b := l.nodes[0], l.nodes[1]
	a.start(o)
	ob := startObserver(t, b, o.BPF)
	feed(t, a)
	until(t, 20*time.Second, "all addresses", func() bool { return complete(a.peer()) && complete(ob.ask(nil).Peer) })
	if err := a.fabric.SetPeers([]Peer{ob.ask([]Peer{a.peer()}).Peer}); err != nil {
		t.Fatal(err)
	}
	until(t, 20*time.Second, "all paths up", func() bool { return ob.ask(nil).Up == 4 && a.allUp(4) })
	return a, ob
}

// complete tells whether the kernel has given a node both link-local addresses.
func complete(p Peer) bool {
	found := 0
	for _, i := range p.Interfaces {
		if i.LinkLocal().IsValid() && i.Address4().IsValid() {
			found++
		}
	}
	return found == 2
}

// feed sends what the plain detector of node 2 waits for.
func feed(t *testing.T, a *labNode) {
	var conns []net.Conn
	for i := range 2 {
		a.Must(func() error {
			c, err := net.DialUDP("udp4", nil, &net.UDPAddr{IP: net.IPv4(10, byte(i+1), 0, 2), Port: plainPort})
			conns = append(conns, c)
			return err
		})
	}
	end, wg := make(chan struct{}), sync.WaitGroup{}
	wg.Add(1)
	go func() {
		defer wg.Done()
		runtime.LockOSThread() // and ends with the priority
		_ = syscall.Setpriority(syscall.PRIO_PROCESS, syscall.Gettid(), -20)
		for {
			select {
			case <-end:
				return
			case <-time.After(detector.Fast().Interval):
			}
			for _, c := range conns {
				_, _ = c.Write([]byte("beat"))
			}
		}
	}()
	t.Cleanup(func() {
		close(end)
		wg.Wait()
		for _, c := range conns {
			_ = c.Close()
		}
	})
}

// TestObserverStopped stops a node's process for 3 s. It suspects nobody when it goes on; a plain detector does. Its
// peer sees a daemon that is stalled, on a node that lives, if the kernel answers.
func TestObserverStopped(t *testing.T) {
	both(t, func(t *testing.T, o Options) {
		a, ob := watched(t, o)
		before := ob.ask(nil)
		a.forget()
		for range rounds() {
			ob.signal(syscall.SIGSTOP)
			time.Sleep(3 * time.Second)
			ob.signal(syscall.SIGCONT)
			until(t, 20*time.Second, "all paths up", func() bool { return a.allUp(4) })
		}
		after := ob.ask(nil)
		plain := after.Plain - before.Plain
		t.Logf("%d stops of 3 s, 2 networks: %d suspicions, %d by a plain detector", rounds(), after.Suspect-before.Suspect, plain)
		if got := after.Suspect - before.Suspect; got != 0 {
			t.Errorf("%d suspicions of a healthy peer", got)
		}
		if plain == 0 && rounds() > 1 {
			t.Error("the plain detector suspects nobody: the test proves nothing")
		}
		lost, stalled := a.count(detector.NodeLost), a.count(detector.DaemonStalled)
		t.Logf("seen from the peer: %d times lost, %d times stalled", lost, stalled)
		if o.BPF && (lost != 0 || stalled != rounds()) {
			t.Errorf("the stopped process's peer: %d times lost, %d times stalled, want 0 and %d", lost, stalled, rounds())
		}
		if !o.BPF && lost != rounds() {
			t.Errorf("without the kernel's answers the node was lost %d times, want %d", lost, rounds())
		}
	})
}

// TestBusy keeps the CPUs busy with 8 threads and more: nobody is suspected.
func TestBusy(t *testing.T) {
	both(t, func(t *testing.T, o Options) {
		a, ob := watched(t, o)
		before := ob.ask(nil)
		a.forget()
		defer spin(t, 8)()
		time.Sleep(time.Duration(rounds()) * 2 * time.Second)
		after := ob.ask(nil)
		nodes := after.Nodes - before.Nodes
		t.Logf("%d s: %d suspicions of a node, %d of a path; %d late ticks; %d suspicions by a plain detector", 2*rounds(), nodes,
			after.Suspect-before.Suspect-nodes, after.Late-before.Late, after.Plain-before.Plain)
		if got := nodes + a.count(detector.NodeLost, detector.DaemonStalled); got != 0 && after.Late == before.Late &&
			a.fabric.Counters().LateTicks == 0 {
			t.Errorf("%d suspicions", got)
		}
	})
}
