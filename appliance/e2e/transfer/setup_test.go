package transfer

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lunar/appliance/e2e/lab"
)

const (
	mib       = int64(1) << 20
	testLimit = 2 * time.Minute
)

// programs is the folder of lunard and lunarctl; TestMain sets it.
var programs string

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(runTests(m))
}

func runTests(m *testing.M) int {
	if testing.Short() || os.Geteuid() != 0 {
		return m.Run()
	}
	dir, done, err := lab.Programs(context.Background())
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer done()
	programs = dir
	return m.Run()
}

func openLab(t *testing.T) (context.Context, *lab.Lab) {
	t.Helper()
	if testing.Short() || os.Geteuid() != 0 {
		t.Skip("needs root: loop devices and mounts")
	}
	for _, tool := range []string{"qemu-img", "mkfs.xfs", "mkfs.ext4"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%v: run appliance/e2e/packages.sh client", err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), testLimit)
	dir, err := os.MkdirTemp("", "e2e") // t.TempDir's path is too long for a unix socket
	check(t, err)
	l, err := lab.Open(dir, programs)
	check(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			showLogs(t, dir)
		}
		cancel()
		if err := l.Close(); err != nil {
			t.Errorf("clean up: %v", err)
		}
		_ = os.RemoveAll(dir)
	})
	return ctx, l
}

func showLogs(t *testing.T, dir string) {
	logs, _ := filepath.Glob(filepath.Join(dir, "*.log"))
	for _, path := range logs {
		text, _ := os.ReadFile(path)
		t.Logf("%s:\n%s", filepath.Base(path), text[max(0, len(text)-4<<10):])
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// ctl runs lunarctl, which must succeed.
func ctl(ctx context.Context, t *testing.T, n *lab.Lunard, args ...string) string {
	t.Helper()
	out, err := n.Ctl(ctx, args...)
	check(t, err)
	return out
}

// refused runs lunarctl, which must fail with all of words in its message.
func refused(ctx context.Context, t *testing.T, n *lab.Lunard, args []string, words ...string) {
	t.Helper()
	out, err := n.Ctl(ctx, args...)
	if err == nil {
		t.Errorf("lunarctl %s: not refused, it printed %q", args, out)
		return
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("lunarctl %s: %v: want a word about %q", args, err, word)
		}
	}
}

func run(ctx context.Context, t *testing.T, args ...string) {
	t.Helper()
	if out, err := lab.Run(ctx, args...); err != nil {
		t.Fatalf("%s: %v\n%s", args, err, out)
	}
}

// disk is a raw file with a real file system, made by mkfs, and data in it; most of it is holes.
func disk(ctx context.Context, t *testing.T, l *lab.Lab, size int64) string {
	t.Helper()
	path, err := l.RandomFile("data.bin", 24*mib, 5)
	check(t, err)
	folder := l.Path("folder")
	check(t, os.Mkdir(folder, 0o700))
	check(t, os.Rename(path, filepath.Join(folder, "data.bin")))
	raw := l.Path("disk.raw")
	run(ctx, t, "mkfs.ext4", "-q", "-F", "-d", folder, raw, fmt.Sprint(size/1024)+"k")
	return raw
}

// volume makes a node's device its volume.
func volume(ctx context.Context, t *testing.T, l *lab.Lab, n *lab.Lunard, name, fs string, size int64) {
	t.Helper()
	device, err := l.Loop(name+".lun", size)
	check(t, err)
	ctl(ctx, t, n, "volume", "add", device.Path, "--name", name, "--format", fs)
}
