package hook

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// crasher, set in the environment to a state directory, makes the test binary a daemon that begins a hook, with the
// command lines in the arguments, and waits for its death.
const crasher = "LUNAR_TEST_HOOK_CRASHER"

func TestMain(m *testing.M) {
	Main()
	if dir := os.Getenv(crasher); dir != "" {
		crash(dir, os.Args[1], os.Args[2])
	}
	_ = os.Setenv("GORACE", "atexit_sleep_ms=0") // of the keepers
	goleak.VerifyTestMain(m)
}

func crash(dir, before, after string) {
	k, err := Start(context.Background(), dir, Spec{Before: before, After: after, Limit: time.Minute}, job)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println(k.cmd.Process.Pid)
	time.Sleep(time.Hour)
}

var job = Job{Volume: "V", Image: "V/a.img", Snapshot: "monday"}

// place is a state directory, and a file to which hooks write.
type place struct {
	t         *testing.T
	dir, file string
}

func newPlace(t *testing.T) *place {
	t.Helper()
	dir := t.TempDir()
	return &place{t, filepath.Join(dir, "hooks"), filepath.Join(dir, "told")}
}

// says is a command line that writes a line.
func (p *place) says(words string) string { return fmt.Sprintf("echo %s >>%s", words, p.file) }

func (p *place) wants(lines ...string) {
	p.t.Helper()
	got, _ := os.ReadFile(p.file)
	if want := strings.Join(lines, "\n") + "\n"; string(got) != want {
		p.t.Errorf("the hooks wrote %q, want %q", got, want)
	}
}

// empty wants nothing of a hook to be left.
func (p *place) empty() {
	p.t.Helper()
	left, err := os.ReadDir(p.dir)
	if err != nil || len(left) != 0 {
		p.t.Errorf("left: %v %v", left, err)
	}
}

func (p *place) start(s Spec) (*Keeper, error) {
	if s.Limit == 0 {
		s.Limit = 30 * time.Second
	}
	return Start(p.t.Context(), p.dir, s, job)
}

func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	for until := time.Now().Add(time.Minute); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(until) {
			t.Fatal("in vain: ", what)
		}
	}
}

func TestCommandsRunAroundASnapshot(t *testing.T) {
	for _, taken := range []bool{true, false} {
		p := newPlace(t)
		all := "$LUNAR_VOLUME $LUNAR_IMAGE $LUNAR_SNAPSHOT $LUNAR_PHASE $LUNAR_RESULT"
		k, err := p.start(Spec{Before: p.says(all), After: p.says(all)})
		if err != nil {
			t.Fatal(err)
		}
		p.wants("V V/a.img monday before")
		if err := k.End(t.Context(), taken); err != nil {
			t.Error(err)
		}
		p.wants("V V/a.img monday before", "V V/a.img monday after "+map[bool]string{true: "taken", false: "failed"}[taken])
		p.empty()
	}
}

func TestFailedBefore(t *testing.T) {
	p := newPlace(t)
	_, err := p.start(Spec{Before: p.says("before") + "; echo no such database >&2; exit 3", After: p.says("after $LUNAR_RESULT")})
	if !errors.Is(err, ErrBefore) || !strings.Contains(err.Error(), "no such database") || !strings.Contains(err.Error(), "exit status 3") {
		t.Error(err)
	}
	p.wants("before", "after failed")
	p.empty()
}

// The limit ends what a command started, too.
func TestSlowBefore(t *testing.T) {
	p := newPlace(t)
	began := time.Now()
	_, err := p.start(Spec{Before: "echo $$ >" + p.file + ".pid; sleep 1000 | sleep 1001", After: p.says("after"), Limit: MinLimit})
	if !errors.Is(err, ErrBefore) || !strings.Contains(err.Error(), "limit of 1s") || time.Since(began) > 30*time.Second {
		t.Error(time.Since(began), err)
	}
	p.wants("after")
	p.empty()
	text, _ := os.ReadFile(p.file + ".pid")
	pid := strings.TrimSpace(string(text))
	eventually(t, "the command's processes are gone", func() bool { return exec.Command("pgrep", "-g", pid).Run() != nil })
}

func TestLateSnapshot(t *testing.T) {
	p := newPlace(t)
	k, err := p.start(Spec{Before: p.says("before"), After: p.says("after $LUNAR_RESULT"), Limit: MinLimit})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "what was stopped goes on", func() bool { text, _ := os.ReadFile(p.file); return strings.Contains(string(text), "after") })
	if err := k.End(t.Context(), true); !errors.Is(err, ErrLate) {
		t.Error(err)
	}
	p.wants("before", "after unknown")
	p.empty()
}

