package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"lunar/appliance/e2e/lab"
)

// TestFullVolume fills a volume through the LUN: the initiator gets SPACE ALLOCATION FAILED WRITE
// PROTECT, which QEMU calls "No space left on device", within its time; what was written stays.
func TestFullVolume(t *testing.T) {
	ctx, s := serve(t, 400*mib, 2048*mib)
	_, err := lab.QemuIO(ctx, s.url, "write -P 0x11 0 8M", "flush")
	check(t, err)
	commands := make([]string, 0, 128)
	for at := int64(1); at < 128; at++ {
		commands = append(commands, "write -P 0x22 "+megabytes(at*8)+" 8M")
	}
	out, err := lab.QemuIO(ctx, s.url, commands...)
	if text := out + errorText(err); !strings.Contains(text, "No space left on device") {
		t.Errorf("no ENOSPC from a full volume: %.2000s", text)
	}
	_, err = lab.QemuIO(ctx, s.url, "read -P 0x11 0 8M")
	check(t, err)
	_, err = lab.QemuIO(ctx, s.url, "write -P 0x33 0 8M", "flush", "read -P 0x33 0 8M")
	check(t, err) // blocks that exist can be written on a full volume
}

func megabytes(n int64) string { return fmt.Sprintf("%dM", n) }

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// TestForeignDevice refuses devices that hold something else, or are in use, and changes no byte of them.
func TestForeignDevice(t *testing.T) {
	ctx, l := openLab(t)
	node := start(ctx, t, l)
	for _, c := range []struct {
		name string
		make func(device string) []string
	}{
		{"swap", func(device string) []string { return []string{"mkswap", device} }},
		{"ext4 to be formatted", func(device string) []string { return []string{"mkfs.ext4", "-q", device} }},
		{"partitions", func(device string) []string { return []string{"sh", "-c", "echo 2048,, | sfdisk -q " + device} }},
	} {
		t.Run(c.name, func(t *testing.T) {
			device := loop(t, l, strings.ReplaceAll(c.name, " ", "-")+".img", 320*mib)
			_, err := lab.Run(ctx, c.make(device.Path)...)
			check(t, err)
			before := checksum(t, device.Path)
			refused(ctx, t, node, "volume add "+device.Path+" --format xfs", "--force")
			if c.name == "swap" {
				refused(ctx, t, node, "volume add "+device.Path)
			}
			if checksum(t, device.Path) != before {
				t.Error("the refused device was changed")
			}
		})
	}
}

// TestMountedDevice refuses a device that this machine has mounted.
func TestMountedDevice(t *testing.T) {
	ctx, l := openLab(t)
	node := start(ctx, t, l)
	device := loop(t, l, "mounted.img", 320*mib)
	_, err := l.MountXFS(ctx, device, "mnt")
	check(t, err)
	refused(ctx, t, node, "volume add "+device.Path, "mounted")
	refused(ctx, t, node, "volume add "+device.Path+" --format xfs --force", "mounted")
}

// TestExistingFileSystem takes an XFS and an ext4 with files as volumes and leaves the files as they are.
func TestExistingFileSystem(t *testing.T) {
	for _, fs := range []string{"xfs", "ext4"} {
		t.Run(fs, func(t *testing.T) {
			ctx, l := openLab(t)
			node := start(ctx, t, l)
			device := loop(t, l, "old.img", 512*mib)
			_, err := lab.Run(ctx, "mkfs."+fs, "-q", device.Path)
			check(t, err)
			want := writeFiles(t, l, device, fs)
			ctl(ctx, t, node, "volume add "+device.Path+" --name Old")
			ctl(ctx, t, node, "target create "+iqn)
			ctl(ctx, t, node, "target map "+iqn+" Old/vm/disk.img --lun 0")
			url := node.Export(iqn, 0).URLs[0]
			_, err = lab.QemuIO(ctx, url, "read -P 0x41 0 1M", "write -P 0x42 2M 1M", "flush")
			check(t, err)
			ctl(ctx, t, node, "target unmap "+iqn+" 0")
			ctl(ctx, t, node, "volume eject Old")
			compareFiles(t, l, device, fs, want)
		})
	}
}

// writeFiles puts a file and an image of 4 MiB of 'A' on the device; it returns the file's checksum.
func writeFiles(t *testing.T, l *lab.Lab, device *lab.Loop, fs string) string {
	t.Helper()
	mount, err := l.Mount(device.Path, "before", fs, 0)
	check(t, err)
	check(t, os.Mkdir(filepath.Join(mount.Path, "vm"), 0o755))
	check(t, os.WriteFile(filepath.Join(mount.Path, "vm", "disk.img"), []byte(strings.Repeat("A", int(4*mib))), 0o600))
	check(t, os.WriteFile(filepath.Join(mount.Path, "notes.txt"), []byte("keep me"), 0o600))
	sum := checksum(t, filepath.Join(mount.Path, "notes.txt"))
	check(t, mount.Close())
	return sum
}

