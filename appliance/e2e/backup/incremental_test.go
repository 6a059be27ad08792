package backup

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lunar/appliance/api"
	"lunar/appliance/e2e/lab"
)

const (
	unit  = 64 << 10 // what is written at once
	piece = 16 * mib // of the data: pieces lie all over the image
	few   = 32       // small writes where there is no data
)

// TestIncrementalBackup changes 1 % of a sparse image, backs up what has changed with the tools of QEMU and
// libnbd, and restores all of it to a new image.
func TestIncrementalBackup(t *testing.T) {
	ctx, l := openLab(t)
	size, data := 4*gib, 256*mib // of the image, and what it holds
	if long {
		size, data = 10*gib, gib
	}
	device, err := l.Loop("lun", 4*data+4*gib)
	check(t, err)
	n, err := l.Lunard(ctx, lab.Config{})
	check(t, err)
	e, err := n.ServeImageOn(ctx, lab.ClusterVolume, device.Path, api.FormatSize(size), "iqn.2026-01.lunar.test:disk")
	check(t, err)
	write := func(commands string) {
		t.Helper()
		out, err := lab.RunInput(ctx, commands+"aio_flush\nflush\nquit\n", "qemu-io", "-f", "raw", e.URLs[0])
		if err != nil || strings.Contains(out, "failed") {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	began := time.Now()
	write(pieces(size, data))
	t.Logf("filled in %v", time.Since(began))
	full, whole := filepath.Join(l.Dir, "full.raw"), begin(ctx, t, n, "--snapshot", "monday")
	began = time.Now()
	tool(ctx, t, "nbdcopy", whole.Images[0].URI, full)
	t.Logf("full backup: %s of %s in %v", api.FormatSize(whole.Images[0].Data), api.FormatSize(size), time.Since(began).Round(time.Millisecond))
	end(ctx, t, n)

	r := rand.New(rand.NewPCG(1, 2))
	var commands strings.Builder
	changed := int64(0)
	for _, i := range r.Perm(int(data / unit))[:size/100/unit] {
		fmt.Fprintf(&commands, "aio_write -q -P %d %d %d\n", 1+r.IntN(255), at(size, data, int64(i)*unit), unit)
		changed += unit
	}
	began = time.Now()
	for range few { // where blocks are allocated ahead of writes that do not come
		fmt.Fprintf(&commands, "aio_write -q -P 7 %d 4k\n", at(size, data, r.Int64N(data/piece)*piece)+piece+r.Int64N(2*piece/4096)*4096)
		changed += 4096
	}
	write(commands.String())
	t.Logf("changed in %v", time.Since(began))

	b := begin(ctx, t, n, "--snapshot", "tuesday", "--since", "monday")
	inc := filepath.Join(l.Dir, "inc.qcow2")
	began = time.Now()
	tool(ctx, t, "qemu-img", "create", "-q", "-f", "qcow2", "-b", b.Images[0].URI, "-F", "raw", inc)
	copyChanged(ctx, t, b.Images[0], inc)
	took := time.Since(began)
	all, err := list(ctx, n)
	check(t, err)
	read := all[0].Images[0].Read
	t.Logf("incremental backup: %s of %s were changed (1 %%), %s have blocks of their own, %s were read (%.2f %%) in %v", api.FormatSize(changed),
		api.FormatSize(size), api.FormatSize(*b.Images[0].Changed), api.FormatSize(read), 100*float64(read)/float64(size), took.Round(time.Millisecond))
	if read < changed || read > size/50 {
		t.Errorf("%d bytes were read, %d were changed", read, changed)
	}
	tool(ctx, t, "qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", full, inc)
	tool(ctx, t, "qemu-img", "compare", "-f", "qcow2", "-F", "raw", inc, b.Images[0].URI)
	end(ctx, t, n)
	t.Logf("compared after %v", time.Since(began))
	restore(ctx, t, n, l.Dir, inc)
	t.Logf("restored after %v", time.Since(began))
	_, err = n.Ctl(ctx, "target", "unmap", "iqn.2026-01.lunar.test:disk", "0")
	check(t, err)
	_, err = n.Ctl(ctx, "volume", "eject", lab.ClusterVolume)
	check(t, err)
	check(t, n.Stop())
	tool(ctx, t, "xfs_repair", "-n", device.Path)
}

// at is where a byte of the data lies.
func at(size, data, off int64) int64 {
	apart := size / (data / piece) / mib * mib
	return off/piece*apart + off%piece
}

func pieces(size, data int64) string {
	var b strings.Builder
	for off := int64(0); off < data; off += piece {
		fmt.Fprintf(&b, "aio_write -q -P %d %d 16M\n", 1+off/piece%255, at(size, data, off))
	}
	return b.String()
}

func end(ctx context.Context, t *testing.T, n *lab.Lunard) {
	t.Helper()
	_, err := n.Ctl(ctx, "backup", "end", lab.ClusterVolume)
	check(t, err)
}

// copyChanged reads what has changed into a qcow2 file over the backup, as libvirt's pull mode has it.
func copyChanged(ctx context.Context, t *testing.T, im api.BackupImage, inc string) {
	t.Helper()
	var extents []struct{ Offset, Length, Type int64 }
	check(t, json.Unmarshal([]byte(tool(ctx, t, "nbdinfo", "--json", "--map="+im.Bitmap, im.URI)), &extents))
	var commands strings.Builder
	for _, x := range extents {
		if x.Type == 1 {
			for off, stop := x.Offset, x.Offset+x.Length; off < stop; off += 64 * mib {
				fmt.Fprintf(&commands, "read -q %d %d\n", off, min(64*mib, stop-off))
			}
		}
	}
	if out, err := lab.RunInput(ctx, commands.String()+"quit\n", "qemu-io", "-C", "-f", "qcow2", inc); err != nil || strings.Contains(out, "failed") {
		t.Fatalf("%v\n%s", err, out)
	}
}

// restore imports the chain into a new image, and compares it with the snapshot.
func restore(ctx context.Context, t *testing.T, n *lab.Lunard, dir, inc string) {
	t.Helper()
	flat := filepath.Join(dir, "flat.qcow2")
	tool(ctx, t, "qemu-img", "convert", "-f", "qcow2", "-O", "qcow2", inc, flat)
	_, err := n.Ctl(ctx, "image", "import", flat, lab.ClusterVolume+"/restored.img")
	check(t, err)
	_, err = n.Ctl(ctx, "image", "clone", lab.ClusterVolume+"/disk.img@tuesday", lab.ClusterVolume+"/tuesday.img")
	check(t, err)
	b := begin(ctx, t, n, "--image", lab.ClusterVolume+"/restored.img", "--image", lab.ClusterVolume+"/tuesday.img")
	out := tool(ctx, t, "qemu-img", "compare", "-f", "raw", "-F", "raw", b.Images[0].URI, b.Images[1].URI)
	t.Logf("restored image beside the snapshot: %s", strings.TrimSpace(out))
	end(ctx, t, n)
}
