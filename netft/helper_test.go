package netft

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lunar/netft/detector"
)

// helperMode names what a copy of this test's program is to do: helperObserver, a node in a process of its own.
const (
	helperMode     = "LUNAR_NETFT_HELPER"
	helperObserver = "observer"
	helperSpace    = "LUNAR_NETFT_NAMESPACE"
)

// plainPort is where the plain detector listens.
const plainPort = 3399

// order is a line to the observer, report its answer to each.
type order struct {
	Peers []Peer `json:"peers"`
}

type report struct {
	Method  string
	Peer    Peer
	Up      int // paths
	Suspect int // verdicts: paths suspected or lost, nodes lost, daemons stalled
	Nodes   int // of these, nodes lost and daemons stalled
	Plain   int // suspicions of a plain detector in user space
	Late    uint64
	CPU     time.Duration            // of the process
	Lost    map[uint16]time.Duration // nodes that were lost last, and when
}

func helperMain(mode string) int {
	if n, err := strconv.Atoi(mode); err == nil {
		beBusy(n)
		return 0
	}
	if err := observe(mode == helperObserver); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// observe is the node: number 2 of the lab.
func observe(bpf bool) error {
	runtime.LockOSThread()
	beLast()
	space, err := os.Open(os.Getenv(helperSpace))
	if err != nil {
		return err
	}
	if err := unix.Setns(int(space.Fd()), unix.CLONE_NEWNET); err != nil {
		return err
	}
	n := &labNode{number: 2}
	o := n.options(Options{Profile: detector.Fast(), BPF: bpf})
	if n.fabric, err = Start(n.context(), o); err != nil {
		return err
	}
	suspicions, err := plainDetector(o.Profile)
	if err != nil {
		return err
	}
	in := bufio.NewScanner(os.Stdin)
	in.Buffer(nil, 1<<20)
	for in.Scan() {
		var o order
		if err := json.Unmarshal(in.Bytes(), &o); err != nil {
			return err
		}
		if o.Peers != nil {
			if err := n.fabric.SetPeers(o.Peers); err != nil {
				return err
			}
		}
		if err := json.NewEncoder(os.Stdout).Encode(n.report(suspicions)); err != nil {
			return err
		}
	}
	return n.fabric.Close()
}

// beLast gives the process the lowest ordinary priority, so that what else is busy keeps it from running for long. The
// heartbeats' thread asks for its own.
func beLast() {
	threads, _ := os.ReadDir("/proc/self/task")
	for _, thread := range threads {
		id, _ := strconv.Atoi(thread.Name())
		_ = unix.Setpriority(unix.PRIO_PROCESS, id, 19)
	}
}

func (n *labNode) report(plain *atomic.Int64) report {
	r := report{Method: n.fabric.Method(), Peer: n.peer(), Plain: int(plain.Load()), Late: n.fabric.Counters().LateTicks, CPU: cpuTime(), Lost: map[uint16]time.Duration{}}
	for _, p := range n.fabric.Paths() {
		if p.State == detector.Up {
			r.Up++
		}
	}
	n.mu.Lock()
	for _, v := range n.verdicts {
		if v.Kind == detector.NodeLost {
			r.Lost[v.Verdict.Path.Peer] = v.At
		}
	}
	n.mu.Unlock()
	r.Suspect = n.count(detector.PathSuspect, detector.PathLost, detector.NodeLost, detector.DaemonStalled)
	r.Nodes = n.count(detector.NodeLost, detector.DaemonStalled)
	return r
}

// plainDetector is what user space does without the kernel's time: a beat sets a timer anew when it is read, and the
// timer suspects. The result counts its suspicions.
func plainDetector(p detector.Profile) (*atomic.Int64, error) {
	suspicions := &atomic.Int64{}
	for i := range 2 {
		c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(10, byte(i+1), 0, 2), Port: plainPort})
		if err != nil {
			return nil, err
		}
		timer := time.AfterFunc(time.Hour, func() { suspicions.Add(1) })
		go func() {
			for b := make([]byte, 100); ; {
				if _, _, err := c.ReadFrom(b); err == nil {
					timer.Reset(p.Threshold())
				}
			}
		}()
	}
	return suspicions, nil
}

// observer is a helper that runs node 2.
type observer struct {
	t       *testing.T
	command *exec.Cmd
	in      *json.Encoder
	out     *json.Decoder
}

func startObserver(t *testing.T, n *labNode, bpf bool) *observer {
	t.Helper()
	path := ""
	n.Must(func() error { path = fmt.Sprintf("/proc/%d/task/%d/ns/net", os.Getpid(), unix.Gettid()); return nil })
	mode := "plain"
	if bpf {
		mode = helperObserver
	}
	c := exec.Command(os.Args[0])
	c.Env = append(os.Environ(), helperMode+"="+mode, helperSpace+"="+path)
	c.Stderr = os.Stderr
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close()
		if err := c.Wait(); err != nil {
			t.Errorf("the observer: %v", err)
		}
	})
	return &observer{t: t, command: c, in: json.NewEncoder(in), out: json.NewDecoder(out)}
}

func (o *observer) ask(peers []Peer) (r report) {
	o.t.Helper()
	if err := o.in.Encode(order{peers}); err != nil {
		o.t.Fatal(err)
	}
	if err := o.out.Decode(&r); err != nil {
		o.t.Fatal(err)
	}
	return r
}

func (o *observer) signal(s syscall.Signal) {
	if err := o.command.Process.Signal(s); err != nil {
		o.t.Error(err)
	}
}

// spin keeps the CPUs busy with a process of n threads until the result is called.
func spin(t *testing.T, n int) (stop func()) {
	t.Helper()
	c := exec.Command(os.Args[0])
	c.Env = append(os.Environ(), helperMode+"="+strconv.Itoa(n))
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	return func() {
		_ = in.Close()
		if err := c.Wait(); err != nil {
			t.Errorf("the busy process: %v", err)
		}
	}
}

// beBusy spins until standard input ends, as it does with the test's process.
func beBusy(n int) {
	runtime.GOMAXPROCS(n + 1)
	for range n {
		go func() {
			for { //nolint:staticcheck // to be busy is the purpose
			}
		}()
	}
	_, _ = os.Stdin.Read(make([]byte, 1))
}
