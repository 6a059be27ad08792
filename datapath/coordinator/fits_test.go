package coordinator_test

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"lunar/datapath/coordinator"
	"lunar/datapath/device/loopdev"
)

// A LUN that someone made smaller than the file system is refused in words, and mounts when it has its
// size again.
func TestShrunkDeviceIsRefused(t *testing.T) {
	for _, fs := range fileSystems {
		t.Run(string(fs), func(t *testing.T) {
			d := format(t, fs, 400*mib, loopdev.Options{})
			limit(t, d.Path, 300*mib)
			if _, err := coordinator.Open(ctx, d, coordinator.Options{Epoch: 1}); !errors.Is(err, coordinator.ErrShrunk) {
				t.Fatal(err)
			}
			limit(t, d.Path, 0)
			mountAt(t, d, 1)
		})
	}
}

// limit makes a loop device smaller than its file; 0 ends that.
func limit(t *testing.T, path string, size uint64) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := unix.IoctlLoopGetStatus64(int(f.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	info.Sizelimit = size
	if err := unix.IoctlLoopSetStatus64(int(f.Fd()), info); err != nil {
		t.Fatal(err)
	}
}

func TestFormatOfTinyDevice(t *testing.T) {
	d := openDevice(t, loopdev.Scratch(t, 64*mib, loopdev.Options{}).Path)
	err := coordinator.Format(ctx, d, coordinator.FormatOptions{})
	if !errors.Is(err, coordinator.ErrSize) {
		t.Fatal(err)
	}
}
