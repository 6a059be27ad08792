package console

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"lunar/appliance/api"
	"lunar/appliance/firstboot"
	"lunar/appliance/slot"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// room is a machine in a folder; its lunard is what the test says.
func room(t *testing.T) *Machine {
	t.Helper()
	dir := t.TempDir()
	first := &firstboot.Machine{
		State: dir + "/state", Run: dir + "/run", Systemd: dir + "/systemd", MachineID: "1", EtcHostname: dir + "/hostname",
		Links: func() []string { return []string{"eth0"} }, HostName: func(string) error { return nil }, Cmdline: "lunar.node-name=n1",
	}
	_, err := first.Configure()
	must(t, err)
	release := filepath.Join(dir, "release")
	must(t, os.WriteFile(release, nil, 0o600))
	return &Machine{
		Client: api.NewClient(dir + "/none"), First: first, Slots: &slot.System{Dir: dir}, Release: release, Synced: dir + "/synced", Var: dir,
		Show: func(context.Context, string) (map[string]string, error) {
			return map[string]string{"ActiveState": "failed", "Result": "exit-code"}, nil
		},
		Journal: func(context.Context, string) string { return "its last words" },
		Links: func() ([]Link, error) {
			return []Link{{Name: "eth0", Device: true, Carrier: true, Addresses: []string{"192.0.2.1/24"}}}, nil
		},
		Now: time.Now,
	}
}

func (s *state) wrong(t *testing.T, words ...string) {
	t.Helper()
	all := strings.Join(s.alarms, "\n")
	for _, w := range words {
		if !strings.Contains(all, w) {
			t.Errorf("no %q in\n%s", w, all)
		}
	}
	if len(s.alarms) != len(words) {
		t.Errorf("%d alarms, not %d:\n%s", len(s.alarms), len(words), all)
	}
}

// TestAlarms has each thing that can be wrong be told.
func TestAlarms(t *testing.T) {
	m := room(t)
	m.look(t.Context()).wrong(t, "lunard does not run (exit-code): its last words")
	up := m.Show
	m.Show = func(context.Context, string) (map[string]string, error) {
		return map[string]string{"ActiveState": "activating", "StatusText": "a; ALARM: the cluster of x refuses this node"}, nil
	}
	m.look(t.Context()).wrong(t, "the cluster of x refuses this node")
	m.Links = func() ([]Link, error) { return []Link{{Name: "eth0", Device: true}}, nil }
	m.look(t.Context()).wrong(t, "refuses", "no cable or no partner at eth0")
	m.Links = func() ([]Link, error) { return []Link{{Name: "eth0", Device: true, Carrier: true}}, nil }
	m.look(t.Context()).wrong(t, "refuses", "no DHCP server answers")
	m.Links = func() ([]Link, error) { return nil, nil }
	m.look(t.Context()).wrong(t, "refuses", "no interface")
	for _, years := range []int{-3, clockOff + 1} {
		m.Now = func() time.Time { return time.Now().AddDate(years, 0, 0) }
		m.look(t.Context()).wrong(t, "refuses", "no interface", "the clock is wrong")
	}
	must(t, os.WriteFile(m.Synced, nil, 0o600))
	m.Show = up
	must(t, os.WriteFile(m.First.Run+"/state-damaged", []byte("bad superblock\n"), 0o600))
	s := m.look(t.Context())
	s.wrong(t, "lunard does not run", "no interface", "state partition is damaged, and lunard does not run without it: bad superblock")
	if !s.damaged {
		t.Error("repair is not offered")
	}
	m.First.Cmdline = "lunar.network=x"
	_, err := m.First.Configure()
	must(t, err)
	m.look(t.Context()).wrong(t, "lunard does not run", "no interface", "bad superblock", "the setting network is wrong")
	m.Show = func(context.Context, string) (map[string]string, error) { return nil, errors.New("dead") }
	m.look(t.Context()).wrong(t, "systemd does not answer: dead", "no interface", "bad superblock", "the setting network is wrong")
}