func compareFiles(t *testing.T, l *lab.Lab, device *lab.Loop, fs, want string) {
	t.Helper()
	mount, err := l.Mount(device.Path, "after", fs, 0)
	check(t, err)
	if got := checksum(t, filepath.Join(mount.Path, "notes.txt")); got != want {
		t.Errorf("notes.txt has changed")
	}
	image, err := os.ReadFile(filepath.Join(mount.Path, "vm", "disk.img"))
	check(t, err)
	wanted := strings.Repeat("A", int(2*mib)) + strings.Repeat("B", int(mib)) + strings.Repeat("A", int(mib))
	if string(image) != wanted {
		t.Errorf("the image's file of %d bytes is not what the initiator wrote", len(image))
	}
	check(t, mount.Close())
}

// TestPathOutsideVolume refuses image paths that leave the volume, by name and by a link inside it.
func TestPathOutsideVolume(t *testing.T) {
	ctx, l := openLab(t)
	node := start(ctx, t, l)
	device := loop(t, l, "lun.img", 512*mib)
	mount, err := l.MountXFS(ctx, device, "mnt")
	check(t, err)
	outside := l.Path("outside")
	check(t, os.Mkdir(outside, 0o700))
	check(t, os.Symlink(outside, filepath.Join(mount.Path, "link")))
	check(t, mount.Close())
	ctl(ctx, t, node, "volume add "+device.Path+" --name Volume1")
	for _, path := range []string{"Volume1/../outside/x", "Volume1/link/x", "Volume1//etc/passwd", "Volume1/a/../../x", "Volume1/", "Volume1"} {
		refused(ctx, t, node, "image create "+path+" --size 1MiB")
	}
	ctl(ctx, t, node, "target create "+iqn)
	refused(ctx, t, node, "target map "+iqn+" Volume1/link/x --lun 0")
	if entries, _ := os.ReadDir(outside); len(entries) != 0 {
		t.Errorf("a file was made outside the volume: %v", entries)
	}
}

// TestShrink refuses a size below what the image holds, and a back-end LUN that became smaller than
// its file system.
func TestShrink(t *testing.T) {
	ctx, s := serve(t, 1024*mib, 256*mib)
	source := upload(ctx, t, s, 256*mib)
	refused(ctx, t, s.node, "image resize Volume1/disk.img --size 128MiB", "unmap it")
	ctl(ctx, t, s.node, "target unmap "+iqn+" 0")
	refused(ctx, t, s.node, "image resize Volume1/disk.img --size 128MiB", "--force")
	ctl(ctx, t, s.node, "target map "+iqn+" Volume1/disk.img --lun 0")
	check(t, lab.Equal(ctx, source, s.url))
	ctl(ctx, t, s.node, "image resize Volume1/disk.img --size 300MiB")

	ctl(ctx, t, s.node, "target unmap "+iqn+" 0")
	ctl(ctx, t, s.node, "volume eject Volume1")
	check(t, s.device.Close())
	device := loop(t, s.lab, "lun.img", 512*mib)
	refused(ctx, t, s.node, "volume add "+device.Path)
}

// TestDamagedConfiguration names the file, the line and what is wrong, and starts nothing.
func TestDamagedConfiguration(t *testing.T) {
	ctx, l := openLab(t)
	for _, c := range []struct{ name, text, want string }{
		{"syntax", "socket = \"/x\"\n[iscsi\n", ":2"},
		{"unknown key", "\n\n[iscsi]\nportal = []\n", ":4"},
		{"wrong value", "[log]\nlevel = \"loud\"\n", "loud"},
		{"not text", "\x00\xff\xfe", "lunard.toml"},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := l.Path("lunard.toml")
			check(t, os.WriteFile(path, []byte(c.text), 0o600))
			for _, flags := range [][]string{{"--check"}, nil} {
				argv := append([]string{filepath.Join(l.Bin, "lunard"), "--config", path}, flags...)
				if _, err := lab.Run(ctx, argv...); err == nil || !strings.Contains(err.Error(), c.want) {
					t.Errorf("%v: got %v, want an error with %q", flags, err, c.want)
				}
			}
		})
	}
}

// TestExitStatus has lunarctl tell refusal, wrong usage and an unreachable node apart.
func TestExitStatus(t *testing.T) {
	ctx, l := openLab(t)
	node := start(ctx, t, l)
	for _, c := range []struct {
		line string
		want int
	}{
		{"version", 0},
		{"volume show Nowhere", 1},
		{"volume frobnicate", 2},
		{"--socket /nonexistent/sock volume list", 3},
	} {
		if got := exitStatus(ctx, node, c.line); got != c.want {
			t.Errorf("lunarctl %s: exit status %d, want %d", c.line, got, c.want)
		}
	}
}

func exitStatus(ctx context.Context, node *lab.Lunard, line string) int {
	_, err := node.Ctl(ctx, strings.Fields(line)...)
	return lab.ExitStatus(err)
}
