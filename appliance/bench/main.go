package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"lunar/appliance/e2e/lab"
)

type options struct {
	bin, source, dir string
	targets          []string
	connections      []int
	only             *regexp.Regexp // of the loads' names
	rounds           int
	seconds          float64
	growth           bool
}

func main() {
	o, err := parse(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err = bench(ctx, o)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func parse(args []string) (options, error) {
	var o options
	var connections, targets, only string
	flags := flag.NewFlagSet("bench", flag.ExitOnError)
	flags.StringVar(&o.bin, "bin", "build/bin", "`folder` of lunard, lunarctl and gotgt")
	flags.StringVar(&o.source, "source", "appliance/bench", "`folder` of the C programs' sources")
	flags.StringVar(&o.dir, "dir", os.TempDir(), "`folder` for the disks, 3 GiB each")
	flags.StringVar(&targets, "targets", "lunard,tgtd-aio,tgtd-rdwr,gotgt", "comma-separated `names`; lunard=FOLDER is another build of lunard; floor-pread, floor-ring and floor-null bound what any target can do at depth 1 (pread, null: one connection)")
	flags.StringVar(&connections, "connections", "1,8", "comma-separated `numbers`")
	flags.StringVar(&only, "loads", "", "`expression` that the names of the loads match, such as \"4k .* QD1 \"")
	flags.IntVar(&o.rounds, "rounds", 3, "`number` of rounds")
	flags.Float64Var(&o.seconds, "seconds", 2, "`length` of each run")
	flags.BoolVar(&o.growth, "growth", false, "measure lunard alone, with up to 1,000 LUNs and sessions")
	_ = flags.Parse(args) // exits by itself
	o.targets = strings.Split(targets, ",")
	for text := range strings.SplitSeq(connections, ",") {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			return o, fmt.Errorf("-connections: %q is not a positive number", text)
		}
		o.connections = append(o.connections, n)
	}
	var err error
	if o.only, err = regexp.Compile(only); err != nil {
		return o, fmt.Errorf("-loads: %w", err)
	}
	if o.rounds < 1 || o.seconds <= 0 {
		return o, errors.New("-rounds and -seconds must be positive")
	}
	return o, nil
}

func bench(ctx context.Context, o options) (err error) {
	dir, err := os.MkdirTemp(o.dir, "lunar-bench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // a temporary folder
	l, err := lab.Open(dir, o.bin)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	client := l.Path("client")
	if err := compile(ctx, filepath.Join(o.source, "client", "client.c"), client, "-liscsi"); err != nil {
		return err
	}
	if o.growth {
		return grow(ctx, l, client, o.seconds)
	}
	order, err := o.order()
	if err != nil {
		return err
	}
	f := field{lab: l, source: o.source}
	defer func() { err = errors.Join(err, f.close()) }()
	if err := f.start(ctx, o.targets); err != nil {
		return err
	}
	if err := fill(ctx, client, f.targets); err != nil {
		return err
	}
	results, err := rounds(ctx, o, client, f.targets, order)
	if err != nil {
		return err
	}
	results.print(os.Stdout, order, o.targets)
	if slices.Contains(o.targets, ours) {
		fmt.Println()
		results.printRatios(os.Stdout, order, without(o.targets, ours))
	}
	return nil
}

// order is the loads that were asked for.
func (o options) order() ([]Load, error) {
	order := slices.DeleteFunc(loads(o.connections), func(l Load) bool { return !o.only.MatchString(l.String()) })
	for _, l := range order {
		for _, target := range o.targets {
			if err := takes(target, l); err != nil {
				return nil, err
			}
		}
	}
	return order, nil
}

// fill writes each LUN once, so that reads reach the disk and writes find their blocks allocated.
func fill(ctx context.Context, client string, targets []Target) error {
	for _, t := range targets {
		load := Load{Write: true, Block: 1 << 20, Depth: 8, Connections: 1}
		if strings.HasPrefix(t.Name, floorPrefix) {
			load.Block, load.Depth = 256<<10, 1
		}
		if _, err := measure(ctx, client, t.Export, load, 0); err != nil {
			return fmt.Errorf("fill %s: %w", t.Name, err)
		}
	}
	return nil
}

// rounds runs every load on every target in turn, so that the machine's moods hit all of them.
func rounds(ctx context.Context, o options, client string, targets []Target, order []Load) (Results, error) {
	samples := map[Load]map[string][]Sample{}
	for round := range o.rounds {
		for i, load := range order {
			if samples[load] == nil {
				samples[load] = map[string][]Sample{}
			}
			fmt.Fprintf(os.Stderr, "round %d of %d, load %d of %d: %s\n", round+1, o.rounds, i+1, len(order), load)
			for _, t := range targets {
				s, err := measure(ctx, client, t.Export, load, o.seconds)
				if err != nil {
					return nil, fmt.Errorf("%s, %s: %w", t.Name, load, err)
				}
				samples[load][t.Name] = append(samples[load][t.Name], s)
			}
		}
	}
	results := Results{}
	for load, byTarget := range samples {
		results[load] = map[string]Sample{}
		for name, list := range byTarget {
			results[load][name] = medians(list)
		}
	}
	return results, nil
}
