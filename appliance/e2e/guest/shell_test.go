package guest

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// realShell is a bash of the host at the other end of a socket pair.
func realShell(t *testing.T) *Shell {
	t.Helper()
	ours, theirs := net.Pipe()
	bash := exec.Command("bash", "--noprofile", "--norc")
	bash.Stdin, bash.Stdout = theirs, theirs
	bash.WaitDelay = time.Second
	if err := bash.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = ours.Close()
		_ = theirs.Close()
		_ = bash.Process.Kill()
		_ = bash.Wait()
	})
	s := NewShell(ours)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := s.Greet(ctx); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestShellRun(t *testing.T) {
	s := realShell(t)
	if err := s.Export(t.Context(), "WHO", "it's $me"); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		script, output string
		limit          time.Duration
		status         int
	}{
		{`echo "$WHO"; exit 7`, "it's $me\n", time.Minute, 7},
		{`printf '@@%d:%d@@' 0 0; echo err >&2`, "@@0:0@@err\n", time.Minute, 0},
		{"for i in 1 2; do\n echo $i\ndone; cat", "1\n2\n", time.Minute, 0},
		{`echo begun; sleep 60`, "begun\n", time.Second, StatusTimeout},
		{`head -c 300000 /dev/zero | tr '\0' x`, strings.Repeat("x", 300000), time.Minute, 0},
	} {
		status, output, err := s.Run(t.Context(), c.limit, c.script)
		if err != nil || status != c.status || output != c.output {
			t.Errorf("%s: %d, %.80q, %v; want %d, %.80q", c.script, status, output, err, c.status, c.output)
		}
	}
}

// TestShellSilence proves that a console without a shell ends a greeting in time, and that cancelling ends a command.
func TestShellSilence(t *testing.T) {
	ours, theirs := net.Pipe()
	defer ours.Close()
	defer theirs.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		buf := make([]byte, 4096)
		for {
			if _, err := theirs.Read(buf); err != nil {
				return
			}
		}
	}()
	s := NewShell(ours)
	if err := s.Greet(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("greeting: %v", err)
	}
	if _, _, err := s.Run(ctx, time.Minute, "true"); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("command: %v", err)
	}
	ours.Close()
	<-drained
}

func TestNormalise(t *testing.T) {
	for _, c := range []struct{ output, keep, want string }{
		{"", "", ""},
		{"  Unit serial   number: 6001405abcdef0123456 \n\n", "", "Unit serial number: ID"},
		{"[2:0:0:1]  disk  LIO-ORG  /dev/sda\n", "", "[LUN 1] disk LIO-ORG DISK"},
		{"10.0.2.2:40001,1 iqn.2026-01.test.target:guest\n", "", "PORTAL,1 IQN"},
		{"iqn.2026-01.test.guest:b\n", "", "initiator b"},
		{"keep a\ndrop b\nkeep c\n", "^keep", "keep a; keep c"},
		{"took 3.25 s\n", "", "took #"},
	} {
		keep := lines(c.keep)
		if got := normalise(c.output, keep); got != c.want {
			t.Errorf("%q: got %q, want %q", c.output, got, c.want)
		}
	}
	if long := normalise(strings.Repeat("é", lineLimit), nil); len(long) > lineLimit+8 || !strings.HasSuffix(long, " …") {
		t.Errorf("%d bytes: %q", len(long), long[len(long)-10:])
	}
}

// TestReservedWant proves that the expectation of each reservation type refuses the others' behaviour.
func TestReservedWant(t *testing.T) {
	exclusive := "0: b unregistered: read conflict, write conflict; b registered: read conflict, write conflict; a: read ok, write ok; released: b write ok"
	for kind, want := range reservedWant {
		if got := want.MatchString(exclusive); got != (kind == "3") {
			t.Errorf("type %s accepts Exclusive Access: %v", kind, got)
		}
	}
}

func FuzzNormalise(f *testing.F) {
	f.Add("Unit serial number: 6001405abcdef0123456\n/dev/sda 3.2 ms")
	f.Fuzz(func(t *testing.T, output string) {
		line := normalise(output, nil)
		if strings.Contains(line, "\n") || len(line) > lineLimit+len(" …") {
			t.Errorf("%q", line)
		}
	})
}