func TestFailedAfter(t *testing.T) {
	p := newPlace(t)
	k, err := p.start(Spec{After: "exit 9"})
	if err != nil {
		t.Fatal(err)
	}
	if err := k.End(t.Context(), true); !errors.Is(err, ErrAfter) || errors.Is(err, ErrLate) {
		t.Error(err)
	}
	p.empty()
}

// A caller that gives up leaves nothing stopped.
func TestCalledOff(t *testing.T) {
	p := newPlace(t)
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(100*time.Millisecond, cancel)
	_, err := Start(ctx, p.dir, Spec{Before: "sleep 1", After: p.says("after"), Limit: time.Minute}, job)
	if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	p.wants("after")
	p.empty()
}

// begun is a daemon of its own that has begun a hook.
func (p *place) begun(before, after string) (daemon *exec.Cmd, keeper int) {
	p.t.Helper()
	daemon = exec.Command("/proc/self/exe", before, after)
	daemon.Env = append(os.Environ(), crasher+"="+p.dir)
	out, err := daemon.StdoutPipe()
	if err == nil {
		err = daemon.Start()
	}
	if err == nil {
		_, err = fmt.Fscan(out, &keeper)
	}
	if err != nil {
		p.t.Fatal(err)
	}
	return daemon, keeper
}

func (p *place) recovered() (all []Recovered) {
	p.t.Helper()
	if err := Recover(p.t.Context(), p.dir, func(r Recovered) { all = append(all, r) }); err != nil {
		p.t.Fatal(err)
	}
	return all
}

// TestDaemonKilled kills the daemon between before and after: its keeper does what is left at once, and the next daemon
// hears of it.
func TestDaemonKilled(t *testing.T) {
	p := newPlace(t)
	daemon, _ := p.begun(p.says("before"), p.says("after $LUNAR_RESULT"))
	_ = daemon.Process.Kill()
	_ = daemon.Wait()
	eventually(t, "the hook after", func() bool { text, _ := os.ReadFile(p.file); return strings.Contains(string(text), "after") })
	p.wants("before", "after unknown")
	if all := p.recovered(); len(all) != 1 || all[0].Job != job || all[0].Err != nil {
		t.Error(all)
	}
	p.wants("before", "after unknown")
	p.empty()
	if all := p.recovered(); len(all) != 0 {
		t.Error("twice:", all)
	}
}

// TestKilledBoth kills the keeper too, as a power cut does.
func TestKilledBoth(t *testing.T) {
	p := newPlace(t)
	daemon, keeper := p.begun(p.says("before"), p.says("after $LUNAR_RESULT")+"; exit 4")
	kill(t, keeper)
	_ = daemon.Process.Kill()
	_ = daemon.Wait()
	p.wants("before")
	if all := p.recovered(); len(all) != 1 || !errors.Is(all[0].Err, ErrAfter) {
		t.Error(all)
	}
	p.wants("before", "after unknown")
	p.empty()
}

func kill(t *testing.T, pid int) {
	t.Helper()
	process, err := os.FindProcess(pid)
	if err == nil {
		err = process.Kill()
	}
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the end of "+strconv.Itoa(pid), func() bool {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		return err != nil || strings.Contains(string(text), ") Z ")
	})
}

// TestKeeperKilled kills the keeper alone.
func TestKeeperKilled(t *testing.T) {
	p := newPlace(t)
	k, err := p.start(Spec{Before: p.says("before"), After: p.says("after $LUNAR_RESULT")})
	if err != nil {
		t.Fatal(err)
	}
	kill(t, k.cmd.Process.Pid)
	if err := k.End(t.Context(), true); !errors.Is(err, ErrLate) {
		t.Error(err)
	}
	p.wants("before", "after unknown")
	p.empty()
}

func TestBadSpecs(t *testing.T) {
	good := Spec{After: "x", Limit: time.Second}
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
	for _, s := range []Spec{
		{Limit: time.Second}, {Before: "x"}, {Before: "x", Limit: time.Hour}, {Before: "x", Agent: "/a", Limit: time.Second},
		{Agent: "a", Limit: time.Second}, {Agent: "/" + strings.Repeat("a", maxPath), Limit: time.Second},
		{Before: "a\x00b", Limit: time.Second}, {After: strings.Repeat("a", MaxCommand+1), Limit: time.Second},
	} {
		if s.Validate() == nil {
			t.Errorf("%.50v passes", s)
		}
	}
}
