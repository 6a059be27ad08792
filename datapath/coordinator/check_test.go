package coordinator_test

import (
	"bytes"
	"context"
	"errors"
	"os/exec"
	"strings"
	"testing"
	"time"

	"lunar/datapath/coordinator"
	"lunar/datapath/device"
	"lunar/datapath/device/loopdev"
)

// damage breaks what a file system counts, as a bit that flipped on its way to the disk would.
func damage(t testing.TB, fs coordinator.FSType, d *device.Device) {
	t.Helper()
	cmd := exec.Command("debugfs", "-w", "-R", "set_bg 0 free_blocks_count 7", d.Path)
	if fs == coordinator.XFS {
		cmd = exec.Command("xfs_db", "-x", "-c", "agf 0", "-c", "write -d freeblks 17", "-c", "agi 0", "-c", "write -d freecount 3", d.Path)
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// A damaged file system is found, repaired, and clean; what it has is there.
func TestCheckFindsAndMendRepairs(t *testing.T) {
	for _, fs := range fileSystems {
		t.Run(string(fs), func(t *testing.T) {
			d := format(t, fs, 400<<20, loopdev.Options{})
			v := mountAt(t, d, 1)
			o := v.image(t, "a", 4*mib)
			o.write(t, pattern(4*mib, 1), 0)
			if _, err := coordinator.Check(ctx, d, func(string) {}); !errors.Is(err, device.ErrInUse) {
				t.Fatalf("a mounted volume: %v", err)
			}
			if err := v.Handover(ctx); err != nil {
				t.Fatal(err)
			}
			var steps []string
			told := func(s string) { steps = append(steps, s) }
			found, err := coordinator.Check(ctx, d, told)
			if err != nil || found.Damaged {
				t.Fatalf("a sound volume: %+v, %v", found, err)
			}
			damage(t, fs, d)
			if found, err = coordinator.Check(ctx, d, told); err != nil || !found.Damaged || len(found.Words) == 0 {
				t.Fatalf("a damaged volume: %+v, %v", found, err)
			}
			t.Logf("%q", found.Words)
			if found, err = coordinator.Mend(ctx, d, false, told); err != nil {
				t.Fatalf("%+v, %v", found, err)
			}
			if found, err = coordinator.Check(ctx, d, told); err != nil || found.Damaged {
				t.Fatalf("a repaired volume: %+v, %v", found, err)
			}
			if len(steps) < 10 || !strings.HasPrefix(steps[0], "P") {
				t.Errorf("%q", steps)
			}
			again := mountAt(t, d, 2).attach(t, "a")
			if !bytes.Equal(again.read(t, 0, 4*mib), pattern(4*mib, 1)) {
				t.Error("an image has another content")
			}
		})
	}
}

// A check ends with its context; a log that was not replayed is not repaired over, but for force.
func TestCheckIsEndedAndLogsAreKept(t *testing.T) {
	d := format(t, coordinator.XFS, 400<<20, loopdev.Options{})
	short, cancel := context.WithCancel(ctx)
	began := time.Now()
	_, err := coordinator.Check(short, d, func(string) { cancel() })
	if !errors.Is(err, context.Canceled) || time.Since(began) > 10*time.Second {
		t.Fatal(err)
	}
	v := mountAt(t, d, 1)
	v.image(t, "a", mib).write(t, pattern(mib, 1), 0)
	if err := v.Shutdown(); err != nil {
		t.Fatal(err)
	}
	_ = v.Handover(ctx)
	if _, err := coordinator.Mend(ctx, d, false, func(string) {}); !errors.Is(err, coordinator.ErrDirtyLog) {
		t.Fatal(err)
	}
	if err := coordinator.Replay(ctx, d, false); err != nil {
		t.Fatal(err)
	}
	if _, err := coordinator.Mend(ctx, d, false, func(string) {}); err != nil {
		t.Fatal(err)
	}
	o := mountAt(t, d, 2).attach(t, "a")
	if !bytes.Equal(o.read(t, 0, mib), pattern(mib, 1)) {
		t.Error("what was acknowledged is gone")
	}
}
