package namespace

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"lunar/appliance/e2e/lab"
)

// speedBar is what a file of the namespace is to reach of a plain local XFS file's rate.
const speedBar = 0.8

// TestSpeed measures fio on a node that does not coordinate beside a plain XFS on a loop device over a file of the
// same kind as the nodes' LUN: in memory, or on the disk with LUNAR_DISK; it runs with LUNAR_RUNS, the number of rounds.
func TestSpeed(t *testing.T) {
	var rounds int
	if _, err := fmt.Sscan(os.Getenv("LUNAR_RUNS"), &rounds); err != nil {
		t.Skip("it measures: set LUNAR_RUNS to the number of rounds")
	}
	b := newBenchOn(t, os.Getenv("LUNAR_DISK") != "")
	_, others := b.roles()
	paths := map[string]string{"namespace": b.at(others[0], "disk.img"), "xfs": b.peer()}
	for _, path := range paths {
		b.run("dd", "if=/dev/urandom", "of="+path, "bs=1M", fmt.Sprintf("count=%d", imageSize/mib), "oflag=direct", "conv=notrunc,fsync", "status=none")
	}
	for _, rw := range []string{"randread", "randwrite"} {
		got := map[string][]float64{}
		for range rounds {
			for _, name := range []string{"xfs", "namespace"} {
				got[name] = append(got[name], b.rate(paths[name], rw))
			}
		}
		ratio := median(got["namespace"]) / median(got["xfs"])
		t.Logf("%s: namespace %.0f, xfs %.0f I/Os a second, %.2f; rounds %v", rw, median(got["namespace"]), median(got["xfs"]), ratio, got)
		if ratio < speedBar {
			t.Logf("%s: below the bar of %.1f", rw, speedBar)
		}
	}
	text, err := others[0].Ctl(b.ctx, "volume", "show", lab.ClusterVolume)
	check(t, err)
	t.Log(text)
	b.clean()
}

// peer is a file on a plain XFS.
func (b *bench) peer() string {
	b.t.Helper()
	file := fmt.Sprintf("/dev/shm/lunar-speed-%d", os.Getpid())
	if b.disk {
		file = b.lab.Path("peer.raw")
	}
	b.run("fallocate", "-l", fmt.Sprint(512*mib), file)
	b.t.Cleanup(func() { _ = os.Remove(file) })
	device := strings.TrimSpace(b.run("losetup", "--find", "--show", "--direct-io=on", file))
	defer b.run("losetup", "--detach", device) // when it is unmounted
	b.run("mkfs.xfs", "-q", device)
	m, err := b.lab.Mount(device, "peer", "xfs", 0)
	check(b.t, err)
	return filepath.Join(m.Path, "file")
}

// rate is I/Os a second of 4 KiB at depth 32.
func (b *bench) rate(path, rw string) float64 {
	b.t.Helper()
	out := b.run("fio", "--name=speed", "--filename="+path, "--rw="+rw, "--bs=4k", "--ioengine=libaio", "--iodepth=32", "--direct=1",
		fmt.Sprintf("--size=%d", imageSize), "--time_based", "--runtime=2", "--ramp_time=1", "--output-format=json")
	var report struct {
		Jobs []struct{ Read, Write struct{ IOPS float64 } }
	}
	check(b.t, json.Unmarshal([]byte(out[strings.Index(out, "{"):]), &report))
	return math.Round(report.Jobs[0].Read.IOPS + report.Jobs[0].Write.IOPS)
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return v[len(v)/2]
}
