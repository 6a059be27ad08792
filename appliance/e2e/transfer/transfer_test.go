package transfer

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"lunar/appliance/api"
	"lunar/appliance/e2e/lab"
)

// drivers are qemu-img's names of the formats, and options of the files that others give us.
var drivers = []struct{ format, driver, options string }{
	{"raw", "raw", ""}, {"qcow2", "qcow2", "compat=1.1"}, {"vhd", "vpc", "subformat=dynamic,force_size=on"},
	{"vhd", "vpc", "subformat=fixed,force_size=on"}, {"vhdx", "vhdx", ""}, {"vmdk", "vmdk", "subformat=streamOptimized"},
}

// there imports a file, exports it in a format, and compares both with the original.
func there(ctx context.Context, t *testing.T, n *lab.Lunard, raw, file, format, volume string) {
	t.Helper()
	image, out := volume+"/sub/x.img", raw+".out."+format
	said := ctl(ctx, t, n, "image", "import", file, image)
	if !strings.Contains(said, "("+format+")") {
		t.Errorf("import %s: %q does not tell the format", file, said)
	}
	ctl(ctx, t, n, "image", "export", image, out)
	run(ctx, t, "qemu-img", "compare", "-F", "raw", out, raw)
	plain := raw + ".out.raw"
	ctl(ctx, t, n, "image", "export", image, plain, "--force")
	want, err := lab.Checksum(raw)
	check(t, err)
	if got, err := lab.Checksum(plain); err != nil || got != want {
		t.Errorf("%s there and back: checksum %s, %v, want %s", format, got, err, want)
	}
	sparse(ctx, t, n, raw, image, plain)
	ctl(ctx, t, n, "image", "delete", image, "--force")
	check(t, os.Remove(plain))
	if out != plain {
		check(t, os.Remove(out))
	}
}

// sparse fails when an image or a file takes much more than the original.
func sparse(ctx context.Context, t *testing.T, n *lab.Lunard, raw, image, plain string) {
	t.Helper()
	var i api.Image
	check(t, json.Unmarshal([]byte(ctl(ctx, t, n, "image", "show", image, "--json")), &i))
	want := used(t, raw)
	t.Logf("%s: %d KiB allocated, the source has %d", image, i.Allocated>>10, want>>10)
	if i.Allocated > want+want/4+2*mib {
		t.Errorf("the image takes %d bytes, the source %d", i.Allocated, want)
	}
	if got := used(t, plain); got > want+mib {
		t.Errorf("the exported file takes %d bytes, the source %d", got, want)
	}
}

func used(t *testing.T, path string) int64 {
	t.Helper()
	info, err := os.Stat(path)
	check(t, err)
	return info.Sys().(*syscall.Stat_t).Blocks * 512
}

func TestEveryFormat(t *testing.T) {
	ctx, l := openLab(t)
	n, err := l.Lunard(ctx, lab.Config{})
	check(t, err)
	volume(ctx, t, l, n, "Xfs", "xfs", 1024*mib)
	volume(ctx, t, l, n, "Ext", "ext4", 512*mib)
	raw := disk(ctx, t, l, 192*mib)
	for i, d := range drivers {
		file := l.Path(fmt.Sprintf("from, %d", i))
		args := []string{"qemu-img", "convert", "-O", d.driver}
		if d.options != "" {
			args = append(args, "-o", d.options)
		}
		run(ctx, t, append(args, raw, file)...)
		there(ctx, t, n, raw, file, d.format, []string{"Xfs", "Ext"}[i%2])
	}
	nothingLeft(ctx, t, n, l)
}

// nothingLeft fails when a socket, a half-made image or a job stays.
func nothingLeft(ctx context.Context, t *testing.T, n *lab.Lunard, l *lab.Lab) {
	t.Helper()
	check(t, lab.Poll(20*time.Second, func() error {
		left, _ := filepath.Glob(n.Socket + ".*")
		images, err := n.Ctl(ctx, "image", "list", "--json")
		if err == nil && (len(left) > 0 || strings.TrimSpace(images) != "[]") {
			err = fmt.Errorf("left behind: %q %s", left, images)
		}
		return err
	}))
	parts, _ := filepath.Glob(l.Path(".*.part"))
	if len(parts) > 0 {
		t.Errorf("left behind: %q", parts)
	}
}

// hidden lists the files of transfers on an ejected volume.
func hidden(ctx context.Context, t *testing.T, device string) []string {
	t.Helper()
	dir := t.TempDir()
	run(ctx, t, "mount", "-o", "ro,norecovery", device, dir)
	defer run(ctx, t, "umount", dir)
	found, _ := filepath.Glob(dir + "/.transfer/*/*")
	return found
}