// TestServing has a lunard that answers: cluster, volumes, how to join.
func TestServing(t *testing.T) {
	m := room(t)
	m.Show = func(context.Context, string) (map[string]string, error) {
		return map[string]string{"ActiveState": "active", "StatusText": "Serving 1 volumes"}, nil
	}
	m.look(t.Context()).wrong(t, "lunard does not answer")
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	must(t, err)
	mux := http.NewServeMux()
	answer := func(path string, value any) {
		mux.HandleFunc(path, func(w http.ResponseWriter, _ *http.Request) { _ = json.NewEncoder(w).Encode(value) })
	}
	answer("/v1/cluster", api.Cluster{ID: "c1", Node: "n1", Address: "fd00::1", Voters: 2, Living: 1, Nodes: []api.Node{{Name: "n1", State: api.NodeUp}, {Name: "n2", State: api.NodeDown}}})
	answer("/v1/volumes", []api.Volume{{Name: "V\x1b[2J1", State: api.Redirected, Reason: "Backup", Size: 1 << 30, Free: 1 << 29, Coordinator: "n1"}})
	server := &http.Server{Handler: mux}
	var wg sync.WaitGroup
	wg.Go(func() { _ = server.Serve(l) })
	m.Client = api.NewClient(socket)
	defer func() { m.Client.Close(); _ = server.Close(); wg.Wait() }()
	s := m.look(t.Context())
	s.wrong(t, "node n2 is Down")
	text := strings.Join(s.text(80, 100), "\n")
	for _, want := range []string{"Node      n1", "eth0  192.0.2.1/24", "Serving 1 volumes", "c1, 2 nodes, 1 of 2 voters live", "V [2J1  Redirected (Backup), 512MiB free of 1GiB, coordinator n1", "fd00::1 as its join address"} {
		if !strings.Contains(strings.Join(strings.Fields(text), " "), strings.Join(strings.Fields(want), " ")) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	t.Log("\n" + text)
	for _, line := range s.text(60, 8) {
		if len([]rune(line)) > 60 {
			t.Errorf("%q is too long", line)
		}
	}
	if n := len(s.text(60, 8)); n != 8 {
		t.Errorf("%d lines", n)
	}
}

// pty is a terminal: what the console writes comes out of main, keys go in there.
type pty struct {
	t    *testing.T
	main *os.File
	side *os.File
	mu   sync.Mutex // guards text
	text strings.Builder
}

func newPty(t *testing.T) *pty {
	t.Helper()
	m, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	must(t, err)
	n, err := unix.IoctlGetInt(int(m.Fd()), unix.TIOCGPTN)
	must(t, err)
	must(t, unix.IoctlSetPointerInt(int(m.Fd()), unix.TIOCSPTLCK, 0))
	s, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	must(t, err)
	p := &pty{t: t, main: m, side: s}
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, 4096)
		for {
			n, err := m.Read(buf)
			p.mu.Lock()
			p.text.Write(buf[:n])
			p.mu.Unlock()
			if err != nil {
				return
			}
		}
	})
	t.Cleanup(func() { _ = s.Close(); wg.Wait(); _ = m.Close() })
	return p
}

// until waits for text, takes it and all before, and types.
func (p *pty) until(want, keys string) string {
	p.t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		p.mu.Lock()
		before, after, found := strings.Cut(p.text.String(), want)
		if found {
			p.text.Reset()
			p.text.WriteString(after)
			p.mu.Unlock()
			_, err := io.WriteString(p.main, keys)
			must(p.t, err)
			return before
		}
		p.mu.Unlock()
		if time.Now().After(end) {
			p.t.Fatalf("no %q in %q", want, before)
		}
	}
}

// TestMenu mends a wrong setting at a serial line, and is refused what is wrong.
func TestMenu(t *testing.T) {
	m := room(t)
	m.First.Cmdline = "lunar.node-name=n1 lunar.console=nothing"
	_, err := m.First.Configure()
	must(t, err)
	p := newPty(t)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- Run(ctx, m, p.side, p.side) }()
	p.until("the setting console is wrong", "")
	p.until("Keys: m menu", "m")
	p.until("Which?", "3")
	p.until("address of a node", "bad address\r")
	p.until("token", "T\r")
	p.until("FAILED: join-address: ", "m")
	p.until("Which?", "p")
	p.until("Type yes", "no\r")
	p.until("Nothing was changed", "m")
	p.until("Which?", "s") // not offered
	p.until("Keys: m menu", "\r")
	p.until("Keys: m menu", "")
	if _, err := m.First.Set(firstboot.Console, firstboot.ConsoleStatus); err != nil {
		t.Fatal(err)
	}
	_, err = io.WriteString(p.main, "\r")
	must(t, err)
	p.until("\r\nEnter shows this again", "m")
	p.until("The menu is off", "")
	cancel()
	must(t, <-ended)
}

// TestQuiet has a serial line left alone while nothing changes.
func TestQuiet(t *testing.T) {
	p := newPty(t)
	tt, err := openTerminal(p.side, p.side)
	must(t, err)
	c := &console{m: room(t), t: tt}
	s := &state{name: "n1", clock: "12:00"}
	c.show(s)
	p.until("n1", "")
	p.until("Keys", "")
	for i := range 5 {
		c.show(&state{name: "n1", clock: fmt.Sprintf("12:%02d", i)})
		c.show(&state{name: "n2"}) // too soon
	}
	c.at = c.at.Add(-QuietFor)
	c.show(&state{name: "n3"})
	if before := p.until("n3", ""); strings.Contains(before, "== Lunar ==\r\nNode      n1") || strings.Contains(before, "n2") {
		t.Errorf("printed %q", before)
	}
}

func TestNoTerminal(t *testing.T) {
	f, err := os.Open(os.DevNull)
	must(t, err)
	defer f.Close()
	if err := Run(t.Context(), room(t), f, f); !errors.Is(err, ErrNoTerminal) {
		t.Error(err)
	}
}

func TestRootHasPassword(t *testing.T) {
	for text, want := range map[string]bool{"root:*:1::\n": false, "root:!:1::\n": false, "root::1::\n": false, "a:$6$x:1\nroot:$y$j9T$x:1::\n": true, "": false} {
		file := filepath.Join(t.TempDir(), "shadow")
		must(t, os.WriteFile(file, []byte(text), 0o600))
		if rootHasPassword(file) != want {
			t.Errorf("%q", text)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
