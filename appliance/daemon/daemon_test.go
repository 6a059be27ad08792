package daemon

import (
	"errors"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lunar/appliance/api"
	"lunar/appliance/cluster"
	"lunar/datapath/device/loopdev"
)

func TestExportsOutliveARestart(t *testing.T) {
	b := newBench(t)
	c := b.start()
	b.served(b.disk())
	before, err := c.Targets(t.Context())
	must(t, err)
	must(t, qemuIO(t, b.portal(), "", "write -P 7 1M 64k", "flush"))
	for range 2 {
		c = b.restart()
		after, err := c.Targets(t.Context())
		must(t, err)
		if !reflect.DeepEqual(before, after) {
			t.Fatalf("before the restart %+v\nafter it %+v", before, after)
		}
		must(t, qemuIO(t, b.portal(), "", "read -P 7 1M 64k", "read -P 0 2M 64k"))
	}
	v, err := c.Volume(t.Context(), "Volume1")
	must(t, err)
	if v.State != api.Direct || v.Epoch != 3 || v.Nodes[0].DirectRead.Bytes == 0 || v.Coordinator != "n1" || v.Size == 0 || v.Free == 0 {
		t.Fatalf("volume %+v", v)
	}
}

func TestEjectedVolumeKeepsItsImages(t *testing.T) {
	b := newBench(t)
	c, dev := b.start(), b.disk()
	b.served(dev)
	refused(t, c.EjectVolume(t.Context(), "Volume1"), api.Busy, "LUN 0", "unmap")
	must(t, qemuIO(t, b.portal(), "", "write -P 9 0 64k"))
	must(t, c.Unmap(t.Context(), iqn, 0))
	must(t, c.EjectVolume(t.Context(), "Volume1"))
	if v, err := c.Volumes(t.Context()); err != nil || len(v) != 0 {
		t.Fatalf("volumes %v, %v", v, err)
	}
	_, err := c.AddVolume(t.Context(), api.AddVolume{Device: dev, Name: "Again"})
	must(t, err)
	_, err = c.Map(t.Context(), iqn, api.Map{Image: "Again/disk.img"})
	must(t, err)
	must(t, qemuIO(t, b.portal(), "", "read -P 9 0 64k"))
}

func TestMissingDevice(t *testing.T) {
	b := newBench(t)
	b.start()
	file := filepath.Join(t.TempDir(), "disk")
	must(t, os.WriteFile(file, nil, 0o600))
	must(t, os.Truncate(file, 512<<20))
	loop, err := loopdev.Attach(file, loopdev.Options{})
	must(t, err)
	b.served(loop.Path)
	must(t, qemuIO(t, b.portal(), "", "write -P 5 0 64k", "flush"))
	b.stop()
	must(t, loop.Detach())

	c := b.start()
	v, err := c.Volumes(t.Context())
	must(t, err)
	if len(v) != 1 || v[0].State != api.StateAbsent || !strings.Contains(v[0].Reason, "no disk path") {
		t.Fatalf("volume %+v", v)
	}
	targets, err := c.Targets(t.Context())
	must(t, err)
	if l := targets[0].LUNs[0]; l.State != api.LUNUnavailable || !strings.Contains(l.Reason, "not available") {
		t.Fatalf("LUN %+v", l)
	}
	_, err = c.Images(t.Context(), "Volume1")
	refused(t, err, api.Unavailable, "no disk path")

	loop, err = loopdev.Attach(file, loopdev.Options{})
	must(t, err)
	defer func() { b.stop(); must(t, loop.Detach()) }()
	eventually(t, 4*retryInterval, "the LUN is back", func() bool {
		targets, err := c.Targets(t.Context())
		return err == nil && targets[0].LUNs[0].State == api.LUNOnline
	})
	must(t, qemuIO(t, b.portal(), "", "read -P 5 0 64k"))
}