func TestRefused(t *testing.T) {
	ctx, l := openLab(t)
	n, err := l.Lunard(ctx, lab.Config{})
	check(t, err)
	device, err := l.Loop("lun", 512*mib)
	check(t, err)
	ctl(ctx, t, n, "volume", "add", device.Path, "--name", "V", "--format", "xfs")
	raw := disk(ctx, t, l, 64*mib)
	ctl(ctx, t, n, "image", "import", raw, "V/a.img")
	refused(ctx, t, n, []string{"image", "import", raw, "V/a.img"}, "is there already", "--force")
	ctl(ctx, t, n, "image", "import", raw, "V/a.img", "--force", "--thick")
	ctl(ctx, t, n, "target", "create", "iqn.2026-01.lunar.test:t")
	ctl(ctx, t, n, "target", "map", "iqn.2026-01.lunar.test:t", "V/a.img")
	refused(ctx, t, n, []string{"image", "import", raw, "V/a.img", "--force"}, "is exported as LUN 0", "unmap it first")
	ctl(ctx, t, n, "image", "export", "V/a.img", l.Path("mapped.qcow2"))

	backed := l.Path("backed.qcow2")
	run(ctx, t, "qemu-img", "create", "-q", "-f", "qcow2", "-b", "/etc/shadow", "-F", "raw", backed, "1M")
	refused(ctx, t, n, []string{"image", "import", backed, "V/b.img"}, "has a backing file", "qemu-img convert")
	cut := l.Path("cut.qcow2")
	run(ctx, t, "qemu-img", "convert", "-O", "qcow2", raw, cut)
	check(t, os.Truncate(cut, 3*mib))
	refused(ctx, t, n, []string{"image", "import", cut, "V/b.img"}, "damaged qcow2")
	large := l.Path("large.raw")
	check(t, os.WriteFile(large, nil, 0o600))
	check(t, os.Truncate(large, 2048*mib))
	refused(ctx, t, n, []string{"image", "import", large, "V/b.img", "--thick"}, "holds 2GiB", "left")
	ctl(ctx, t, n, "image", "import", large, "V/b.img") // it holds nothing
	ctl(ctx, t, n, "image", "delete", "V/b.img")
	refused(ctx, t, n, []string{"image", "export", "V/none.img", l.Path("none.raw")}, "none.img")
	refused(ctx, t, n, []string{"image", "export", "V/a.img", "/proc/none.raw"}, "cannot be written")

	ctl(ctx, t, n, "target", "delete", "iqn.2026-01.lunar.test:t", "--force")
	ctl(ctx, t, n, "image", "delete", "V/a.img", "--force")
	nothingLeft(ctx, t, n, l)
	ctl(ctx, t, n, "volume", "eject", "V")
	if left := hidden(ctx, t, device.Path); len(left) > 0 {
		t.Errorf("left on the volume: %q", left)
	}
}

// slow starts an import that takes long enough to be broken off, and returns when it has begun.
func slow(ctx context.Context, t *testing.T, l *lab.Lab, n *lab.Lunard, file string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(ctx, filepath.Join(l.Bin, "lunarctl"), "--socket", n.Socket, "image", "import", file, "V/x.img", "--format", "raw")
	check(t, cmd.Start())
	client := api.NewClient(n.Socket)
	defer client.Close()
	check(t, lab.Poll(20*time.Second, func() error {
		jobs, err := client.Jobs(ctx)
		if err == nil && (len(jobs) != 1 || jobs[0].Done == 0 || jobs[0].Total == 0) {
			err = fmt.Errorf("jobs %+v", jobs)
		}
		return err
	}))
	return cmd
}

// TestBrokenOff interrupts and kills lunarctl, and kills lunard, in the middle of an import.
func TestBrokenOff(t *testing.T) {
	ctx, l := openLab(t)
	n, err := l.Lunard(ctx, lab.Config{})
	check(t, err)
	device, err := l.Loop("lun", 1024*mib)
	check(t, err)
	ctl(ctx, t, n, "volume", "add", device.Path, "--name", "V", "--format", "xfs")
	file, err := l.RandomFile("large.raw", 512*mib, 100)
	check(t, err)

	cmd := slow(ctx, t, l, n, file)
	check(t, cmd.Process.Signal(os.Interrupt))
	if err := cmd.Wait(); err == nil || cmd.ProcessState.ExitCode() != 1 {
		t.Errorf("interrupted: %v", err)
	}
	nothingLeft(ctx, t, n, l)
	cmd = slow(ctx, t, l, n, file)
	check(t, cmd.Process.Kill())
	_ = cmd.Wait()
	nothingLeft(ctx, t, n, l)
	cmd = slow(ctx, t, l, n, file)
	n.Kill()
	if err := cmd.Wait(); err == nil {
		t.Error("an import outlived its node")
	}
	check(t, n.Start(ctx))
	nothingLeft(ctx, t, n, l)
	cmd = slow(ctx, t, l, n, file)
	began := time.Now()
	check(t, n.Stop())
	t.Logf("lunard stopped within %v", time.Since(began))
	if err := cmd.Wait(); err == nil {
		t.Error("an import outlived its node")
	}
	check(t, n.Start(ctx))
	check(t, lab.Poll(20*time.Second, func() error {
		if _, err := n.Ctl(ctx, "volume", "eject", "V"); err != nil {
			return err
		}
		return nil
	}))
	if left := hidden(ctx, t, device.Path); len(left) > 0 {
		t.Errorf("left on the volume: %q", left)
	}
}

// TestCluster imports and exports through nodes that do not coordinate, and meanwhile moves the volume.
func TestCluster(t *testing.T) {
	ctx, l := openLab(t)
	c, err := l.Cluster(ctx, lab.ClusterConfig{Size: 1024 * mib})
	check(t, err)
	check(t, c.Serve(ctx, 64*mib))
	raw := disk(ctx, t, l, 192*mib)
	coordinator, err := c.Coordinator(ctx)
	check(t, err)
	others := c.Others(coordinator)
	there(ctx, t, others[0].Lunard, raw, raw, "raw", lab.ClusterVolume)
	file := l.Path("from.qcow2")
	run(ctx, t, "qemu-img", "convert", "-O", "qcow2", raw, file)
	moved := make(chan error, 1)
	go func() { moved <- c.Move(ctx, others[1]) }()
	there(ctx, t, others[0].Lunard, raw, file, "qcow2", lab.ClusterVolume)
	check(t, <-moved)
	check(t, c.Eject(ctx))
	check(t, c.Repair(ctx))
	if left := hidden(ctx, t, c.Device.Path); len(left) > 0 {
		t.Errorf("left on the volume: %q", left)
	}
}
