package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"lunar/appliance/api"
)

func (c *cli) traceIO() *cobra.Command {
	var q api.TraceQuery
	var lun int
	cmd := c.verb("io [--volume V] [--target T] [--lun N] [--slowest N] [--for D]", "Show where this node's I/O spends its time, until interrupted", 0,
		func(ctx context.Context, _ []string) error {
			if lun < -1 || lun > 0x3fff {
				return usagef("--lun: %d is no LUN", lun)
			}
			if lun >= 0 {
				number := uint16(lun)
				q.LUN = &number
			}
			if err := q.Fill(); err != nil {
				return usagef("%v", err)
			}
			return c.followIO(ctx, q)
		})
	cmd.Long = "Show where this node's I/O spends its time: a heat map of the commands' latencies, a line each interval; the histogram of\n" +
		"each stage of their way, from under 1 µs at the left to over 1 minute at the right; the busiest LUNs and initiators; and with\n" +
		"--slowest the slowest commands, stage by stage, among the events of the cluster at that moment. Times marked as the kernel's\n" +
		"come from eBPF. With --json a line each interval."
	f := cmd.Flags()
	f.StringVar(&q.Volume, "volume", "", "of this volume only")
	f.StringVar(&q.Target, "target", "", "of this target only")
	f.IntVar(&lun, "lun", -1, "of this LUN only")
	f.IntVar(&q.Slowest, "slowest", 0, fmt.Sprintf("show so many of the slowest commands, %d at most", api.MaxTraceSlowest))
	f.IntVar(&q.Limit, "limit", api.DefaultTraceLimit, "show so many LUNs and initiators, the busiest first")
	f.DurationVar(&q.For, "for", 0, "how long, such as 10s; 0s is until interrupted")
	f.DurationVar(&q.Interval, "interval", time.Second, "how often")
	return cmd
}

// followIO shows reports as they come; an interrupt is no failure.
func (c *cli) followIO(ctx context.Context, q api.TraceQuery) error {
	v := ioView{c: c, query: q, live: !c.json && isTerminal(c.out), stages: map[stageKey]*api.Stage{}, rows: map[rowKey]*api.TraceRow{}}
	err := c.client.TraceIO(ctx, q, v.see)
	if err != nil && (ctx.Err() != nil || errors.Is(err, context.Canceled)) {
		err = nil
	}
	if err != nil || c.json || v.live {
		return err
	}
	return v.summary()
}

// heatRows is how many lines of the heat map a screen has.
const heatRows = 16

// ioView is what was seen since the start.
type ioView struct {
	c      *cli
	query  api.TraceQuery
	live   bool
	heat   []string // the latest lines
	order  []stageKey
	stages map[stageKey]*api.Stage
	rows   map[rowKey]*api.TraceRow
	slow   []api.SlowCommand
	active int
	notes  []string
}

type stageKey struct{ name, device, peer string }

type rowKey struct {
	target, initiator, operation string
	lun                          uint16
}

// see takes one report in.
func (v *ioView) see(t api.TraceIO) error {
	if v.c.json {
		return json.NewEncoder(v.c.out).Encode(t)
	}
	v.add(&t)
	line := heatLine(&t)
	v.heat = append(v.heat, line)
	if !v.live {
		if len(v.heat) == 1 {
			_, _ = fmt.Fprintln(v.c.out, heatHeader())
		}
		_, err := fmt.Fprintln(v.c.out, line)
		return err
	}
	v.heat = v.heat[max(len(v.heat)-heatRows, 0):]
	_, _ = fmt.Fprintf(v.c.out, "%snode %s\n%s\n%s\n", screenStart, t.Node, heatHeader(), strings.Join(v.heat, "\n"))
	return v.summary()
}

func (v *ioView) add(t *api.TraceIO) {
	for i := range t.Stages {
		s := &t.Stages[i]
		key := stageKey{s.Name, s.Device, s.Peer}
		known := v.stages[key]
		if known == nil {
			known = &api.Stage{Name: s.Name, Source: s.Source, About: s.About, Device: s.Device, Peer: s.Peer}
			v.stages[key] = known
			v.order = append(v.order, key)
		}
		known.Times.Add(&s.Times)
	}
	for i := range t.Rows {
		r := &t.Rows[i]
		key := rowKey{r.Target, r.Initiator, r.Operation, r.LUN}
		if known := v.rows[key]; known != nil {
			known.Times.Add(&r.Times)
			known.Bytes += r.Bytes
		} else {
			v.rows[key] = r
		}
	}
	v.slow = append(v.slow, t.Slow...)
	slices.SortStableFunc(v.slow, func(a, b api.SlowCommand) int { return cmp.Compare(b.Took, a.Took) })
	v.slow = v.slow[:min(len(v.slow), v.query.Slowest)]
	v.active, v.notes = max(v.active, t.Active), t.Notes
}

// summary prints all but the heat map.
func (v *ioView) summary() error {
	_, _ = fmt.Fprintln(v.c.out)
	var shown []*api.Stage
	for _, key := range v.order {
		if v.stages[key].Times.Count > 0 {
			shown = append(shown, v.stages[key])
		}
	}
	err := printList(v.c, shown, "STAGE SOURCE OF COUNT MEAN P50 P99 HISTOGRAM", func(s **api.Stage) []string {
		h := &(*s).Times
		return []string{
			strings.ReplaceAll((*s).Name, " ", "-"), (*s).Source, (*s).Device + (*s).Peer, strconv.FormatUint(h.Count, 10), brief0(h.Mean()),
			brief0(h.Quantile(0.5)), brief0(h.Quantile(0.99)), barsOf(h),
		}
	})
	if err == nil && len(v.rows) > 0 {
		err = v.printRows()
	}
	for i := range v.slow {
		v.c.printSlow(&v.slow[i])
	}
	for _, note := range v.notes {
		_, _ = fmt.Fprintf(v.c.out, "\n%s\n", note)
	}
	return err
}

