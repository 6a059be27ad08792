package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
)

// Results holds the medians per load and target.
type Results map[Load]map[string]Sample

func (r Results) print(w io.Writer, order []Load, targets []string) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "load\ttarget\tIOPS\tMiB/s\tp50 µs\tp99 µs\tCPU s/100k\t")
	for _, load := range order {
		for _, name := range targets {
			s := r[load][name]
			fmt.Fprintf(t, "%s\t%s\t%.0f\t%.0f\t%.0f\t%.0f\t%.2f\t\n",
				load, name, s.IOPS, s.IOPS*float64(load.Block)/(1<<20), s.P50, s.P99, s.CPU)
		}
	}
	_ = t.Flush()
}

// printRatios compares ours with each peer: how many times its IOPS, its latencies, its IOPS per
// CPU second.
func (r Results) printRatios(w io.Writer, order []Load, peers []string) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "lunard ÷ peer\tpeer\tIOPS\tp50\tp99\tIOPS per CPU s\tbar\t")
	for _, load := range order {
		for _, peer := range peers {
			mine, theirs := r[load][ours], r[load][peer]
			fmt.Fprintf(t, "%s\t%s\t%.2f\t%.2f\t%.2f\t%.2f\t%s\t\n", load, peer, mine.IOPS/theirs.IOPS,
				mine.P50/theirs.P50, mine.P99/theirs.P99, theirs.CPU/mine.CPU, bar(load, peer, mine, theirs))
		}
	}
	_ = t.Flush()
}

// efficiency is the bar for IOPS per CPU second against tgtd aio.
func efficiency(l Load) float64 {
	switch {
	case l.Block >= 128<<10:
		return 3
	case l.Write:
		return 1.5
	}
	return 2
}

// bar says whether ours meets what the project asks for against that peer, and if not, in what.
func bar(l Load, peer string, mine, theirs Sample) string {
	var missed []string
	if peer == "gotgt" || strings.HasPrefix(peer, floorPrefix) {
		return ""
	}
	if mine.IOPS < theirs.IOPS {
		missed = append(missed, "IOPS ≥ 1")
	}
	if want := efficiency(l); peer == "tgtd-aio" && theirs.CPU/mine.CPU < want {
		missed = append(missed, fmt.Sprintf("CPU ≥ %.1f", want))
	}
	if len(missed) == 0 {
		return "met"
	}
	return fmt.Sprintf("missed: %v", missed)
}

// without returns names without name.
func without(names []string, name string) []string {
	return slices.DeleteFunc(slices.Clone(names), func(n string) bool { return n == name })
}
