package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"lunar/appliance/api"
)

func (c *cli) volumeRepair() *cobra.Command {
	var r api.Repair
	cmd := c.verb("repair VOLUME [--check-only|--no-check] [--defragment VOLUME/PATH]... [--trim] [--wait] [--force]",
		"Check a volume, and repair it when needed; I/O waits and does not fail", 1,
		func(ctx context.Context, args []string) error { return c.repair(ctx, args[0], r) })
	cmd.Long = `Check a volume's file system, and repair it when that finds damage. The coordinator does it.

All nodes' I/O is redirected meanwhile, with the reason Maintenance. Then the volume is unmounted, checked, repaired,
and mounted again; I/O waits for that long, and the command prints how long that was. It waits for 40 seconds at
most: a check that needs more is given up, and a repair that would is not begun, unless --wait is given. A
repair that has begun to write is ended in any case: by this node, or by the next coordinator.

--defragment joins the extents of an image while it is in use; give it once for each image. --trim tells the device
which blocks the file system does not use. Neither redirects I/O.`
	f := cmd.Flags()
	f.BoolVar(&r.CheckOnly, "check-only", false, "look for damage and change nothing")
	f.BoolVar(&r.NoCheck, "no-check", false, "leave the check out: the volume stays mounted")
	f.StringArrayVar(&r.Defragment, "defragment", nil, "join the extents of this image, VOLUME/PATH")
	f.BoolVar(&r.Trim, "trim", false, "tell the device which blocks are not used")
	f.BoolVar(&r.Wait, "wait", false, "let I/O wait for as long as it takes: after a minute it fails")
	f.BoolVar(&r.Force, "force", false, "repair also when the log cannot be replayed: what it has of the last changes is lost")
	_ = cmd.RegisterFlagCompletionFunc("defragment", func(cmd *cobra.Command, _ []string, typed string) ([]string, cobra.ShellCompDirective) {
		return c.complete(c.imageNames)(cmd, nil, typed)
	})
	return cmd
}

func (c *cli) repair(ctx context.Context, volume string, r api.Repair) error {
	line := repairLine{c: c, terminal: isTerminal(c.err), began: time.Now()}
	result, err := c.client.RepairVolume(ctx, volume, r, line.show)
	line.end()
	if err != nil {
		return err
	}
	if c.json {
		return c.printJSON(result)
	}
	return c.fields(repairFields(&result)...)
}

// repairLine shows the steps: a line for each, or on a terminal one that changes where there is a measure.
type repairLine struct {
	c        *cli
	terminal bool
	began    time.Time
	open     bool // the last line is to be changed
}

func (l *repairLine) show(s api.RepairStep) {
	l.end()
	text := s.Text
	if s.Total > 0 {
		text = strings.TrimSpace(fmt.Sprintf("%s %d%% of %s", s.Text, s.Done*100/s.Total, api.FormatSize(s.Total)))
	}
	text = fmt.Sprintf("%7.2fs %s: %s", time.Since(l.began).Seconds(), s.Phase, text)
	if l.open = l.terminal && s.Total > 0 && s.Done < s.Total; l.open {
		_, _ = fmt.Fprint(l.c.err, text)
		return
	}
	_, _ = fmt.Fprintln(l.c.err, text)
}

func (l *repairLine) end() {
	if l.open {
		_, _ = fmt.Fprint(l.c.err, lineStart)
		l.open = false
	}
}

// repairFields is the result in words.
func repairFields(r *api.RepairResult) []string {
	out := []string{"Volume", r.Volume, "Coordinator", r.Coordinator}
	if r.Checked {
		out = append(out, "File system", r.FileSystem+", "+verdict(r))
	}
	for _, f := range r.Findings {
		out = append(out, "Found", f)
	}
	if r.More > 0 {
		out = append(out, "Found", fmt.Sprintf("%d lines more", r.More))
	}
	if r.RedirectedNS > 0 {
		out = append(out, "Redirected", "for "+short(r.RedirectedNS))
	}
	if r.WaitedNS > 0 {
		out = append(out, "I/O waited", "for at most "+short(r.WaitedNS))
	}
	for _, d := range r.Defragmented {
		out = append(out, "Defragmented", fmt.Sprintf("%s: %d extents, was %d; %s moved", d.Image, d.After, d.Before, size(d.Moved)))
	}
	if r.Trimmed > 0 {
		out = append(out, "Trimmed", size(r.Trimmed))
	}
	return append(out, "Took", short(r.TookNS))
}

func verdict(r *api.RepairResult) string {
	switch {
	case r.Repaired:
		return "damaged, repaired, and clean now"
	case r.Damaged:
		return "damaged"
	}
	return "clean"
}

func short(ns int64) string { return time.Duration(ns).Round(time.Millisecond).String() }
