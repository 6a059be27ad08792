package backup

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"lunar/appliance/e2e/lab"
)

// The writes of TestCostWhileRunning: 4 KiB each, 32 at once, over all of an image in a step that comes back after all.
const (
	costSize  = 512 * mib
	costCount = 8192
	costStep  = 61 * 4096
	rounds    = 3
)

// TestCostWhileRunning measures what it costs writers that the next backup can be incremental, beside a dirty bitmap of
// QEMU: writes before the snapshot of a backup, the first ones after it, and these again; and writes to a qcow2 image of
// qemu-nbd without and with a bitmap.
func TestCostWhileRunning(t *testing.T) {
	if !long {
		t.Skip("a measurement: LUNAR_LONG=1, or make backup-test")
	}
	ctx, l := openLab(t)
	device, err := l.Loop("lun", 4*gib)
	check(t, err)
	n, err := l.Lunard(ctx, lab.Config{})
	check(t, err)
	e, err := n.ServeImageOn(ctx, lab.ClusterVolume, device.Path, fmt.Sprint(costSize), "iqn.2026-01.lunar.test:disk")
	check(t, err)
	tool(ctx, t, "qemu-io", "-f", "raw", "-c", fmt.Sprintf("write -P 1 0 %d", costSize), e.URLs[0])
	plain, marked := qcow(ctx, t, l, "plain"), qcow(ctx, t, l, "marked")
	tool(ctx, t, "qemu-img", "bitmap", "--add", "--enable", "-f", "qcow2", filepath.Join(l.Dir, "marked.qcow2"), "b0")
	times := map[string][]time.Duration{}
	for range rounds {
		run := func(name, url string) { times[name] = append(times[name], writes(ctx, t, url)) }
		run("Lunar, before the snapshot", e.URLs[0])
		b := begin(ctx, t, n)
		run("Lunar, first after the snapshot", e.URLs[0])
		run("Lunar, again", e.URLs[0])
		_, err := n.Ctl(ctx, "backup", "end", b.ID)
		check(t, err)
		for name, file := range map[string]string{"qemu-nbd, no bitmap": plain, "qemu-nbd, bitmap": marked} {
			serveQcow(ctx, t, l, file, func(url string) { run(name, url) })
		}
	}
	for _, pair := range [][2]string{{"Lunar, before the snapshot", "Lunar, first after the snapshot"}, {"Lunar, before the snapshot", "Lunar, again"},
		{"qemu-nbd, no bitmap", "qemu-nbd, bitmap"}} {
		a, b := median(times[pair[0]]), median(times[pair[1]])
		t.Logf("%s: %.0f writes/s; %s: %.0f writes/s; ratio %.2f", pair[0], costCount/a.Seconds(), pair[1], costCount/b.Seconds(), a.Seconds()/b.Seconds())
	}
}

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}

func writes(ctx context.Context, t *testing.T, url string) time.Duration {
	t.Helper()
	began := time.Now()
	tool(ctx, t, "qemu-img", "bench", "-q", "-f", "raw", "-w", "-t", "none", "-c", fmt.Sprint(costCount), "-d", "32", "-s", "4096", "-S", fmt.Sprint(costStep), url)
	return time.Since(began)
}

// qcow makes an image that has all its clusters.
func qcow(ctx context.Context, t *testing.T, l *lab.Lab, name string) string {
	t.Helper()
	file := filepath.Join(l.Dir, name+".qcow2")
	tool(ctx, t, "qemu-img", "create", "-q", "-f", "qcow2", file, fmt.Sprint(costSize))
	tool(ctx, t, "qemu-io", "-f", "qcow2", "-c", fmt.Sprintf("write -P 1 0 %d", costSize), file)
	return file
}

// serveQcow serves a file by qemu-nbd for as long as use runs.
func serveQcow(ctx context.Context, t *testing.T, l *lab.Lab, file string, use func(url string)) {
	t.Helper()
	socket := strings.TrimSuffix(file, ".qcow2") + ".sock"
	p, err := l.Start("qemu-nbd", "-f", "qcow2", "-t", "-e", "4", "-k", socket, "--cache=none", "--aio=native", file)
	check(t, err)
	check(t, lab.Poll(time.Minute, func() error { _, err := os.Stat(socket); return err }))
	use("nbd+unix:///?socket=" + socket)
	check(t, p.Stop())
}
