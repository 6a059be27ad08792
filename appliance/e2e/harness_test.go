package e2e

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
	iqn       = "iqn.2026-01.lunar.test:e2e"
	testLimit = 3 * time.Minute // of one test
	mib       = int64(1) << 20
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

// openLab gives the test a lab, or skips it where there are no means.
func openLab(t *testing.T) (context.Context, *lab.Lab) {
	t.Helper()
	if testing.Short() {
		t.Skip("end-to-end tests are left out with -short")
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root: loop devices and mounts")
	}
	for _, tool := range []string{"qemu-img", "qemu-io", "qemu-storage-daemon", "iscsi-inq", "mkfs.xfs", "mkfs.ext4", "fio"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%v: run appliance/e2e/packages.sh client", err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), testLimit)
	dir, err := os.MkdirTemp("", "e2e") // t.TempDir's path is too long for a unix socket
	if err != nil {
		t.Fatal(err)
	}
	l, err := lab.Open(dir, programs)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			showLogs(t, dir)
		}
		cancel()
		if err := l.Close(); err != nil {
			t.Errorf("clean up: %v", err)
		}
		os.RemoveAll(dir)
	})
	return ctx, l
}

// showLogs prints the end of each program's output.
func showLogs(t *testing.T, dir string) {
	logs, _ := filepath.Glob(filepath.Join(dir, "*.log"))
	for _, path := range logs {
		text, _ := os.ReadFile(path)
		const most = 4 << 10
		t.Logf("%s:\n%s", filepath.Base(path), text[max(0, len(text)-most):])
	}
}

// served is a node with one volume and one thin image, exported as LUN 0 of iqn.
type served struct {
	lab    *lab.Lab
	device *lab.Loop
	node   *lab.Lunard
	url    string
}

// serve starts a node that serves an image of imageSize bytes from a device of deviceSize bytes.
func serve(t *testing.T, deviceSize, imageSize int64) (context.Context, *served) {
	t.Helper()
	ctx, l := openLab(t)
	s := &served{lab: l, device: loop(t, l, "lun.img", deviceSize), node: start(ctx, t, l)}
	export, err := s.node.ServeImage(ctx, s.device.Path, fmt.Sprint(imageSize), iqn)
	if err != nil {
		t.Fatal(err)
	}
	s.url = export.URLs[0]
	return ctx, s
}

func loop(t *testing.T, l *lab.Lab, name string, size int64) *lab.Loop {
	t.Helper()
	device, err := l.Loop(name, size)
	if err != nil {
		t.Fatal(err)
	}
	return device
}

func start(ctx context.Context, t *testing.T, l *lab.Lab) *lab.Lunard {
	t.Helper()
	node, err := l.Lunard(ctx, lab.Config{})
	if err != nil {
		t.Fatal(err)
	}
	return node
}

// ctl runs lunarctl, which must succeed.
func ctl(ctx context.Context, t *testing.T, node *lab.Lunard, line string) string {
	t.Helper()
	out, err := node.Ctl(ctx, strings.Fields(line)...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// refused runs lunarctl, which must fail with all of words in its message.
func refused(ctx context.Context, t *testing.T, node *lab.Lunard, line string, words ...string) {
	t.Helper()
	out, err := node.Ctl(ctx, strings.Fields(line)...)
	if err == nil {
		t.Errorf("lunarctl %s: not refused, it printed %q", line, out)
		return
	}
	for _, word := range words {
		if !strings.Contains(strings.ToLower(err.Error()), strings.ToLower(word)) {
			t.Errorf("lunarctl %s: %v: want a word about %q", line, err, word)
		}
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// random makes a source file with random regions in it.
func random(t *testing.T, l *lab.Lab, name string, size int64, regions int) string {
	t.Helper()
	path, err := l.RandomFile(name, size, regions)
	check(t, err)
	return path
}

func checksum(t *testing.T, path string) string {
	t.Helper()
	sum, err := lab.Checksum(path)
	check(t, err)
	return sum
}
