package guard

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

const childMark = "LUNAR_GUARD_TEST_CHILD"

func TestMain(m *testing.M) {
	Main()
	os.Setenv("GORACE", "atexit_sleep_ms=0") // else each child of the race detector ends a second late
	if os.Getenv(childMark) != "" {
		daemon()
		return
	}
	goleak.VerifyTestMain(m)
}

// daemon is a child of the test that has a guard and a deadline, which it does not renew.
func daemon() {
	g, err := Start(context.Background(), Options{})
	if err != nil {
		panic(err)
	}
	ahead, err := time.ParseDuration(os.Getenv(childMark))
	if err != nil {
		panic(err)
	}
	if err := g.Renew(Now() + ahead); err != nil {
		panic(err)
	}
	println("ready")
	time.Sleep(time.Hour)
}

// child starts a daemon with a deadline that far ahead; its and its guard's standard error is returned.
func child(t *testing.T, ahead string) (*exec.Cmd, *bufio.Reader) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), childMark+"="+ahead)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		io.Copy(io.Discard, r) // until the guard has ended too
		r.Close()
	})
	lines := bufio.NewReader(r)
	until(t, lines, "ready")
	return cmd, lines
}

func until(t *testing.T, lines *bufio.Reader, words string) string {
	t.Helper()
	for {
		line, err := lines.ReadString('\n')
		if strings.Contains(line, words) {
			return line
		}
		if err != nil {
			t.Fatalf("no %q before %v", words, err)
		}
	}
}

func TestKillsAStoppedDaemonAtItsDeadline(t *testing.T) {
	began := Now()
	cmd, lines := child(t, "400ms")
	if err := cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	until(t, lines, string(reasonDeadline))
	err := cmd.Wait()
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if s, ok := exit.Sys().(syscall.WaitStatus); !ok || s.Signal() != syscall.SIGKILL {
		t.Fatalf("ended by %v", err)
	}
	if took := Now() - began; took < 400*time.Millisecond {
		t.Fatal("killed before its deadline, after", took)
	}
	until(t, lines, "the daemon is gone")
}

// A daemon is stopped, and its guard dies before it can do anything: the kernel's timer is left.
func TestStoppedWithoutAGuard(t *testing.T) {
	const ahead, limit = 600 * time.Millisecond, 10 * time.Second
	began := Now()
	cmd, _ := child(t, ahead.String())
	if err := cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	killGuards(t, cmd.Process.Pid)
	late := time.AfterFunc(limit, func() { _ = cmd.Process.Kill() })
	defer late.Stop()
	_ = cmd.Wait()
	if took := Now() - began; took < ahead || took >= limit {
		t.Fatal("killed after", took)
	}
}

// killGuards ends the children of a process.
func killGuards(t *testing.T, pid int) {
	t.Helper()
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	killed := 0
	for _, f := range files {
		text, _ := os.ReadFile(f)
		for _, word := range strings.Fields(string(text)) {
			if n, err := strconv.Atoi(word); err == nil && unix.Kill(n, unix.SIGKILL) == nil {
				killed++
			}
		}
	}
	if killed != 1 {
		t.Fatalf("process %d had %d guards", pid, killed)
	}
}

func TestNoticesDeath(t *testing.T) {
	cmd, lines := child(t, "1h")
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	until(t, lines, string(reasonDied))
	until(t, lines, "the daemon is gone")
}