func TestVolumeRefusals(t *testing.T) {
	b := newBench(t)
	c, ctx, dev := b.start(), t.Context(), b.disk()
	add := func(r api.AddVolume) error { _, err := c.AddVolume(ctx, r); return err }
	refused(t, add(api.AddVolume{Device: "/dev/none"}), api.NotFound)
	refused(t, add(api.AddVolume{Device: "/dev/zero"}), api.Invalid, "block device", "losetup")
	refused(t, add(api.AddVolume{Device: b.config.StateDir}), api.Invalid)
	refused(t, add(api.AddVolume{Device: dev}), api.Refused, "--format")
	refused(t, add(api.AddVolume{Device: dev, Format: "vfat"}), api.Invalid, "xfs or ext4")
	refused(t, add(api.AddVolume{Device: dev, Name: "../etc"}), api.Invalid)

	must(t, exec.Command("mkfs.ext4", "-q", dev).Run())
	refused(t, add(api.AddVolume{Device: dev, Format: "xfs"}), api.Refused, "ext4", "--force")
	mnt := t.TempDir()
	must(t, unix.Mount(dev, mnt, "ext4", 0, ""))
	refused(t, add(api.AddVolume{Device: dev}), api.Busy, "mounted")
	refused(t, add(api.AddVolume{Device: dev, Format: "xfs", Force: true}), api.Busy)
	must(t, unix.Unmount(mnt, 0))

	must(t, add(api.AddVolume{Device: dev, Name: "Old"}))
	refused(t, add(api.AddVolume{Device: dev}), api.Exists, "Old")
	refused(t, add(api.AddVolume{Device: b.disk(), Name: "Old", Format: "xfs"}), api.Exists)
	refused(t, c.RenameVolume(ctx, "None", "X"), api.NotFound)
	refused(t, c.RenameVolume(ctx, "Old", ".x"), api.Invalid)
	must(t, c.RenameVolume(ctx, "Old", "New"))
	must(t, c.EjectVolume(ctx, "New"))
	must(t, add(api.AddVolume{Device: dev, Format: "xfs", Force: true}))
	if v, err := c.Volumes(ctx); err != nil || v[0].FileSystem != "xfs" || v[0].Name != "Volume1" {
		t.Fatalf("volumes %+v, %v", v, err)
	}
}

func TestImages(t *testing.T) {
	b := newBench(t)
	c, ctx := b.start(), t.Context()
	b.served(b.disk())
	create := func(name string, size int64) error {
		_, err := c.CreateImage(ctx, api.CreateImage{Image: name, Size: size})
		return err
	}
	refused(t, create("Volume1/../x", 1<<20), api.Invalid, "leaves the volume")
	refused(t, create("Volume1//x", 1<<20), api.Invalid)
	refused(t, create("Volume1", 1<<20), api.Invalid, "VOLUME/PATH")
	refused(t, create("None/x", 1<<20), api.NotFound)
	refused(t, create("Volume1/x", 0), api.Invalid)
	refused(t, create("Volume1/x", 1000), api.Invalid, "multiple of 512")
	refused(t, create("Volume1/disk.img", 1<<20), api.Exists)
	_, err := c.CreateImage(ctx, api.CreateImage{Image: "Volume1/huge", Size: 1 << 40, Thick: true})
	refused(t, err, api.Full)

	must(t, qemuIO(t, b.portal(), "", "write -P 3 32M 1M"))
	refused(t, c.DeleteImage(ctx, "Volume1/disk.img", true), api.Busy, "LUN 0", "unmap")
	_, err = c.ChangeImage(ctx, "Volume1/disk.img", api.ChangeImage{Name: "Volume1/new.img"})
	refused(t, err, api.Busy, "unmap")
	i, err := c.ChangeImage(ctx, "Volume1/disk.img", api.ChangeImage{Size: 128 << 20})
	must(t, err)
	if i.Size != 128<<20 || len(i.Mapped) != 1 || i.Allocated < 1<<20 {
		t.Fatalf("image %+v", i)
	}
	must(t, qemuIO(t, b.portal(), "", "write -P 4 127M 1M", "read -P 3 32M 1M"))

	must(t, c.Unmap(ctx, iqn, 0))
	_, err = c.ChangeImage(ctx, "Volume1/disk.img", api.ChangeImage{Size: 1 << 20})
	refused(t, err, api.Refused, "--force")
	_, err = c.ChangeImage(ctx, "Volume1/disk.img", api.ChangeImage{Size: 64 << 20, Force: true})
	must(t, err)
	_, err = c.CreateImage(ctx, api.CreateImage{From: "Volume1/disk.img", Image: "Volume1/sub/clone.img"})
	must(t, err)
	_, err = c.ChangeImage(ctx, "Volume1/disk.img", api.ChangeImage{Name: "Volume1/new.img"})
	must(t, err)
	refused(t, c.DeleteImage(ctx, "Volume1/new.img", false), api.Refused, "--force")
	must(t, c.DeleteImage(ctx, "Volume1/new.img", true))
	images, err := c.Images(ctx, "")
	must(t, err)
	if len(images) != 1 || images[0].Path != "sub/clone.img" || images[0].Size != 64<<20 {
		t.Fatalf("images %+v", images)
	}
}