func (v *ioView) printRows() error {
	_, _ = fmt.Fprintln(v.c.out)
	rows := make([]*api.TraceRow, 0, len(v.rows))
	for _, r := range v.rows {
		rows = append(rows, r)
	}
	slices.SortFunc(rows, func(a, b *api.TraceRow) int {
		return cmp.Or(cmp.Compare(b.Times.Count, a.Times.Count), cmp.Compare(a.Target, b.Target), cmp.Compare(a.LUN, b.LUN),
			cmp.Compare(a.Initiator, b.Initiator), cmp.Compare(a.Operation, b.Operation))
	})
	more := max(v.active, len(rows)) - min(len(rows), v.query.Limit)
	rows = rows[:min(len(rows), v.query.Limit)]
	err := printList(v.c, rows, "TARGET LUN IMAGE INITIATOR OP COUNT BYTES P50 P99 HISTOGRAM", func(r **api.TraceRow) []string {
		h := &(*r).Times
		return []string{
			(*r).Target, strconv.Itoa(int((*r).LUN)), (*r).Image, (*r).Initiator, (*r).Operation, strconv.FormatUint(h.Count, 10),
			size(int64((*r).Bytes)), brief0(h.Quantile(0.5)), brief0(h.Quantile(0.99)), barsOf(h),
		}
	})
	if more > 0 {
		_, _ = fmt.Fprintf(v.c.out, "\n%d more: --limit shows more\n", more)
	}
	return err
}

// printSlow tells a command's story: its stages and the cluster's events, in the order in which they happened.
func (c *cli) printSlow(s *api.SlowCommand) {
	where := s.Image
	if where == "" {
		where = fmt.Sprintf("%s LUN %d", s.Target, s.LUN)
	}
	way := ""
	if s.Redirected {
		way = ", redirected"
	}
	_, _ = fmt.Fprintf(c.out, "\n%s  %s of %d bytes on %s by %s took %s%s\n", s.Received.Local().Format("15:04:05.000000"), s.Command, s.Bytes,
		where, s.Initiator, brief(s.Took), way)
	events := s.Events
	tell := func(until time.Time) {
		for len(events) > 0 && !events[0].Time.After(until) {
			e := &events[0]
			_, _ = fmt.Fprintf(c.out, "  %+10.3fms  %s on %s: %s\n", ms(e.Time.Sub(s.Received)), e.Kind, e.Node, e.Text)
			events = events[1:]
		}
	}
	for _, stage := range s.Stages {
		tell(s.Received.Add(stage.At))
		_, _ = fmt.Fprintf(c.out, "  %+10.3fms  %s for %s\n", ms(stage.At), stage.Name, brief(stage.Took))
	}
	tell(s.Received.Add(s.Took))
	_, _ = fmt.Fprintf(c.out, "  %+10.3fms  answered with status %02Xh\n", ms(s.Took), s.Status)
	tell(s.Received.Add(time.Hour))
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// heatLabels is how many classes have a label together.
const heatLabels = 4

// heatHeader names the begin of every fourth class.
func heatHeader() string {
	out := fmt.Sprintf("%-8s %7s  %-*s", "TIME", "IOPS", heatLabels*heatColumn, "<1µs")
	for i := heatLabels; i < api.HistogramBuckets; i += heatLabels {
		out += fmt.Sprintf("%-*s", heatLabels*heatColumn, shortly(api.BucketEnd(i-1)))
	}
	return strings.TrimRight(out, " ")
}

// shortly has two digits at most.
func shortly(d time.Duration) string {
	unit := time.Duration(1)
	for d/unit >= 100 {
		unit *= 10
	}
	return d.Round(unit).String()
}

// shades from none to all of what is most.
var shades = []rune(" ░▒▓█")

// heatColumn is how many characters a class of the heat map takes.
const heatColumn = 2

// heatLine draws a report's commands by their latency, each class as dark as it has many.
func heatLine(t *api.TraceIO) string {
	var most uint64
	for _, n := range t.Total.Buckets {
		most = max(most, n)
	}
	var b strings.Builder
	_, _ = fmt.Fprintf(&b, "%s %7.0f  ", t.Time.Local().Format("15:04:05"), float64(t.Total.Count)/max(t.Window.Seconds(), 1e-3))
	for _, n := range t.Total.Buckets {
		shade := shades[0]
		if n > 0 {
			shade = shades[(n*uint64(len(shades)-1)+most-1)/most]
		}
		b.WriteString(strings.Repeat(string(shade), heatColumn))
	}
	return strings.TrimRight(b.String(), " ")
}

// barsOf draws a bar per class; one that has any shows.
func barsOf(h *api.Histogram) string {
	var most uint64
	for _, n := range h.Buckets {
		most = max(most, n)
	}
	if most == 0 {
		return ""
	}
	var b strings.Builder
	for _, n := range h.Buckets {
		b.WriteRune(bars[(n*uint64(len(bars)-1)+most-1)/most])
	}
	return b.String()
}
