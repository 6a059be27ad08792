package device_test

import (
	"context"
	"errors"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lunar/datapath/device"
	"lunar/datapath/device/loopdev"
)

func open(t *testing.T, path string) *device.Device {
	t.Helper()
	d, err := device.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skip(err)
	}
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}

func TestGeometryAndIdentity(t *testing.T) {
	for _, block := range []uint32{512, 4096} {
		l := loopdev.Scratch(t, 64<<20, loopdev.Options{BlockSize: block})
		d := open(t, l.Path)
		size, err := d.Size()
		if err != nil || size != 64<<20 || d.LogicalBlock != int(block) || d.ReadOnly {
			t.Fatalf("size %d, block %d, read-only %v: %v", size, d.LogicalBlock, d.ReadOnly, err)
		}
		if !strings.HasPrefix(d.WWID, "file.") || d.WWIDSource == "" {
			t.Fatalf("WWID %q from %q", d.WWID, d.WWIDSource)
		}
		if again := open(t, l.Path); again.WWID != d.WWID {
			t.Fatalf("WWID changed from %s to %s", d.WWID, again.WWID)
		}
	}
}

func TestRefusesWhatIsNoDevice(t *testing.T) {
	if _, err := device.Open(t.TempDir()); !errors.Is(err, device.ErrNotBlock) {
		t.Fatalf("a folder: %v", err)
	}
	if _, err := device.Open("/dev/does-not-exist"); !errors.Is(err, unix.ENOENT) {
		t.Fatalf("nothing: %v", err)
	}
}

func TestProbeTellsWhatIsThere(t *testing.T) {
	for _, c := range []struct {
		typ  string
		make func(t *testing.T, dev string)
	}{
		{"", func(*testing.T, string) {}},
		{"xfs", func(t *testing.T, dev string) { run(t, "mkfs.xfs", "-q", "-L", "mine", dev) }},
		{"ext4", func(t *testing.T, dev string) { run(t, "mkfs.ext4", "-q", "-L", "mine", dev) }},
		{"ext2", func(t *testing.T, dev string) { run(t, "mkfs.ext2", "-q", dev) }},
		{"swap", func(t *testing.T, dev string) { run(t, "mkswap", dev) }},
		{"gpt", func(t *testing.T, dev string) { run(t, "sh", "-c", "echo label: gpt | sfdisk -q "+dev) }},
		{"mbr", func(t *testing.T, dev string) { run(t, "sh", "-c", "echo label: dos | sfdisk -q "+dev) }},
		{"data", func(t *testing.T, dev string) {
			run(t, "dd", "if=/dev/urandom", "of="+dev, "bs=4096", "count=1", "seek=7", "oflag=direct", "status=none")
		}},
	} {
		t.Run(c.typ, func(t *testing.T) {
			l := loopdev.Scratch(t, 320<<20, loopdev.Options{})
			c.make(t, l.Path)
			found, err := open(t, l.Path).Probe()
			if err != nil {
				t.Fatal(err)
			}
			has := slices.ContainsFunc(found, func(f device.Content) bool { return f.Type == c.typ })
			if has != (c.typ != "") || !has && len(found) > 0 {
				t.Fatalf("found %v", found)
			}
			if (c.typ == "xfs" || c.typ == "ext4") && (found[0].Label != "mine" || len(found[0].UUID) != 36) {
				t.Fatalf("label %q, UUID %q", found[0].Label, found[0].UUID)
			}
		})
	}
}

func TestInUse(t *testing.T) {
	l := loopdev.Scratch(t, 64<<20, loopdev.Options{})
	d := open(t, l.Path)
	if err := d.InUse(); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(l.Path, unix.O_RDONLY|unix.O_EXCL|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.InUse(); !errors.Is(err, device.ErrInUse) || !errors.Is(err, unix.EBUSY) {
		t.Fatalf("claimed: %v", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Millisecond)
	defer cancel()
	if err := d.WaitUnused(ctx); !errors.Is(err, device.ErrInUse) {
		t.Fatalf("wait: %v", err)
	}
	unix.Close(fd)
	if err := d.WaitUnused(context.Background()); err != nil {
		t.Fatal(err)
	}
}

func TestLimitCutsThePath(t *testing.T) {
	l := loopdev.Scratch(t, 64<<20, loopdev.Options{})
	if err := l.Limit(4096); err != nil {
		t.Fatal(err)
	}
	d := open(t, l.Path)
	if n, err := d.Size(); err != nil || n != 4096 {
		t.Fatal(n, err)
	}
	if err := d.ReadEnds(64 << 20); err == nil {
		t.Fatal("the far end was read through a cut path")
	}
	if err := l.Limit(0); err != nil {
		t.Fatal(err)
	}
	if err := d.ReadEnds(64 << 20); err != nil {
		t.Fatal(err)
	}
	if n, err := d.Size(); err != nil || n != 64<<20 {
		t.Fatal(n, err)
	}
	if err := d.Discard(0, 1<<20); err != nil {
		t.Fatal(err)
	}
}
