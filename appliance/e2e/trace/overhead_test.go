package trace

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"lunar/appliance/api"
	"lunar/appliance/e2e/lab"
	"lunar/appliance/e2e/lab/labtest"
)

// roundSeconds is how long each daemon is measured each round.
const roundSeconds = "2"

// TestOverhead measures what tracing costs: random reads of 4 KiB at queue depth 32, of a daemon that times nothing and of
// one that times all, in turn, LUNAR_TRACE_ROUNDS times. Only one of them runs at a time, since the kernel's programs see
// all I/O. It tells and judges nothing: a machine that does other things too cannot be judged by.
func TestOverhead(t *testing.T) {
	rounds, err := strconv.Atoi(os.Getenv("LUNAR_TRACE_ROUNDS"))
	if err != nil {
		t.Skip("LUNAR_TRACE_ROUNDS is not set")
	}
	ctx, l := labtest.Open(t, limit, "iscsi-perf", "mkfs.xfs", "qemu-io")
	modes := []string{"off", "on", "watched"}[:2+min(len(os.Getenv("LUNAR_TRACE_WATCHED")), 1)]
	daemons := make([]*lab.Lunard, len(modes))
	for i, mode := range modes {
		daemons[i] = overheadDaemon(ctx, t, l, mode)
	}
	iops, cpu := make([][]float64, len(modes)), make([][]float64, len(modes))
	for range rounds {
		for i, n := range daemons {
			check(t, n.Start(ctx))
			stop := func() {}
			if modes[i] == "watched" {
				stop = watched(ctx, n)
			}
			before := busy(t)
			got := perf(ctx, t, n)
			iops[i] = append(iops[i], got)
			cpu[i] = append(cpu[i], (busy(t)-before)/got)
			stop()
			check(t, n.Stop())
		}
	}
	for i, mode := range modes {
		t.Logf("%-8s median %6.0f IOPS, of the round's `off` %s; the machine's CPU per I/O %s", mode, median(iops[i]), ratio(iops[i], iops[0]), ratio(cpu[i], cpu[0]))
	}
}

// ratio tells how values compare with those of the same rounds: the median, the least and the most.
func ratio(values, of []float64) string {
	var all []float64
	for i := range values {
		all = append(all, values[i]/of[i])
	}
	return fmt.Sprintf("%.4f (%.4f to %.4f)", median(all), slices.Min(all), slices.Max(all))
}

// busy is the CPU time of the whole machine, interrupts and the initiator included, in ticks.
func busy(t *testing.T) float64 {
	t.Helper()
	text, err := os.ReadFile("/proc/stat")
	check(t, err)
	fields := strings.Fields(strings.SplitN(string(text), "\n", 2)[0])
	var sum float64
	for i, f := range fields[1:8] {
		n, err := strconv.ParseFloat(f, 64)
		check(t, err)
		if i != 3 && i != 4 { // idle and waiting for I/O
			sum += n
		}
	}
	return sum
}

func overheadDaemon(ctx context.Context, t *testing.T, l *lab.Lab, mode string) *lab.Lunard {
	t.Helper()
	disk, err := l.Loop("disk-"+mode, 512*mib)
	check(t, err)
	extra := "\n[engine]\nrings = 1\n"
	if mode == "off" {
		extra += "\n[trace]\ncommands = false\nbpf = \"off\"\n"
	}
	n, err := l.Lunard(ctx, lab.Config{Name: mode, Extra: extra})
	check(t, err)
	e, err := n.ServeImage(ctx, disk.Path, "256MiB", target)
	check(t, err)
	for at := range int64(16) { // a transfer is bounded
		_, err = lab.QemuIO(ctx, e.URLs[0], fmt.Sprintf("write -P 7 %d 16M", at*16*mib))
		check(t, err)
	}
	check(t, n.Stop())
	return n
}

// watched follows the daemon's I/O as `lunarctl trace io` does, until the result is called.
func watched(ctx context.Context, n *lab.Lunard) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	client := api.NewClient(n.Socket)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = client.TraceIO(ctx, api.TraceQuery{Slowest: 10, Interval: api.MinTraceInterval * 10}, func(api.TraceIO) error { return nil })
	}()
	return func() { cancel(); <-done; client.Close() }
}

var average = regexp.MustCompile(`iops average (\d+)`)

func perf(ctx context.Context, t *testing.T, n *lab.Lunard) float64 {
	t.Helper()
	out, err := lab.Run(ctx, "iscsi-perf", "-m", "32", "-b", "8", "-r", "-t", roundSeconds, n.Export(target, 0).URLs[0])
	check(t, err)
	all := average.FindAllStringSubmatch(out, -1)
	if len(all) == 0 {
		t.Fatalf("iscsi-perf says %q", out)
	}
	got, err := strconv.ParseFloat(all[len(all)-1][1], 64)
	check(t, err)
	return got
}

func median(all []float64) float64 {
	all = slices.Clone(all)
	slices.Sort(all)
	return (all[(len(all)-1)/2] + all[len(all)/2]) / 2
}
