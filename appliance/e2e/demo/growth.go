package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"lunar/appliance/api"
	"lunar/appliance/e2e/lab"
)

// steps are the numbers of images; each is open on all three nodes, so the last makes a thousand layouts.
var steps = []int{1, 100, 334}

const (
	restTime  = 5 * time.Second // over which CPU at rest is counted
	settle    = 2 * time.Second
	onLine    = time.Minute
	imageEach = 4 << 20 // allocated
	perTarget = 200     // LUNs
)

// grow prints memory and CPU at rest of each node, with more and more images.
func grow(ctx context.Context, l *lab.Lab) error {
	c, err := l.Cluster(ctx, lab.ClusterConfig{Size: 4 << 30})
	if err != nil {
		return err
	}
	if err := c.Serve(ctx, imageEach); err != nil {
		return err
	}
	fmt.Printf("At rest, per node: memory of lunard (RSS), of its guard, and CPU of both over %v.\n\n", restTime)
	fmt.Printf("  %7s %8s  %-6s %12s %12s %8s\n", "IMAGES", "LAYOUTS", "NODE", "LUNARD", "GUARD", "CPU")
	have := 1
	for _, want := range steps {
		began := time.Now()
		for ; have < want; have++ {
			if err := another(ctx, c, have); err != nil {
				return err
			}
		}
		if err := everywhere(ctx, c, have); err != nil {
			return err
		}
		took := time.Since(began)
		time.Sleep(settle)
		if err := measure(ctx, c, have); err != nil {
			return err
		}
		if want > 1 {
			fmt.Printf("  (made and exported by all nodes within %v)\n", took.Round(100*time.Millisecond))
		}
	}
	return nil
}

// another makes and exports one more image; a target takes perTarget of them.
func another(ctx context.Context, c *lab.Cluster, i int) error {
	first, image := c.Nodes[0].API, fmt.Sprintf("%s/image-%d", lab.ClusterVolume, i)
	target := fmt.Sprintf("iqn.2026-01.lunar.test:growth-%d", i/perTarget)
	if _, err := first.CreateImage(ctx, api.CreateImage{Image: image, Size: imageEach, Thick: true}); err != nil {
		return err
	}
	if i%perTarget == 0 || i == 1 {
		if _, err := first.CreateTarget(ctx, target); err != nil {
			return err
		}
	}
	_, err := first.Map(ctx, target, api.Map{Image: image})
	return err
}

// everywhere waits until all nodes have all LUNs on line.
func everywhere(ctx context.Context, c *lab.Cluster, want int) error {
	for _, n := range c.Nodes {
		err := lab.Poll(onLine, func() error {
			all, err := n.API.Targets(ctx)
			if err != nil {
				return err
			}
			got := 0
			for i := range all {
				for k := range all[i].LUNs {
					if all[i].LUNs[k].State == api.LUNOnline {
						got++
					}
				}
			}
			if got != want {
				return fmt.Errorf("node %s has %d of %d LUNs on line", n.Name, got, want)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func measure(ctx context.Context, c *lab.Cluster, images int) error {
	before := make([]float64, len(c.Nodes))
	for i, n := range c.Nodes {
		_, _, before[i] = use(n.PIDs())
	}
	select {
	case <-time.After(restTime):
	case <-ctx.Done():
		return ctx.Err()
	}
	for i, n := range c.Nodes {
		daemon, guard, cpu := use(n.PIDs())
		fmt.Printf("  %7d %8d  %-6s %8d MiB %8d MiB %7.1f%%\n", images, images*len(c.Nodes), n.Name, daemon>>20, guard>>20,
			100*(cpu-before[i])/restTime.Seconds())
	}
	return nil
}

// use is the memory of the first process, that of the others, and the CPU seconds of all.
func use(pids []int) (first, others int64, cpu float64) {
	for i, pid := range pids {
		rss, seconds := processUse(pid)
		cpu += seconds
		if i == 0 {
			first = rss
		} else {
			others += rss
		}
	}
	return first, others, cpu
}

// processUse is a process's resident memory, in bytes, and its CPU time so far, in seconds; proc(5).
func processUse(pid int) (rss int64, cpu float64) {
	const ticks = 100 // per second, in every Linux
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0
	}
	_, after, _ := strings.Cut(string(text), ") ")
	words := strings.Fields(after)
	number := func(field int) int64 { // as proc(5) numbers them
		if field-3 >= len(words) {
			return 0
		}
		n, err := strconv.ParseInt(words[field-3], 10, 64)
		if err != nil {
			return 0
		}
		return n
	}
	return number(24) * int64(os.Getpagesize()), float64(number(14)+number(15)) / ticks
}
