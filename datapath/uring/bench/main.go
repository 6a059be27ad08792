// Command bench compares the io_uring engine with its peers on one block device: fio, goroutines
// with pread, and giouring when built with -tags giouring -ldflags=-checklinkname=0.
//
// All peers run in turn within each round, so that a change of the machine's mood meets all alike,
// and the medians of the rounds are compared. Without -device it makes a loop device over a file in
// memory, then a zram device where the kernel has them, and takes them away at the end. It needs root and fio.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"
)

// options are the command line's.
type options struct {
	device    string
	overwrite bool
	size      int64
	rounds    int
	cell      time.Duration
	only      string
	spin      time.Duration
	profile   string
}

func parse() options {
	var o options
	flag.StringVar(&o.device, "device", "", "block device to measure on; default: a loop device over memory, then zram")
	flag.BoolVar(&o.overwrite, "overwrite", false, "measure writes on -device too, which destroys what it holds")
	flag.Int64Var(&o.size, "size", 1<<30, "bytes of the loop device (zram: at most 512 MiB), and of the part of -device that is used")
	flag.IntVar(&o.rounds, "rounds", 5, "rounds; the medians are shown")
	flag.DurationVar(&o.cell, "time", 2*time.Second, "time per workload, peer and round")
	flag.StringVar(&o.only, "only", "", "only workloads whose name contains this")
	flag.DurationVar(&o.spin, "spin", 0, "the engine's Options.Spin")
	flag.StringVar(&o.profile, "profile", "", "write a CPU profile to this file")
	flag.Parse()
	return o
}

// workloads are the cells of the table.
func workloads(d *device, o options) (out []workload) {
	for _, write := range []bool{false, true} {
		if write && d.reads {
			continue
		}
		for _, depth := range []int{1, 32, 128} {
			out = append(out, workload{write: write, random: true, block: 4 << 10, depth: depth})
		}
		out = append(out, workload{write: write, block: 128 << 10, depth: 16})
	}
	return slices.DeleteFunc(out, func(w workload) bool { return !strings.Contains(w.String(), o.only) })
}

func main() {
	if err := run(parse()); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(o options) error {
	if o.profile != "" {
		stop, err := startProfile(o.profile)
		if err != nil {
			return err
		}
		defer stop()
	}
	for _, open := range devices(o) {
		if err := compare(open, o); errors.Is(err, errNoDevice) {
			fmt.Printf("# %v\n", err)
		} else if err != nil {
			return err
		}
	}
	return nil
}

// compare measures on one device.
func compare(open func() (*device, error), o options) error {
	dev, err := open()
	if err != nil {
		return err
	}
	defer dev.close()
	peers, err := openPeers(dev, o)
	if err != nil {
		return err
	}
	defer func() {
		for _, p := range peers {
			p.close()
		}
	}()
	fmt.Printf("# %s, %d MiB, %d CPUs, %d rounds of %v\n", dev.what, dev.size>>20, runtime.NumCPU(), o.rounds, o.cell)
	return measure(peers, workloads(dev, o), o)
}

// settle is between two peers' turns: what a process leaves to the kernel at its end, the rings of fio above all, must
// not be done in the next one's time.
const settle = 200 * time.Millisecond

// measure runs all rounds of each workload and prints its rows.
func measure(peers []peer, cells []workload, o options) error {
	header()
	for _, w := range cells {
		results := make([][]result, len(peers))
		for range o.rounds {
			for i, p := range peers {
				time.Sleep(settle)
				r, err := p.run(w, o.cell)
				if err != nil {
					return fmt.Errorf("%s, %s: %w", p.name(), w, err)
				}
				results[i] = append(results[i], r)
			}
		}
		rows(w, peers, results)
	}
	return nil
}
