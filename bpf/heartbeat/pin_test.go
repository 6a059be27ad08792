package heartbeat

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// bpffs mounts a bpf file system for a test.
func bpffs(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("bpf", dir, "bpf", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return filepath.Join(dir, "lunar")
}

// victimEnv makes the test's binary a daemon that beats until it is killed.
const victimEnv = "LUNAR_TEST_VICTIM"

type orders struct {
	Pin      string
	Number   uint16
	Index    int
	Path     Path
	From, To netip.Addr
}

func victim() {
	if err := beatForever(); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

func beatForever() error {
	var o orders
	if err := json.Unmarshal([]byte(os.Getenv(victimEnv)), &o); err != nil {
		return err
	}
	h, err := Load(Options{Number: o.Number, Incarnation: 100, Keys: [][KeySize]byte{testKey()}, Pin: o.Pin})
	if err != nil {
		return err
	}
	if err := errors.Join(h.Attach(o.Index, o.Path.Network), h.SetPaths([]Path{o.Path})); err != nil {
		return err
	}
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(o.From, port)))
	if err != nil {
		return err
	}
	n := &node{host: &host{number: o.Number}, inc: 100, seq: map[Path]uint64{}}
	for {
		if _, err := c.WriteToUDPAddrPort(n.next(o.Path).bytes(testKey()), netip.AddrPortFrom(o.To, port)); err != nil {
			return err
		}
		fmt.Println("beat")
		time.Sleep(time.Millisecond)
	}
}

// startVictim starts a daemon in h's namespace, and returns when it has beaten.
func startVictim(t *testing.T, h *host, o orders) *exec.Cmd {
	t.Helper()
	text, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command("/proc/self/exe")
	c.Env = append(os.Environ(), victimEnv+"="+string(text))
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	h.do(c.Start)
	t.Cleanup(func() { _ = c.Process.Kill(); _ = c.Wait() })
	line := bufio.NewScanner(out)
	if !line.Scan() || line.Text() != "beat" {
		t.Fatalf("the daemon said %q", line.Text())
	}
	go func() {
		for line.Scan() {
		}
	}()
	return c
}

func kill(t *testing.T, c *exec.Cmd) {
	t.Helper()
	if err := c.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = c.Wait() // it was killed, which is an error to Wait
}

func setUpVictim(t *testing.T, pin string) (a *node, two *host, c *exec.Cmd, o orders) {
	t.Helper()
	one, two := newHost(t, 1), newHost(t, 2)
	join(t, 1, one, two)
	a = newNode(t, one, Options{})
	a.watch([]uint16{1}, 2)
	o = orders{Pin: pin, Number: 2, Index: two.index(1), Path: Path{1, 1, IPv4}, From: two.addr(1, IPv4, false), To: one.addr(1, IPv4, false)}
	c = startVictim(t, two, o)
	path := Path{2, 1, IPv4}
	eventually(t, "the daemon's node answers", func() bool {
		a.beat(two, path, false)
		s := a.stamp(path)
		return s.Answers > 0 && s.Beats > 0
	})
	return a, two, c, o
}

// silent waits until beats have been unanswered for 100 ms.
func silent(t *testing.T, a *node, peer *host, path Path) {
	t.Helper()
	eventually(t, "the node is silent", func() bool {
		a.beat(peer, path, false)
		s := a.stamp(path)
		return s.LastSent-s.LastAnswer > 100*time.Millisecond
	})
}

// TestKilled: without pins a killed daemon's node is silent at once.
func TestKilled(t *testing.T) {
	a, two, c, _ := setUpVictim(t, "")
	path := Path{2, 1, IPv4}
	kill(t, c)
	silent(t, a, two, path)
}

