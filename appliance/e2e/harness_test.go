package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"lunar/appliance/e2e/lab"
	"lunar/appliance/e2e/lab/labtest"
)

const (
	iqn       = "iqn.2026-01.lunar.test:e2e"
	testLimit = 3 * time.Minute // of one test
	mib       = int64(1) << 20
)

func TestMain(m *testing.M) { labtest.Main(m) }

func openLab(t *testing.T) (context.Context, *lab.Lab) {
	t.Helper()
	return labtest.Open(t, testLimit, "qemu-img", "qemu-io", "qemu-storage-daemon", "iscsi-inq", "mkfs.xfs", "mkfs.ext4", "fio")
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
