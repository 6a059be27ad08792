package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"lunar/appliance/api"
)

func (c *cli) traceCommand() *cobra.Command {
	return noun("trace", "Look at what happens now", c.traceIO(), c.traceHeartbeat())
}

// The bounds of --interval.
const (
	minInterval = 100 * time.Millisecond
	maxInterval = time.Hour
)

func (c *cli) traceHeartbeat() *cobra.Command {
	var length, interval time.Duration
	cmd := c.verb("heartbeat [--for D] [--interval D]", "Show the node's heartbeats, by peer and network, until interrupted", 0,
		func(ctx context.Context, _ []string) error {
			if length < 0 || interval < minInterval || interval > maxInterval {
				return usagef("--for must not be negative, and --interval be %v to %v", minInterval, maxInterval)
			}
			return c.followHeartbeats(ctx, length, interval)
		})
	cmd.Long = "Show the node's heartbeats, by peer and network: the time since the last sign of life, missing heartbeats, jitter, and\n" +
		"round trips with their histogram, from under 1 µs at the left to over 1 s at the right. With --json a line each time."
	cmd.Flags().DurationVar(&length, "for", 0, "how long, such as 10s; 0s is until interrupted")
	cmd.Flags().DurationVar(&interval, "interval", time.Second, "how often")
	return cmd
}

// followHeartbeats shows them at once, and then at each interval; an interrupt is no failure.
func (c *cli) followHeartbeats(ctx context.Context, length, interval time.Duration) error {
	var over <-chan time.Time
	if length > 0 {
		timer := time.NewTimer(length)
		defer timer.Stop()
		over = timer.C
	}
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		h, err := c.client.Heartbeats(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err == nil {
			err = c.showHeartbeats(&h)
		}
		if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-over:
			return nil
		case <-tick.C:
		}
	}
}

// screenStart is to the upper left of a screen that is emptied.
const screenStart = "\x1b[H\x1b[2J"

func (c *cli) showHeartbeats(h *api.Heartbeats) error {
	if c.json {
		return json.NewEncoder(c.out).Encode(h)
	}
	if isTerminal(c.out) {
		_, _ = fmt.Fprint(c.out, screenStart)
	}
	if h.Method == "" {
		return api.Errorf(api.Unavailable, "node %s sends no heartbeats", h.Node).
			WithHint("it is in no cluster, or could not begin: see `lunarctl cluster status` and its journal")
	}
	method := h.Method
	if h.Fallback != "" {
		method += ": " + h.Fallback
	}
	_, err := fmt.Fprintf(c.out, "%s  %s  each %v, lost after %v  stamped by the %s\n", when(h.Time), h.Node, h.Interval, h.Threshold, method)
	if err != nil {
		return err
	}
	const header = "PEER NETWORK FAMILY STATE ROUTE LAST DAEMON BEATS GAPS JITTER RTT-P50 RTT-P99 RTT-HISTOGRAM"
	return printList(c, h.Paths, header, heartbeatRow)
}

func heartbeatRow(p *api.HeartbeatPath) []string {
	state := p.State
	if p.Down != "" {
		state += " (" + p.Down + ")"
	}
	return []string{
		p.Peer, p.Network, p.Family, state, yes(p.Route), brief(p.Last), brief(p.Daemon), strconv.FormatUint(p.Beats, 10),
		strconv.FormatUint(p.Gaps, 10), brief(p.Jitter), atMost(p.Quantile(0.5)), atMost(p.Quantile(0.99)), histogram(&p.RTT),
	}
}

// brief prints three digits of a duration, nothing for never.
func brief(d time.Duration) string {
	if d < 0 {
		return ""
	}
	unit := time.Duration(1)
	for d/unit >= 1000 {
		unit *= 10
	}
	return d.Round(unit).String()
}

func atMost(d time.Duration) string {
	if d == 0 {
		return ""
	}
	return "<" + brief(d)
}

// The classes that a histogram shows: each doubles, the first has all below 2^(firstClass+1) ns, the last all above.
const (
	firstClass = 9
	lastClass  = 30
)

// bars from none to all of what is most.
var bars = []rune("·▁▂▃▄▅▆▇█")

// histogram draws a bar per class of round trips; one that has any shows.
func histogram(rtt *[api.RTTBuckets]uint32) string {
	var classes [lastClass - firstClass + 1]uint64
	var most uint64
	for i, n := range rtt {
		k := min(max(i, firstClass), lastClass) - firstClass
		classes[k] += uint64(n)
		most = max(most, classes[k])
	}
	if most == 0 {
		return ""
	}
	var b strings.Builder
	for _, n := range classes {
		b.WriteRune(bars[(n*uint64(len(bars)-1)+most-1)/most])
	}
	return b.String()
}