func launch(t *testing.T) *Guard {
	t.Helper()
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	g, err := Start(t.Context(), Options{Stderr: log})
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func TestEndsInOrder(t *testing.T) {
	g := launch(t)
	if g.Report().Locked && os.Geteuid() != 0 {
		t.Log("locked without being root")
	}
	t.Logf("%+v", g.Report())
	if err := unix.Kill(g.PID(), unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := g.Renew(Now() + time.Hour); err != nil {
		t.Fatal("after SIGTERM:", err)
	}
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-g.Done():
	default:
		t.Fatal("not done")
	}
}

func TestRefuses(t *testing.T) {
	g := launch(t)
	proc, err := os.Open("/proc")
	if err != nil {
		t.Fatal(err)
	}
	defer proc.Close()
	fd, err := unix.Open("/proc", unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	path := os.NewFile(uintptr(fd), "/proc")
	defer path.Close()
	for _, err := range []error{g.Add("V", proc), g.Add("V", path), g.Remove("V")} {
		if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "V") {
			t.Error(err)
		}
	}
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestTellsOfItsLoss(t *testing.T) {
	g := launch(t)
	if err := unix.Kill(g.PID(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-g.Done()
	if err := g.Forget("V"); !errors.Is(err, ErrLost) {
		t.Fatal(err)
	}
	if err := g.Remove("V"); err != nil {
		t.Fatal("it has no mount any more: ", err)
	}
	if err := g.Close(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Fatal(err)
	}
	// What comes late, as a session's renewal may, finds nothing to write to.
	g.Present(7)
	if err := errors.Join(g.Renew(Now()+time.Hour), g.release()); err != nil || g.Deadline() != 0 {
		t.Fatal(err)
	}
	if err := g.Disarm(); !errors.Is(err, ErrLost) {
		t.Fatal(err)
	}
}

func TestDeadlineNeverMovesBack(t *testing.T) {
	f, w, err := newWord()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	defer w.close()
	if was := w.renew(5); was != 0 {
		t.Fatal(was)
	}
	if was := w.renew(3); was != 5 || w.load() != 5 {
		t.Fatal(was, w.load())
	}
	other, err := mapWord(f)
	if err != nil {
		t.Fatal(err)
	}
	defer other.close()
	if w.renew(9); other.load() != 9 {
		t.Fatal("the other side has", other.load())
	}
	if err := f.Truncate(0); err == nil {
		t.Fatal("the shared page can be taken away")
	}
}

func TestWatchdog(t *testing.T) {
	var none *watchdog
	none.feed(1)
	if none.next(1) != 0 || none.disarm() != nil {
		t.Fatal("no watchdog is one")
	}
	name := filepath.Join(t.TempDir(), "watchdog")
	if _, err := openWatchdog(name, 9); err == nil {
		t.Fatal("opened what is not there")
	}
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := openWatchdog(name, 9); err == nil {
		t.Fatal("a plain file took a time-out")
	}
	w := &watchdog{file: f, every: 3 * time.Second}
	for _, now := range []time.Duration{10, 11, 12, 13, 16} {
		w.feed(now * time.Second)
	}
	if w.next(16*time.Second) != 19*time.Second {
		t.Fatal(w.next(16 * time.Second))
	}
	if err := w.disarm(); err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(name); string(got) != "V\x00\x00\x00" && string(got) != "\x00\x00\x00V" {
		t.Fatalf("%q", got)
	}
}

func TestOptionsValidate(t *testing.T) {
	for _, o := range []Options{{Watchdog: "/dev/watchdog"}, {Watchdog: "/dev/watchdog", WatchdogTimeout: 2500 * time.Millisecond}} {
		if _, err := Start(t.Context(), o); err == nil {
			t.Errorf("%+v", o)
		}
	}
}

// A daemon that has nothing mounted may let its deadline pass, once it has said so.
func TestDisarm(t *testing.T) {
	g := launch(t)
	for range 3 {
		if err := g.Renew(Now() + 100*time.Millisecond); err != nil {
			t.Fatal(err)
		}
		if err := g.Disarm(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(150 * time.Millisecond)
	}
	seen := Now() + time.Hour
	if err := g.Renew(seen); err != nil {
		t.Fatal(err)
	}
	if err := g.ask(request{Op: opDisarm, Seen: seen - 1}, -1); !errors.Is(err, ErrRefused) || g.word.load() != seen {
		t.Error("a deadline that was renewed meanwhile is gone:", err)
	}
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestServeRefuses(t *testing.T) {
	g := launch(t)
	for _, c := range []Credentials{{}, {Address: "127.0.0.1:0"}, {Address: "127.0.0.1:0", Revoked: make([]string, maxRevoked+1)}} {
		if err := g.Serve(c); err == nil {
			t.Errorf("%+v", c)
		}
	}
	if err := g.Watch("V", "/dev/null", 0); err == nil {
		t.Error("no block device is watched")
	}
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
}
