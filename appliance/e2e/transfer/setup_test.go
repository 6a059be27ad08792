package transfer

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lunar/appliance/e2e/lab"
	"lunar/appliance/e2e/lab/labtest"
)

const (
	mib       = int64(1) << 20
	testLimit = 2 * time.Minute
)

func TestMain(m *testing.M) { labtest.Main(m) }

func openLab(t *testing.T) (context.Context, *lab.Lab) {
	t.Helper()
	return labtest.Open(t, testLimit, "qemu-img", "mkfs.xfs", "mkfs.ext4")
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
