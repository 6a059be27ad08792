package daemon

import (
	"bytes"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lunar/appliance/api"
)

// process is a lunard of its own, for what needs signals.
type process struct {
	t      *testing.T
	dir    string
	portal string
	cmd    *exec.Cmd
	ended  chan error
	log    *safeBuffer
}

// safeBuffer may be read while a process writes.
type safeBuffer struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func newProcess(t *testing.T) *process {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: io_uring's locked memory")
	}
	dir, err := os.MkdirTemp("", "lunard")
	must(t, err)
	p := &process{t: t, dir: dir, portal: freePort(t)}
	text := "state_dir = \"" + dir + "/state\"\nsocket = \"" + dir + "/sock\"\nmetrics.listen = \"\"\n" +
		"iscsi.portals = [\"" + p.portal + "\"]\nengine.buffer_pool_mib = 16\nengine.rings = 1\n"
	must(t, os.WriteFile(filepath.Join(dir, "c.toml"), []byte(text), 0o600))
	t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
	return p
}

// start runs lunard; args come before its own, as a wrapper's.
func (p *process) start(env []string, files []*os.File, wrapper ...string) {
	p.t.Helper()
	args := slices.Concat(wrapper, []string{os.Args[0], "--config", filepath.Join(p.dir, "c.toml")})
	p.cmd = exec.Command(args[0], args[1:]...)
	p.cmd.Env = append(append(os.Environ(), asLunard+"=1"), env...)
	p.cmd.ExtraFiles = files
	p.log = &safeBuffer{}
	p.cmd.Stderr = p.log
	must(p.t, p.cmd.Start())
	p.ended = make(chan error, 1)
	go func() { p.ended <- p.cmd.Wait() }()
	p.t.Cleanup(func() {
		if p.cmd.ProcessState == nil {
			_ = p.cmd.Process.Kill()
		}
		if p.t.Failed() {
			p.t.Log(p.log.String())
		}
	})
	client := api.NewClient(filepath.Join(p.dir, "sock"))
	defer client.Close()
	eventually(p.t, 20*time.Second, "the node serves", func() bool { return strings.Contains(p.log.String(), "Serving ") })
}

func (p *process) client() *api.Client { return api.NewClient(filepath.Join(p.dir, "sock")) }

// end waits for the process and returns how it ended.
func (p *process) end(within time.Duration) error {
	p.t.Helper()
	within = max(within, patience)
	select {
	case err := <-p.ended:
		return err
	case <-time.After(within):
		p.t.Fatalf("still there after %v", within)
	}
	return nil
}

func TestTerminate(t *testing.T) {
	p := newProcess(t)
	p.start(nil, nil)
	must(t, p.cmd.Process.Signal(unix.SIGTERM))
	must(t, p.end(10*time.Second))
}

// initiator runs qemu-io, which does what comes on its standard input.
func (p *process) initiator(commands string) *exec.Cmd {
	p.t.Helper()
	cmd := exec.Command("qemu-io", "-f", "raw", "iscsi://"+p.portal+"/"+iqn+"/0")
	in, err := cmd.StdinPipe()
	must(p.t, err)
	must(p.t, cmd.Start())
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = io.WriteString(in, commands) })
	p.t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait(); wg.Wait() })
	return cmd
}

// TestTerminateWithInitiators stops a daemon with one initiator that writes and one that does not
// answer any more. The second signal does not wait for that one.
func TestTerminateWithInitiators(t *testing.T) {
	for _, tt := range []struct {
		name    string
		signals int
	}{{"once", 1}, {"twice", 2}} {
		t.Run(tt.name, func(t *testing.T) {
			dev := disk(t)
			p := newProcess(t)
			p.start(nil, nil)
			c := p.client()
			defer c.Close()
			(&bench{t: t, client: c}).served(dev)
			silent := p.initiator("read 0 4k\n")
			p.initiator(strings.Repeat("write -P 1 0 1M\n", 100000))
			eventually(t, 10*time.Second, "both are logged in and one writes", func() bool {
				s, err := c.Sessions(t.Context())
				return err == nil && len(s.Sessions) == 2 && s.Sessions[0].Written+s.Sessions[1].Written > 8<<20
			})
			must(t, silent.Process.Signal(unix.SIGSTOP))
			for range tt.signals {
				must(t, p.cmd.Process.Signal(unix.SIGTERM))
				time.Sleep(100 * time.Millisecond)
			}
			began := time.Now()
			must(t, p.end(patience))
			t.Logf("ended %v after the last signal", time.Since(began))
			if cut := strings.Contains(p.log.String(), "initiators were cut off"); cut != (tt.signals == 2) {
				t.Errorf("initiators were cut off: %v", cut)
			}
			if out, err := exec.Command("xfs_repair", "-n", dev).CombinedOutput(); err != nil {
				t.Fatalf("xfs_repair: %v: %s", err, out)
			}
		})
	}
}

