package main

import (
	"bytes"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lunar/appliance/api"
)

func TestJobLine(t *testing.T) {
	now := time.Now()
	for _, c := range []struct {
		job  api.Job
		want string
	}{
		{api.Job{Object: "V/a", Done: 1 << 29, Total: 2 << 30, Since: now.Add(-9 * time.Second)}, "V/a: 25% of 2GiB, 9s"},
		{api.Job{Object: "/dev/sdb", Since: now}, "/dev/sdb: under way, 0s"},
	} {
		if got := jobLine(&c.job, now); got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
}

// slowNode takes as long for an image as the terminal takes to show its progress.
func slowNode(t *testing.T, shown <-chan struct{}) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/jobs", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, `[{"object":"V/other"},{"object":"V/a","done":50,"total":100,"since":%q}]`, time.Now().Format(time.RFC3339))
	})
	mux.HandleFunc("POST /v1/images", func(w http.ResponseWriter, _ *http.Request) {
		select {
		case <-shown:
		case <-time.After(5 * time.Second):
		}
		fmt.Fprint(w, `{"volume":"V","path":"a","size":100}`)
	})
	server := &http.Server{Handler: mux}
	var wg sync.WaitGroup
	wg.Go(func() { _ = server.Serve(l) })
	t.Cleanup(func() { _ = server.Close(); wg.Wait() })
	return socket
}

func TestProgressOnTerminal(t *testing.T) {
	master, terminal := openTerminal(t)
	shown := make(chan struct{})
	var reader sync.WaitGroup
	reader.Go(func() {
		var seen []byte
		for buf := make([]byte, 256); ; {
			n, err := master.Read(buf)
			if err != nil {
				return
			}
			if seen = append(seen, buf[:n]...); strings.Contains(string(seen), "V/a: 50% of 100B") {
				close(shown)
				return
			}
		}
	})
	var out bytes.Buffer
	c := &cli{in: strings.NewReader(""), out: &out, err: terminal}
	if code := c.run(t.Context(), []string{"--socket", slowNode(t, shown), "image", "create", "V/a", "--size", "100", "--thick"}); code != 0 {
		t.Errorf("exit code %d", code)
	}
	_ = terminal.Close()
	reader.Wait()
	select {
	case <-shown:
	default:
		t.Error("the terminal shows no progress")
	}
	if !strings.HasPrefix(out.String(), "V/a: ") || strings.Contains(out.String(), "%") {
		t.Errorf("standard output %q", out.String())
	}
}

// openTerminal makes a pseudo-terminal, pty(7).
func openTerminal(t *testing.T) (master, terminal *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("no pseudo-terminals here: %v", err)
	}
	t.Cleanup(func() { _ = master.Close() })
	number, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	terminal, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("no pseudo-terminals here: %v", err)
	}
	return master, terminal
}