func TestTargetRefusals(t *testing.T) {
	b := newBench(t)
	c, ctx := b.start(), t.Context()
	b.served(b.disk())
	_, err := c.CreateTarget(ctx, iqn)
	refused(t, err, api.Exists)
	_, err = c.CreateTarget(ctx, "disk one")
	refused(t, err, api.Invalid, "iqn.")
	_, err = c.Map(ctx, iqn, api.Map{Image: "Volume1/none"})
	refused(t, err, api.NotFound)
	zero := uint16(0)
	_, err = c.Map(ctx, iqn, api.Map{Image: "Volume1/disk.img", LUN: &zero})
	refused(t, err, api.Exists)
	_, err = c.Map(ctx, "iqn.2026-01.none:x", api.Map{Image: "Volume1/disk.img"})
	refused(t, err, api.NotFound, "target list")
	refused(t, c.Unmap(ctx, iqn, 3), api.NotFound)
	refused(t, c.DeleteTarget(ctx, iqn, false), api.Refused, "1 LUN", "--force")
	refused(t, c.SetCHAP(ctx, iqn, api.SetCHAP{User: "u", Secret: "short"}), api.Invalid, "12")
	refused(t, c.SetCHAP(ctx, iqn, api.SetCHAP{User: "u", Secret: "long-enough-1", Mutual: true}), api.Refused, "first")
	must(t, c.SetCHAP(ctx, iqn, api.SetCHAP{User: "u", Secret: "long-enough-1"}))
	refused(t, c.SetCHAP(ctx, iqn, api.SetCHAP{User: "t", Secret: "long-enough-1", Mutual: true}), api.Invalid, "different")
	refused(t, c.Allow(ctx, iqn, "not a name"), api.Invalid)
	refused(t, c.Disallow(ctx, iqn, "iqn.2026-01.none:x"), api.NotFound)
	must(t, c.DeleteTarget(ctx, iqn, true))
	images, err := c.Images(ctx, "Volume1")
	must(t, err)
	if len(images) != 1 || len(images[0].Mapped) != 0 {
		t.Fatalf("images %+v", images)
	}
	must(t, c.EjectVolume(ctx, "Volume1"))
}

func TestAccess(t *testing.T) {
	b := newBench(t)
	c, ctx := b.start(), t.Context()
	b.served(b.disk())
	login := func(user string) error { return qemuIO(t, b.portal(), user, "read 0 4k") }
	const user, wrong = "u%right-secret-1@", "u%wrong-secret-1@"
	must(t, login(""))
	must(t, c.SetCHAP(ctx, iqn, api.SetCHAP{User: "u", Secret: "right-secret-1"}))
	for range 2 { // before and after a restart
		if login("") == nil || login(wrong) == nil {
			t.Fatal("a wrong secret got in")
		}
		must(t, login(user))
		c = b.restart()
	}
	must(t, c.Allow(ctx, iqn, "iqn.2026-01.io.lunar:other"))
	if login(user) == nil {
		t.Fatal("an initiator got in that is not on the list")
	}
	must(t, c.Disallow(ctx, iqn, "iqn.2026-01.io.lunar:other"))
	if login(user) == nil {
		t.Fatal("an empty list lets an initiator in")
	}
	must(t, c.Allow(ctx, iqn, "all"))
	must(t, login(user))

	b.stop()
	must(t, os.Remove(filepath.Join(b.config.StateDir, "secret.key")))
	c = b.start()
	if login(user) == nil || login("") == nil {
		t.Fatal("without the secret key an initiator got in")
	}
	targets, err := c.Targets(ctx)
	must(t, err)
	if !strings.Contains(targets[0].Reason, "target chap") {
		t.Fatalf("target %+v", targets[0])
	}
	must(t, c.SetCHAP(ctx, iqn, api.SetCHAP{User: "u", Secret: "right-secret-1"}))
	must(t, login(user))
}

