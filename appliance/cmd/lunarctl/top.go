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

func (c *cli) topCommand() *cobra.Command {
	var once bool
	var q api.TopQuery
	var order string
	cmd := c.verb("top [--once] [--interval D] [--limit N] [--by ORDER]", "Show the cluster's I/O by node, volume, LUN and initiator, until interrupted", 0,
		func(ctx context.Context, _ []string) error {
			q.Order = api.TopOrder(order)
			if err := q.Fill(); err != nil {
				return usagef("%v", err)
			}
			return c.followTop(ctx, q, once)
		})
	cmd.Long = "Show the I/O of the whole cluster by node, volume, LUN and initiator, refreshed until interrupted. Latencies are from a\n" +
		"command's arrival to the sending of its answer, and right to a factor of two; DIRECT is the share of I/O that goes straight\n" +
		"to the LUN. With --json a line each time."
	f := cmd.Flags()
	f.BoolVar(&once, "once", false, "look for one interval and end")
	f.DurationVar(&q.Window, "interval", api.DefaultTopWindow, "how long to look each time")
	f.IntVar(&q.Limit, "limit", api.DefaultTopLimit, "how many LUNs and initiators, the busiest first")
	f.StringVar(&order, "by", string(api.ByIOPS), "what comes first: iops, bandwidth or latency")
	return cmd
}

func (c *cli) followTop(ctx context.Context, q api.TopQuery, once bool) error {
	for {
		t, err := c.client.Top(ctx, q)
		if err == nil {
			err = c.showTop(&t, once)
		}
		switch {
		case ctx.Err() != nil:
			return nil //nolint:nilerr // an interrupt is how it ends
		case err != nil || once:
			return err
		}
	}
}

func (c *cli) showTop(t *api.Top, once bool) error {
	if c.json {
		return json.NewEncoder(c.out).Encode(t)
	}
	if !once && isTerminal(c.out) {
		_, _ = fmt.Fprint(c.out, screenStart)
	}
	_, _ = fmt.Fprintf(c.out, "%s  over %v, asked node %s\n\n", when(t.Time), t.Window.Round(time.Millisecond), t.Node)
	const rates = " R-IOPS W-IOPS READ-BW WRITE-BW R-P50 R-P99 W-P50 W-P99"
	err := printList(c, t.Nodes, "NODE SESSIONS"+rates+" DIRECT", func(n *api.TopNode) []string {
		return append(append([]string{n.Node, strconv.Itoa(n.Sessions)}, rateCells(&n.Rates)...), directShare(&n.Split))
	})
	if err == nil {
		err = c.section(t.Volumes != nil, func() error {
			return printList(c, t.Volumes, "VOLUME COORDINATOR"+rates+" DIRECT", func(v *api.TopVolume) []string {
				return append(append([]string{v.Volume, v.Coordinator}, rateCells(&v.Rates)...), directShare(&v.Split))
			})
		})
	}
	if err == nil {
		err = c.section(len(t.LUNs) > 0, func() error {
			return printList(c, t.LUNs, "TARGET LUN IMAGE NODES"+rates, func(l *api.TopLUN) []string {
				return append([]string{l.Target, strconv.Itoa(int(l.LUN)), l.Image, strings.Join(l.Nodes, ",")}, rateCells(&l.Rates)...)
			})
		})
	}
	if err == nil {
		err = c.section(len(t.Initiators) > 0, func() error {
			return printList(c, t.Initiators, "INITIATOR NODES RTT"+rates, func(i *api.TopInitiator) []string {
				return append([]string{i.Initiator, strings.Join(i.Nodes, ","), brief0(i.RTT)}, rateCells(&i.Rates)...)
			})
		})
	}
	c.topNotes(t)
	return err
}

// topNotes says what is left out.
func (c *cli) topNotes(t *api.Top) {
	if more := t.LUNsActive - len(t.LUNs); more > 0 {
		_, _ = fmt.Fprintf(c.out, "\n%d more LUNs: --limit shows more\n", more)
	}
	if more := t.InitiatorsActive - len(t.Initiators); more > 0 {
		_, _ = fmt.Fprintf(c.out, "\n%d more initiators: --limit shows more\n", more)
	}
	for _, note := range t.Notes {
		_, _ = fmt.Fprintf(c.out, "\n%s\n", note)
	}
	tellSilent(c.err, "numbers", t.Silent)
}

// section prints a blank line and then what show prints, if there is any.
func (c *cli) section(shown bool, show func() error) error {
	if !shown {
		return nil
	}
	_, _ = fmt.Fprintln(c.out)
	return show()
}

func rateCells(r *api.Rates) []string {
	return []string{
		perSecond(r.Read.IOPS), perSecond(r.Write.IOPS), bandwidth(r.Read.Bandwidth), bandwidth(r.Write.Bandwidth),
		brief0(r.Read.P50), brief0(r.Read.P99), brief0(r.Write.P50), brief0(r.Write.P99),
	}
}

// directShare is the part of I/O that was direct, nothing without any.
func directShare(s *api.Split) string {
	direct := s.DirectRead + s.DirectWrite
	all := direct + s.RedirectedRead + s.RedirectedWrite
	if all == 0 {
		return ""
	}
	return fmt.Sprintf("%.0f%%", 100*direct/all)
}

func perSecond(n float64) string {
	if n == 0 {
		return ""
	}
	return strconv.FormatFloat(n, 'f', 0, 64)
}

func bandwidth(n float64) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf("%.1fMiB/s", n/(1<<20))
}

// brief0 is brief, and nothing for 0.
func brief0(d time.Duration) string {
	if d == 0 {
		return ""
	}
	return brief(d)
}
