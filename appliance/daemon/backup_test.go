package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"lunar/appliance/api"
	"lunar/appliance/cluster"
	"lunar/datapath/coordinator"
	"lunar/datapath/layout"
	"lunar/datapath/volume"
	"lunar/datapath/wire/nbd"
)

func TestMarks(t *testing.T) {
	ranges := []coordinator.Change{{Range: layout.Range{Off: 10, Len: 5}}, {Range: layout.Range{Off: 20, Len: 10}}}
	for _, c := range []struct {
		off, end int64
		want     string
	}{
		{0, 40, "[{10 false} {5 true} {5 false} {10 true} {10 false}]"},
		{12, 22, "[{3 true} {5 false} {2 true}]"},
		{15, 20, "[{5 false}]"},
		{20, 30, "[{10 true}]"},
		{30, 31, "[{1 false}]"},
	} {
		var got []nbd.Mark
		marks(ranges, c.off, c.end, func(m nbd.Mark) bool { got = append(got, m); return true })
		if fmt.Sprint(got) != c.want {
			t.Errorf("%d to %d: %v, want %s", c.off, c.end, got, c.want)
		}
	}
	var got []nbd.Mark
	marks(nil, 0, 9, func(m nbd.Mark) bool { got = append(got, m); return true })
	if !reflect.DeepEqual(got, []nbd.Mark{{Len: 9}}) {
		t.Error(got)
	}
	n := 0
	marks(ranges, 0, 40, func(nbd.Mark) bool { n++; return n < 2 })
	if n != 2 {
		t.Errorf("%d after the end", n)
	}
}

// TestChangesByReading compares what is told with the content, for questions of all kinds.
func TestChangesByReading(t *testing.T) {
	const size = 200 << 20
	content := make([]byte, size)
	r := rand.New(rand.NewPCG(1, 2))
	want := make([]bool, size/changeUnit)
	c := &changes{read: func(_ context.Context, p []byte, off int64) error { copy(p, content[off:]); return nil }}
	c.all = []coordinator.Change{{Range: layout.Range{Off: changeUnit, Len: changeUnit}}, {Range: layout.Range{Off: 1 << 20, Len: 150 << 20}, New: true},
		{Range: layout.Range{Off: 180 << 20, Len: 40 << 20}, New: true}}
	c.clip(size)
	want[1] = true
	for range 200 {
		at := r.IntN(150<<20) + 1<<20
		content[at], want[at/changeUnit] = 1, true
	}
	content[size-1], want[len(want)-1] = 1, true
	for off := int64(0); off < size; {
		n := min(size-off, int64(1+r.IntN(90))<<20)
		told, asked := int64(0), off
		if err := c.marks(t.Context(), off, n, func(m nbd.Mark) bool {
			for u := asked; u < asked+m.Len; u += changeUnit {
				if want[u/changeUnit] != m.Marked {
					t.Fatalf("unit at %d is marked: %t", u, m.Marked)
				}
			}
			asked += m.Len
			told += m.Len
			return true
		}); err != nil {
			t.Fatal(err)
		}
		if told == 0 || told > n || n <= changeScan && told != n {
			t.Fatalf("%d of %d bytes at %d were told", told, n, off)
		}
		off += told
	}
	sum := int64(0)
	for _, w := range want {
		if w {
			sum += changeUnit
		}
	}
	if got := c.bytes(); got != sum {
		t.Errorf("%d bytes have changed, and not %d", got, sum)
	}
	c.all, c.read = []coordinator.Change{{Range: layout.Range{Len: size}, New: true}}, func(context.Context, []byte, int64) error { return syscall.EIO }
	if err := c.marks(t.Context(), 0, size, func(nbd.Mark) bool { return true }); !errors.Is(err, syscall.EIO) {
		t.Error(err)
	}
}