func TestSessions(t *testing.T) {
	b := newBench(t)
	c, ctx := b.start(), t.Context()
	b.served(b.disk())
	must(t, qemuIO(t, b.portal(), "", "read 0 4k"))
	cmd := exec.Command("qemu-io", "-f", "raw", "iscsi://"+b.portal()+"/"+iqn+"/0")
	in, err := cmd.StdinPipe()
	must(t, err)
	must(t, cmd.Start())
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	_, err = io.WriteString(in, "write 0 1M\n")
	must(t, err)
	eventually(t, 10*time.Second, "a session has written", func() bool {
		s, err := c.Sessions(ctx)
		return err == nil && len(s.Sessions) == 1 && s.Sessions[0].Target == iqn && s.Sessions[0].Written >= 1<<20 && s.Sessions[0].Local == b.portal()
	})
	refused(t, c.DeleteTarget(ctx, iqn, false), api.Refused, "logged in", "--force")
	must(t, c.DeleteTarget(ctx, iqn, true))
	if s, err := c.Sessions(ctx); err != nil || len(s.Sessions) != 0 {
		t.Fatalf("sessions %+v, %v", s, err)
	}
}

func TestRedirect(t *testing.T) {
	b := newBench(t)
	c, ctx := b.start(), t.Context()
	b.served(b.disk())
	must(t, qemuIO(t, b.portal(), "", "write -P 1 0 1M"))
	must(t, c.RedirectVolume(ctx, "Volume1", true))
	for range 2 {
		must(t, qemuIO(t, b.portal(), "", "read -P 1 0 1M", "write -P 1 0 1M"))
		v, err := c.Volume(ctx, "Volume1")
		must(t, err)
		n := v.Nodes[0]
		if n.State != api.Redirected || n.Reason != "UserRequest" || n.RedirectedRead.Bytes < 1<<20 || n.RedirectedWrite.Bytes < 1<<20 {
			t.Fatalf("node %+v", n)
		}
		c = b.restart()
	}
	must(t, c.RedirectVolume(ctx, "Volume1", false))
	must(t, qemuIO(t, b.portal(), "", "read -P 1 0 1M"))
	if v, err := c.Volumes(ctx); err != nil || v[0].State != api.Direct {
		t.Fatalf("volume %+v, %v", v, err)
	}
}

func TestLogAndMetrics(t *testing.T) {
	b := newBench(t)
	c := b.start()
	b.served(b.disk())
	var kinds []string
	must(t, c.Log(t.Context(), "", false, func(e api.Event) error {
		if e.Kind != "coordinator.chosen" { // it comes at any time
			kinds = append(kinds, e.Kind)
		}
		return nil
	}))
	if want := []string{"volume.add", "image.create", "target.create", "target.map"}; !reflect.DeepEqual(kinds, want) {
		t.Fatalf("log %v, want %v", kinds, want)
	}
	resp, err := http.Get("http://" + b.daemon.listeners.metrics.Addr().String() + "/metrics")
	must(t, err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	must(t, err)
	http.DefaultClient.CloseIdleConnections()
	for _, line := range []string{`lunar_volume_state{state="Direct",volume="Volume1"} 1`, "lunar_iscsi_luns 1", "lunar_lanes 2"} {
		if !strings.Contains(string(text), line) {
			t.Errorf("no %s", line)
		}
	}
}

func TestOneDaemonPerStateDirectory(t *testing.T) {
	b := newBench(t)
	b.start()
	second := b.config
	second.Socket += "2"
	if _, err := Open(t.Context(), second, b.daemon.log); !errors.Is(err, cluster.ErrLocked) {
		t.Fatalf("error %v", err)
	}
	third := b.config
	third.StateDir = t.TempDir()
	if _, err := Open(t.Context(), third, b.daemon.log); err == nil || !strings.Contains(err.Error(), "another lunard listens") {
		t.Fatalf("error %v", err)
	}
}

func TestDamagedDatabase(t *testing.T) {
	b := newBench(t)
	b.start()
	b.stop()
	must(t, os.Truncate(filepath.Join(b.config.StateDir, "etcd", "member", "snap", "db"), 8192))
	_, err := Open(t.Context(), b.config, b.daemonLog())
	if !errors.Is(err, cluster.ErrDamaged) || !strings.Contains(err.Error(), "restore") {
		t.Fatalf("error %v", err)
	}
}
