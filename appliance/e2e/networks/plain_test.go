package networks

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"lunar/appliance/e2e/lab"
)

// A plain detector is what user space does without the kernel's time stamps: a beat that is read sets a timer anew, and
// the timer suspects. It is a copy of this test's program, of the lowest ordinary priority, with the fast profile's
// times; a second copy sends the beats.
const (
	plainRole      = "LUNAR_PLAIN_ROLE"
	plainAddresses = "LUNAR_PLAIN_ADDRESSES"
	plainHear      = "hear"
	plainSend      = "send"
	plainPort      = 3399
	plainPeriod    = 100 * time.Millisecond
	plainThreshold = 5 * plainPeriod
)

// bePlain is the copy, until its input ends. For each line that it reads it tells how often it has suspected.
func bePlain(role string) {
	act := map[string]func(netip.AddrPort, *atomic.Int64) error{plainHear: hear, plainSend: sendBeats}[role]
	var suspicions atomic.Int64
	for text := range strings.FieldsSeq(os.Getenv(plainAddresses)) {
		if err := act(netip.MustParseAddrPort(text), &suspicions); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		fmt.Println(suspicions.Load())
	}
	os.Exit(0)
}

func hear(at netip.AddrPort, suspicions *atomic.Int64) error {
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
	if err != nil {
		return err
	}
	var timer *time.Timer // from the first beat on
	go func() {
		for b := make([]byte, 100); ; {
			switch _, _, err := c.ReadFrom(b); {
			case err != nil:
			case timer == nil:
				timer = time.AfterFunc(plainThreshold, func() { suspicions.Add(1) })
			default:
				timer.Reset(plainThreshold)
			}
		}
	}()
	return nil
}

func sendBeats(to netip.AddrPort, _ *atomic.Int64) error {
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
	if err != nil {
		return err
	}
	go func() {
		for range time.Tick(plainPeriod) {
			_, _ = c.Write([]byte("beat"))
		}
	}()
	return nil
}

// plain is a detector at a node, and who sends to it.
type plain struct {
	t        *testing.T
	detector *exec.Cmd
	in       io.Writer
	out      *bufio.Scanner
}

// plainDetector has a node listen to another on both networks. Nice values are the lowest for who listens, and the
// highest for who sends.
func (b *bench) plainDetector(at, from *lab.ClusterNode) *plain {
	b.t.Helper()
	var to []string
	for _, n := range []*lab.Network{b.Network, b.Second} {
		for i, o := range b.Nodes {
			if o == at {
				to = append(to, netip.AddrPortFrom(n.Address(byte(i+1)), plainPort).String())
			}
		}
	}
	p := &plain{t: b.t}
	var out io.Reader
	p.detector, p.in, out = b.copyOf(at, plainHear, "19", to)
	p.out = bufio.NewScanner(out)
	b.copyOf(from, plainSend, "-20", to)
	return p
}

// copyOf starts a copy of this program on a node's host. It ends with the test.
func (b *bench) copyOf(n *lab.ClusterNode, role, nice string, addresses []string) (*exec.Cmd, io.Writer, io.Reader) {
	b.t.Helper()
	c := exec.Command("ip", "netns", "exec", n.Host.Namespace, "nice", "-n", nice, os.Args[0])
	c.Env = append(os.Environ(), plainRole+"="+role, plainAddresses+"="+strings.Join(addresses, " "))
	var trouble bytes.Buffer
	c.Stderr = &trouble
	in, err := c.StdinPipe()
	check(b.t, err)
	out, err := c.StdoutPipe()
	check(b.t, err)
	check(b.t, c.Start())
	b.t.Cleanup(func() {
		_ = in.Close()
		if err := c.Wait(); err != nil {
			b.t.Errorf("plain detector, %s: %v: %s", role, err, &trouble)
		}
	})
	return c, in, out
}

// suspicions is how often it has suspected its peer so far.
func (p *plain) suspicions() int {
	p.t.Helper()
	_, err := fmt.Fprintln(p.in)
	check(p.t, err)
	if !p.out.Scan() {
		p.t.Fatal("the plain detector has ended")
	}
	n, err := strconv.Atoi(p.out.Text())
	check(p.t, err)
	return n
}

func (p *plain) signal(s syscall.Signal) { check(p.t, p.detector.Process.Signal(s)) }