func TestNamesOfBackups(t *testing.T) {
	for name, ok := range map[string]bool{"monday": true, "backup-monday": true, "backup-01ab": true, "backup-01abcdef": false, "a/b": false} {
		if err := checkSnapshotName(name); (err == nil) != ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// tool runs a program that appliance/e2e/packages.sh installs.
func tool(t *testing.T, argv ...string) (string, error) {
	t.Helper()
	if _, err := exec.LookPath(argv[0]); err != nil {
		t.Skipf("%v: run appliance/e2e/packages.sh client", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("%v: %w: %s", argv, err, out)
	}
	return string(out), nil
}

func waits(d time.Duration) *int64 { n := d.Nanoseconds(); return &n }

// TestBackup tries all of a backup's life on one node.
func TestBackup(t *testing.T) {
	b := newBench(t)
	device := b.disk()
	b.start()
	b.served(device)
	must(t, qemuIO(t, b.portal(), "", "write -P 1 0 8M", "write -P 2 32M 1M"))
	full := b.fullBackup(t)
	must(t, qemuIO(t, b.portal(), "", "write -P 3 1M 64k", "write -P 4 48M 1M"))
	b.incrementalBackup(t, full)
	b.attachedBackup(t)
	b.limitedBackup(t)
	b.stoppedBackup(t)
	b.cutOffBackup(t)
}

// cutOffBackup has the database remember backups whose daemon was killed: their snapshots go, but not one that has only the name.
func (b *bench) cutOffBackup(t *testing.T) {
	t.Helper()
	ctx, n := t.Context(), b.daemon.node
	v := n.sortedVolumes()[0]
	for _, name := range []string{"cutoff", "namesake"} {
		_, err := b.snapshot(name, true)
		must(t, err)
	}
	all, err := b.client.Snapshots(ctx, "Volume1")
	must(t, err)
	must(t, b.with(func(p *parts) error {
		all, err := p.vol.Snapshots(ctx)
		for _, s := range all {
			u := cluster.UnendedBackup{ID: s.Name, Snapshot: s.Name, Set: uint64(s.Set), Taken: s.Taken}
			switch s.Name {
			case "cutoff":
			case "namesake":
				u.Taken--
			default:
				continue
			}
			err = errors.Join(err, n.beginUnended(ctx, v, u))
		}
		return err
	}))
	b.restart()
	eventually(t, 20*time.Second, "the snapshot of a backup that was cut off is removed", func() bool {
		left, err := b.client.Snapshots(ctx, "Volume1")
		return err == nil && len(left) == len(all)-1
	})
	b.without("cutoff")
	eventually(t, 20*time.Second, "nothing is recorded any more", func() bool {
		record, err := b.daemon.node.db.Volume(ctx, v.id)
		return err == nil && len(record.Unended) == 0
	})
}

// with runs call with the volume's parts.
func (b *bench) with(call func(*parts) error) error {
	return b.daemon.node.on("Volume1", func(_ *volumeState, p *parts) error { return call(p) })
}

func (b *bench) fullBackup(t *testing.T) (copied string) {
	t.Helper()
	ctx := t.Context()
	_, err := b.client.CreateImage(ctx, api.CreateImage{Image: "Volume1/dir/other.img", Size: 1 << 20})
	must(t, err)
	began, err := b.client.BeginBackup(ctx, api.BeginBackup{Volume: "Volume1", Snapshot: "monday", WaitNS: waits(100 * time.Millisecond)})
	must(t, err)
	if len(began.Images) != 2 || began.Images[0].Image != "Volume1/dir/other.img" || began.Images[1].Data < 9<<20 || began.Images[1].Changed != nil {
		t.Fatalf("%+v", began)
	}
	_, err = b.client.BeginBackup(ctx, api.BeginBackup{Volume: "Volume1"})
	refused(t, err, api.Busy, "backed up already", began.ID, "n1")
	b.suspends(t, began)
	must(t, qemuIO(t, b.portal(), "", "write -P 9 0 64k", "write -P 9 60M 64k")) // unshares, and allocates
	copied = filepath.Join(t.TempDir(), "copy")
	_, err = tool(t, "nbdcopy", began.Images[1].URI, copied)
	must(t, err)
	_, err = tool(t, "qemu-io", "-r", "-f", "raw", "-c", "read -P 1 0 8M", "-c", "read -P 2 32M 1M", "-c", "read -P 0 60M 64k", copied)
	must(t, err)
	if _, err = tool(t, "qemu-io", "-f", "raw", "-c", "write 0 4k", began.Images[1].URI); err == nil {
		t.Error("a backup was written to")
	}
	b.showsFiles(t, began)
	all, err := b.client.Backups(ctx)
	must(t, err)
	if len(all) != 1 || all[0].ID != began.ID || all[0].Images[1].Read < 9<<20 {
		t.Errorf("%+v", all)
	}
	must(t, b.client.EndBackup(ctx, "Volume1"))
	b.released(t, began, true)
	refused(t, b.client.EndBackup(ctx, "Volume1"), api.NotFound, "no such backup")
	must(t, qemuIO(t, b.portal(), "", "read -P 9 0 64k"))
	return copied
}

// showsFiles looks at what the namespace has of a backup.
func (b *bench) showsFiles(t *testing.T, began api.Backup) {
	t.Helper()
	ns, ctx := tree{b.daemon.node}, t.Context()
	if all := ns.Volumes(); len(all) != 2 || all[1].Name != ".backup" {
		t.Fatalf("%+v", all)
	}
	files, err := ns.List(ctx, backupTree)
	must(t, err)
	disk := began.ID + "/disk.img"
	if len(files) != 2 || files[0].Path != began.ID+"/dir/other.img" || files[1].Path != disk || files[1].Size != 64<<20 || files[0].ID == files[1].ID {
		t.Errorf("%+v", files)
	}
	for path, want := range map[string]error{disk: nil, began.ID: syscall.EISDIR, began.ID + "/dir": syscall.EISDIR, began.ID + "/no": syscall.ENOENT, "no/disk.img": syscall.ENOENT} {
		if _, err := ns.Stat(ctx, backupTree, path); !errors.Is(err, want) {
			t.Errorf("stat %s: %v", path, err)
		}
	}
	for what, err := range map[string]error{"create": ns.Create(ctx, backupTree, "x"), "delete": ns.Delete(ctx, backupTree, disk),
		"rename": ns.Rename(ctx, backupTree, disk, "x"), "resize": ns.Resize(ctx, backupTree, disk, 0)} {
		if !errors.Is(err, syscall.EROFS) {
			t.Errorf("%s: %v", what, err)
		}
	}
	opened, err := ns.Open(ctx, backupTree, disk)
	must(t, err)
	im, ok := opened.(*volume.Image)
	p := make([]byte, 8<<20)
	if _, err := im.ReadAt(p, 0); !ok || err != nil || !bytes.Equal(p, bytes.Repeat([]byte{1}, len(p))) {
		t.Error("read:", err)
	}
	if _, err := im.WriteAt(p[:4096], 0); !errors.Is(err, syscall.EROFS) {
		t.Error("write:", err)
	}
	must(t, opened.Close(ctx))
}

// suspends has each change of the volume's images refused in time, with words that tell of the backup.
func (b *bench) suspends(t *testing.T, began api.Backup) {
	t.Helper()
	ctx, c := t.Context(), b.client
	for name, change := range map[string]func() error{
		"create": func() error {
			_, err := c.CreateImage(ctx, api.CreateImage{Image: "Volume1/new.img", Size: 1 << 20})
			return err
		},
		"delete": func() error { return c.DeleteImage(ctx, "Volume1/dir/other.img", true) },
		"rename": func() error {
			_, err := c.ChangeImage(ctx, "Volume1/dir/other.img", api.ChangeImage{Name: "Volume1/x.img"})
			return err
		},
		"resize": func() error {
			_, err := c.ChangeImage(ctx, "Volume1/disk.img", api.ChangeImage{Size: 80 << 20})
			return err
		},
		"clone": func() error {
			_, err := c.CreateImage(ctx, api.CreateImage{Image: "Volume1/new.img", From: "Volume1/disk.img"})
			return err
		},
		"snapshot": func() error {
			_, err := c.CreateSnapshot(ctx, api.CreateSnapshot{Images: []string{"Volume1/disk.img"}, Name: "s"})
			return err
		},
		"revert": func() error { _, err := c.Revert(ctx, "Volume1/dir/other.img@monday", true); return err },
	} {
		at := time.Now()
		err := change()
		if err == nil || api.CodeOf(err) != api.Busy || !strings.Contains(err.Error(), "backup "+began.ID+" on node n1") {
			t.Errorf("%s: %v", name, err)
		}
		if took := time.Since(at); took < 100*time.Millisecond {
			t.Errorf("%s did not wait: %v", name, took)
		}
	}
	refused(t, c.DeleteSnapshot(ctx, "Volume1@monday", true), api.Busy, began.ID)
	refused(t, c.EjectVolume(ctx, "Volume1"), api.Busy)
}

// released checks that nothing of a backup is left.
func (b *bench) released(t *testing.T, began api.Backup, kept bool) {
	t.Helper()
	ctx := t.Context()
	all, err := b.client.Backups(ctx)
	must(t, err)
	if len(all) != 0 {
		t.Fatalf("%+v", all)
	}
	snapshots, err := b.client.Snapshots(ctx, "Volume1")
	must(t, err)
	if has := slices.ContainsFunc(snapshots, func(s api.Snapshot) bool { return s.Name == began.Snapshot }); has != kept {
		t.Errorf("snapshot %s is there: %t, want %t", began.Snapshot, has, kept)
	}
	if _, err := os.Lstat(began.Socket); err == nil {
		t.Errorf("%s is there", began.Socket)
	}
	_, err = b.client.CreateImage(ctx, api.CreateImage{Image: "Volume1/after.img", Size: 1 << 20})
	must(t, err)
	must(t, b.client.DeleteImage(ctx, "Volume1/after.img", true))
}

// incrementalBackup reads what has changed since monday by TLS, onto a copy of monday, and compares.
func (b *bench) incrementalBackup(t *testing.T, copied string) {
	t.Helper()
	ctx := t.Context()
	_, err := b.client.BeginBackup(ctx, api.BeginBackup{Volume: "Volume1", Since: "sunday"})
	refused(t, err, api.NotFound, "no snapshot sunday")
	_, err = b.client.BeginBackup(ctx, api.BeginBackup{Volume: "Volume1", Snapshot: "monday"})
	refused(t, err, api.Exists, "monday")
	_, err = b.client.BeginBackup(ctx, api.BeginBackup{Volume: "Volume1", Listen: "192.0.2.1:1"})
	refused(t, err, api.Invalid, "192.0.2.1:1")
	began, err := b.client.BeginBackup(ctx, api.BeginBackup{Volume: "Volume1", Images: []string{"Volume1/disk.img"}, Since: "monday", Listen: "127.0.0.1:0"})
	must(t, err)
	im := began.Images[0]
	if len(began.Images) != 1 || im.Bitmap != "qemu:dirty-bitmap:monday" || im.Changed == nil || *im.Changed < 1<<20+3*64<<10 || *im.Changed > 32<<20 {
		t.Fatalf("%+v", began)
	}
	keys := t.TempDir()
	for name, text := range map[string]string{"ca-cert.pem": began.Keys.CA, "client-cert.pem": began.Keys.Cert, "client-key.pem": began.Keys.Key} {
		must(t, os.WriteFile(filepath.Join(keys, name), []byte(text), 0o600))
	}
	if out, err := tool(t, "nbdinfo", strings.Replace(im.TLSURI, "nbds:", "nbd:", 1)); err == nil {
		t.Errorf("without TLS: %s", out)
	}
	uri := im.TLSURI + "?tls-certificates=" + keys
	out, err := tool(t, "nbdinfo", "--json", "--map="+im.Bitmap, uri)
	must(t, err)
	var extents []struct{ Offset, Length, Type int64 }
	must(t, json.Unmarshal([]byte(out), &extents))
	whole := filepath.Join(t.TempDir(), "whole")
	_, err = tool(t, "nbdcopy", uri, whole)
	must(t, err)
	want, err := os.ReadFile(whole)
	must(t, err)
	got, err := os.ReadFile(copied)
	must(t, err)
	var changed int64
	for _, e := range extents {
		if e.Type == 1 {
			copy(got[e.Offset:e.Offset+e.Length], want[e.Offset:])
			changed += e.Length
		}
	}
	if string(got) != string(want) || changed > *im.Changed || changed > 2<<20 {
		t.Errorf("the copy with %d changed bytes is not what the snapshot has; at most %d were promised", changed, *im.Changed)
	}
	must(t, b.client.EndBackup(ctx, began.ID))
	b.released(t, began, false)
	if _, err := tool(t, "nbdinfo", uri); err == nil {
		t.Error("served after its end")
	}
}

// attachedBackup ends with its caller, or by order.
func (b *bench) attachedBackup(t *testing.T) {
	t.Helper()
	for _, order := range []bool{false, true} {
		ctx, gone := context.WithCancel(t.Context())
		var began api.Backup
		reason, err := b.client.AttachedBackup(ctx, api.BeginBackup{Volume: "Volume1"}, func(x api.Backup) error {
			began = x
			if order {
				return b.client.EndBackup(t.Context(), x.ID)
			}
			gone()
			return nil
		})
		if order && (err != nil || reason != "by order") {
			t.Errorf("%q, %v", reason, err)
		}
		gone()
		eventually(t, 10*time.Second, "the backup has ended", func() bool {
			all, err := b.client.Backups(t.Context())
			return err == nil && len(all) == 0
		})
		b.released(t, began, false)
	}
}

// limitedBackup has nobody end it.
func (b *bench) limitedBackup(t *testing.T) {
	t.Helper()
	ctx := t.Context()
	for _, r := range []api.BeginBackup{{LimitNS: 1}, {LimitNS: 1 << 62}, {WaitNS: waits(-1)}, {WaitNS: waits(time.Hour)}, {Since: "a/b"}, {Snapshot: "x", Since: "x"}, {Snapshot: "backup-01234567"}} {
		r.Volume = "Volume1"
		_, err := b.client.BeginBackup(ctx, r)
		refused(t, err, api.Invalid)
	}
	_, err := b.client.BeginBackup(ctx, api.BeginBackup{Volume: "Volume1", Node: "n9"})
	refused(t, err, api.NotFound, "n9")
	began, err := b.client.BeginBackup(ctx, api.BeginBackup{Volume: "Volume1", Snapshot: "lost", LimitNS: int64(time.Second)})
	must(t, err)
	at := time.Now()
	_, err = b.client.CreateImage(ctx, api.CreateImage{Image: "Volume1/waited.img", Size: 1 << 20}) // waits, and is made then
	must(t, err)
	if took := time.Since(at); took < 500*time.Millisecond {
		t.Errorf("the change waited for %v only", took)
	}
	eventually(t, 10*time.Second, "the backup has ended", func() bool {
		all, err := b.client.Backups(ctx)
		return err == nil && len(all) == 0
	})
	b.released(t, began, false)
}

// stoppedBackup is ended with its node, and swept when the node was killed.
func (b *bench) stoppedBackup(t *testing.T) {
	t.Helper()
	began, err := b.client.BeginBackup(t.Context(), api.BeginBackup{Volume: "Volume1", Snapshot: "stopped"})
	must(t, err)
	b.restart()
	b.released(t, began, false)
	p, release := b.daemon.node.sortedVolumes()[0].borrow()
	_, err = p.vol.Snapshot(t.Context(), "backup-0123abcd", []string{"disk.img"}) // as a killed daemon leaves it
	must(t, err)
	release()
	b.restart()
	eventually(t, 10*time.Second, "what was left is swept", func() bool {
		p, release := b.daemon.node.sortedVolumes()[0].borrow()
		defer release()
		snapshots, err := p.vol.Snapshots(t.Context())
		return err == nil && !strings.Contains(fmt.Sprint(snapshots), "0123abcd")
	})
}