// TestKilledPinned: with pins the node goes on answering, and tells that its daemon is not there; the next daemon takes over.
func TestKilledPinned(t *testing.T) {
	pin := bpffs(t)
	a, two, c, o := setUpVictim(t, pin)
	path := Path{2, 1, IPv4}
	kill(t, c)
	eventually(t, "the node answers for 100 ms without its daemon", func() bool {
		a.beat(two, path, false)
		s := a.stamp(path)
		return s.LastAnswer-s.Daemon > 100*time.Millisecond
	})
	last := a.stamp(path).Daemon
	for range 20 {
		a.beat(two, path, false)
	}

	b := newNode(t, two, Options{Pin: pin, Incarnation: 101})
	if got := b.Attached(); len(got) != 1 || got[o.Index] != 1 {
		t.Errorf("attached: %v", got)
	}
	heard := b.stamp(o.Path)
	if heard.Beats < 20 || heard.Incarnation != 100 {
		t.Errorf("the counters did not survive: %+v", heard)
	}
	ticks := b.Node().Ticks
	eventually(t, "the timer ticks on", func() bool { return b.Node().Ticks > ticks })
	b.watch([]uint16{1}, 1)
	a.beat(two, path, false)
	b.beat(a.host, o.Path, false)
	eventually(t, "all are well again", func() bool {
		s := a.stamp(path)
		return s.Incarnation == 101 && s.Confirmed && s.Daemon > last && s.Restarts == 1
	})
	if s := b.stamp(o.Path); s.Beats <= heard.Beats {
		t.Errorf("the stamps do not go on: %+v", s)
	}
	if _, err := Load(Options{Number: 2, Incarnation: 102, Keys: [][KeySize]byte{testKey()}, Pin: pin}); !errors.Is(err, ErrNotPinned) {
		t.Errorf("a second daemon on the same pins: %v", err)
	}
	if err := Unpin(pin); !errors.Is(err, ErrNotPinned) {
		t.Errorf("unpinned under a daemon: %v", err)
	}
	expectGone(t, b.Heartbeat, b.Close)
	if _, err := os.Stat(pin); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the folder is still there: %v", err)
	}
}

// TestUnpin removes what a killed daemon left.
func TestUnpin(t *testing.T) {
	pin := bpffs(t)
	a, two, c, _ := setUpVictim(t, pin)
	kill(t, c)
	if err := Unpin(pin); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(pin); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the folder is still there: %v", err)
	}
	path := Path{2, 1, IPv4}
	silent(t, a, two, path)
	if err := Unpin(pin); err != nil {
		t.Errorf("a second time: %v", err)
	}
}

// TestOtherPins: pins of another version, and links to interfaces that went, are let go; a folder elsewhere is refused.
func TestOtherPins(t *testing.T) {
	pin := bpffs(t)
	if err := os.Mkdir(pin, 0o700); err != nil {
		t.Fatal(err)
	}
	old, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	if err := old.Pin(filepath.Join(pin, programMapHbSlots)); err != nil {
		t.Fatal(err)
	}
	n := newNode(t, newHost(t, 2), Options{Pin: pin})
	if err := n.SetPaths([]Path{{1, 1, IPv4}}); err != nil {
		t.Error(err)
	}
	if err := n.Close(); err != nil {
		t.Error(err)
	}
	_, err = Load(Options{Number: 1, Incarnation: 1, Keys: [][KeySize]byte{testKey()}, Pin: t.TempDir()})
	if !errors.Is(err, ErrNotPinned) {
		t.Errorf("a folder that is not of a bpf file system: %v", err)
	}
}

// TestPinnedInterfaceGone: the interface went while no daemon was there.
func TestPinnedInterfaceGone(t *testing.T) {
	pin := bpffs(t)
	a, two, c, _ := setUpVictim(t, pin)
	kill(t, c)
	a.run("ip", "link", "del", device(1))
	b := newNode(t, two, Options{Pin: pin, Incarnation: 101})
	if got := b.Attached(); len(got) != 0 {
		t.Errorf("attached to what is gone: %v", got)
	}
	join(t, 1, a.host, two)
	b.watch([]uint16{1}, 1)
	a.watch([]uint16{1}, 2)
	a.forget()
	path := Path{2, 1, IPv4}
	before := a.stamp(path).Answers
	a.beat(two, path, false)
	eventually(t, "the new interface answers", func() bool { return a.stamp(path).Answers == before+1 })
}
