package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"text/tabwriter"
	"time"

	"lunar/appliance/api"
	"lunar/appliance/e2e/lab"
)

// growthSteps are the numbers of LUNs and of sessions.
var growthSteps = [...]int{1, 100, 1000}

// lunsPerTarget is within what a target takes (256), and divides the steps.
const lunsPerTarget = 250

// restTime is how long the sessions are watched doing nothing.
const restTime = 3 * time.Second

// Growth is what a number of LUNs and sessions costs.
type Growth struct {
	LUNs, Sessions int
	Load           Sample  // 4 KiB random reads over all LUNs
	Memory         float64 // resident MiB with all sessions logged in, after the load
	Rest           float64 // percent of one CPU while the sessions do nothing
}

// grow measures every pair of the steps on a node with so many LUNs, 1 GiB of images in sum.
func grow(ctx context.Context, l *lab.Lab, client string, seconds float64) error {
	var table []Growth
	for _, luns := range growthSteps {
		rows, err := growSessions(ctx, l, client, luns, seconds)
		if err != nil {
			return fmt.Errorf("%d LUNs: %w", luns, err)
		}
		table = append(table, rows...)
	}
	printGrowth(os.Stdout, table)
	return nil
}

func growSessions(ctx context.Context, parent *lab.Lab, client string, luns int, seconds float64) (rows []Growth, err error) {
	l, err := lab.Open(parent.Path(fmt.Sprintf("l%d", luns)), parent.Bin)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	device, err := l.Loop("disk", deviceSize)
	if err != nil {
		return nil, err
	}
	node, err := l.Lunard(ctx, lab.Config{})
	if err != nil {
		return nil, err
	}
	export, err := serveMany(ctx, node, device.Path, luns)
	if err != nil {
		return nil, err
	}
	for _, sessions := range growthSteps {
		fmt.Fprintf(os.Stderr, "%d LUNs, %d sessions\n", luns, sessions)
		g, err := growth(ctx, client, export, luns, sessions, seconds)
		if err != nil {
			return nil, fmt.Errorf("%d sessions: %w", sessions, err)
		}
		rows = append(rows, g)
	}
	return rows, nil
}

// serveMany formats the device and exports that many images, allocated beforehand, in as few targets as
// can be; the export's only URL lists one per target, as the client takes them.
func serveMany(ctx context.Context, node *lab.Lunard, device string, luns int) (*lab.Export, error) {
	if err := node.Script(ctx, "volume add "+device+" --name Volume1 --format xfs"); err != nil {
		return nil, err
	}
	c := api.NewClient(node.Socket)
	defer c.Close()
	var urls []string
	for first := 0; first < luns; first += lunsPerTarget {
		target := fmt.Sprintf("%s-%d", iqn, first)
		if _, err := c.CreateTarget(ctx, target); err != nil {
			return nil, err
		}
		urls = append(urls, node.Export(target, 0).URLs...)
		for i := range min(luns-first, lunsPerTarget) {
			if err := serveOne(ctx, c, target, i, int64(imageSize/luns)); err != nil {
				return nil, err
			}
		}
	}
	return &lab.Export{URLs: []string{strings.Join(urls, ",")}, Target: node.Process}, nil
}

func serveOne(ctx context.Context, c *api.Client, target string, number int, size int64) error {
	const mask = 1<<20 - 1
	name, lun := fmt.Sprintf("Volume1/%s-%d.img", target[len(iqn)+1:], number), uint16(number)
	if _, err := c.CreateImage(ctx, api.CreateImage{Image: name, Size: size &^ mask, Thick: true}); err != nil {
		return err
	}
	_, err := c.Map(ctx, target, api.Map{Image: name, LUN: &lun})
	return err
}

// growth measures one pair. One session has 32 commands under way, many have one each.
func growth(ctx context.Context, client string, export *lab.Export, luns, sessions int, seconds float64) (Growth, error) {
	g := Growth{LUNs: luns, Sessions: sessions}
	load := Load{Random: true, Block: 4 << 10, Depth: max(32/sessions, 1), Connections: sessions, LUNs: min(luns, lunsPerTarget)}
	var err error
	if g.Load, err = measure(ctx, client, export, load, seconds); err != nil {
		return g, err
	}
	err = g.rest(ctx, client, export)
	return g, err
}

// rest watches the target while all sessions are logged in and idle.
func (g *Growth) rest(ctx context.Context, client string, export *lab.Export) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cmd := exec.CommandContext(ctx, client, export.URLs[0], "hold", "random", "4096", "1",
		fmt.Sprint(g.Sessions), "60", fmt.Sprint(min(g.LUNs, lunsPerTarget)))
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	defer func() { cancel(); _ = cmd.Wait() }()
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "ready\n" {
		return fmt.Errorf("hold %d sessions: %q: %w", g.Sessions, line, err)
	}
	time.Sleep(restTime / 3) // what the logins left behind
	return g.watch(export.Target.PID())
}

func (g *Growth) watch(pid int) error {
	before, err := cpuSeconds(pid)
	if err != nil {
		return err
	}
	time.Sleep(restTime)
	after, err := cpuSeconds(pid)
	if err != nil {
		return err
	}
	g.Rest = 100 * (after - before) / restTime.Seconds()
	g.Memory, err = residentMiB(pid)
	return err
}

// residentMiB is VmRSS of proc(5).
func residentMiB(pid int) (float64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	_, rest, _ := bytes.Cut(status, []byte("VmRSS:"))
	var kib float64
	if _, err := fmt.Fscan(bytes.NewReader(rest), &kib); err != nil {
		return 0, fmt.Errorf("/proc/%d/status: VmRSS: %w", pid, err)
	}
	return kib / 1024, nil
}

func printGrowth(w io.Writer, table []Growth) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "LUNs\tsessions\tQD each\tIOPS\tp50 µs\tp99 µs\tCPU s/100k\tRSS MiB\tCPU at rest %\t")
	for _, g := range table {
		fmt.Fprintf(t, "%d\t%d\t%d\t%.0f\t%.0f\t%.0f\t%.2f\t%.0f\t%.2f\t\n", g.LUNs, g.Sessions, max(32/g.Sessions, 1),
			g.Load.IOPS, g.Load.P50, g.Load.P99, g.Load.CPU, g.Memory, g.Rest)
	}
	_ = t.Flush()
}