func TestKilledDaemonLosesNothing(t *testing.T) {
	dev := disk(t)
	p := newProcess(t)
	p.start(nil, nil)
	c := p.client()
	defer c.Close()
	b := &bench{t: t, client: c}
	b.served(dev)
	must(t, qemuIO(t, p.portal, "", "write -f -P 6 3M 512k", "write -P 8 9M 64k", "flush"))
	must(t, p.cmd.Process.Kill())
	_ = p.end(10 * time.Second)
	p.start(nil, nil)
	must(t, qemuIO(t, p.portal, "", "read -P 6 3M 512k", "read -P 8 9M 64k", "read -P 0 20M 64k"))
	must(t, p.cmd.Process.Signal(unix.SIGTERM))
	must(t, p.end(20*time.Second))
}

func TestNotify(t *testing.T) {
	p := newProcess(t)
	socket := filepath.Join(p.dir, "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	must(t, err)
	defer l.Close()
	got := &safeBuffer{}
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, 4096)
		for {
			n, err := l.Read(buf)
			if err != nil {
				return
			}
			_, _ = got.Write(append(buf[:n:n], '\n'))
		}
	})
	defer wg.Wait()
	defer l.Close()
	p.start([]string{"NOTIFY_SOCKET=" + socket, "WATCHDOG_USEC=900000"}, nil)
	says := func(what string) func() bool { return func() bool { return strings.Contains(got.String(), what) } }
	eventually(t, 30*time.Second, "READY", says("READY=1"))
	eventually(t, 30*time.Second, "a status", says("STATUS=Serving 0 volumes"))
	eventually(t, 30*time.Second, "three signs of life", func() bool { return strings.Count(got.String(), "WATCHDOG=1") >= 3 })
	must(t, p.cmd.Process.Signal(unix.SIGTERM))
	must(t, p.end(10*time.Second))
	eventually(t, 30*time.Second, "STOPPING", says("STOPPING=1"))
}

func TestSocketActivation(t *testing.T) {
	p := newProcess(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	file, err := l.(*net.TCPListener).File()
	must(t, err)
	defer file.Close()
	p.start([]string{"LISTEN_FDS=1", "LISTEN_FDNAMES=iscsi"}, []*os.File{file}, "sh", "-c", `LISTEN_PID=$$ exec "$0" "$@"`)
	if !strings.Contains(p.log.String(), "on "+l.Addr().String()) || strings.Contains(p.log.String(), p.portal) {
		t.Fatalf("it does not listen on %s", l.Addr())
	}
	must(t, p.cmd.Process.Signal(unix.SIGTERM))
	must(t, p.end(10*time.Second))
}

func TestCommandLine(t *testing.T) {
	dir := t.TempDir()
	bad := filepath.Join(dir, "bad.toml")
	must(t, os.WriteFile(bad, []byte("[iscsi]\nprotals = []\n"), 0o600))
	good := filepath.Join(dir, "good.toml")
	must(t, os.WriteFile(good, nil, 0o600))
	tests := []struct {
		args []string
		code int
		says string
	}{
		{[]string{"--version"}, exitOK, "lunard devel"},
		{[]string{"--help"}, exitOK, "-state-dir"},
		{[]string{"--colour"}, exitUsage, "not defined"},
		{[]string{"extra"}, exitUsage, "unexpected argument"},
		{[]string{"--check", "--config", good}, exitOK, "valid"},
		{[]string{"--check", "--config", bad}, exitFailed, "bad.toml:2: iscsi.protals: unknown key"},
		{[]string{"--check", "--config", filepath.Join(dir, "none")}, exitFailed, "no such file"},
		{[]string{"--config", bad}, exitConfig, "bad.toml:2: iscsi.protals: unknown key"},
		{[]string{"--accept-database", "--config", good, "--state-dir", dir}, exitFailed, "cluster.endpoints"},
		{[]string{"--check", "--config", good, "--state-dir", "relative"}, exitFailed, "absolute"},
	}
	for _, tt := range tests {
		var out bytes.Buffer
		if code := Command(tt.args, &out, &out); code != tt.code || !strings.Contains(out.String(), tt.says) {
			t.Errorf("%v: exit code %d, %s", tt.args, code, out.String())
		}
	}
}
