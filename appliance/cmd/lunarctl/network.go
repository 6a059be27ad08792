package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"lunar/appliance/api"
)

func (c *cli) networkCommand() *cobra.Command {
	return noun("network", "The networks between the nodes",
		c.verb("list", "List the networks, their roles and metrics", 0, c.networkList), c.networkSet())
}

func (c *cli) networkNames(ctx context.Context) ([]string, error) {
	n, err := c.client.Networks(ctx)
	return named(n.Networks, err)(func(n *api.Network) string { return n.Name })
}

func (c *cli) networkList(ctx context.Context, _ []string) error {
	all, err := c.client.Networks(ctx)
	if err != nil {
		return err
	}
	if c.json {
		return c.printJSON(all)
	}
	err = printList(c, all.Networks, "NAME METRIC AUTOMETRIC ROLE SUBNET STATE", func(n *api.Network) []string {
		return []string{n.Name, strconv.FormatUint(uint64(n.Metric), 10), titled(n.AutoMetric), n.Role, strings.Join(n.Subnets, ","), string(n.State)}
	})
	if err != nil {
		return err
	}
	if all.Fallback != "" {
		_, _ = fmt.Fprintf(c.out, "\nHeartbeats of %s are stamped by their sockets, not by the kernel: %s\n", all.Node, all.Fallback)
	}
	for _, w := range all.Warnings {
		_, _ = fmt.Fprintf(c.out, "\n%s\n", w)
	}
	return nil
}

// titled prints as PowerShell does, whose table this is.
func titled(b bool) string {
	if b {
		return "True"
	}
	return "False"
}

// once is a flag that may be given one time.
type once struct {
	set   bool
	check func(string) error
}

// String implements pflag.Value.
func (*once) String() string { return "" }

// Type implements pflag.Value.
func (*once) Type() string { return "" }

// Set implements pflag.Value.
func (o *once) Set(text string) error {
	if o.set {
		return usagef("it was given twice")
	}
	o.set = true
	return o.check(text)
}

func (c *cli) networkSet() *cobra.Command {
	var r api.SetNetwork
	cmd := c.verb("set NAME [--role R] [--metric N]", "Change what a network is for, or how it is preferred", 1,
		func(ctx context.Context, args []string) error {
			if r == (api.SetNetwork{}) {
				return usagef("nothing to change: give --role or --metric")
			}
			n, err := c.client.SetNetwork(ctx, args[0], r)
			if err != nil {
				return err
			}
			how := "by hand"
			if n.AutoMetric {
				how = "automatic"
			}
			return c.printOne(n, "%s: role %s, metric %d (%s)", n.Name, n.Role, n.Metric, how)
		})
	cmd.Flags().Var(&once{check: func(s string) error { return readRole(s, &r) }}, "role", "none, cluster, or cluster-and-client")
	cmd.Flags().Var(&once{check: func(s string) error { return readMetric(s, &r) }}, "metric",
		fmt.Sprintf("%d to %d, the lowest carries the cluster's traffic; or auto", api.MinMetric, api.MaxMetric))
	cmd.ValidArgsFunction = c.complete(c.networkNames)
	return cmd
}

func readRole(text string, r *api.SetNetwork) error {
	if !slices.Contains([]string{api.RoleNone, api.RoleCluster, api.RoleClusterAndClient}, text) {
		return usagef("%q is no role; give %s, %s or %s", text, api.RoleNone, api.RoleCluster, api.RoleClusterAndClient)
	}
	r.Role = &text
	return nil
}

func readMetric(text string, r *api.SetNetwork) error {
	var metric uint32
	if text != "auto" {
		n, err := strconv.ParseUint(text, 0, 32)
		if err != nil || n < api.MinMetric || n > api.MaxMetric {
			return usagef("%q is no metric; give %d to %d, or auto", text, api.MinMetric, api.MaxMetric)
		}
		metric = uint32(n)
	}
	r.Metric = &metric
	return nil
}

func (c *cli) clusterValidate(ctx context.Context, _ []string) error {
	v, err := c.client.ValidateCluster(ctx)
	if err != nil {
		return err
	}
	if err := c.printValidation(&v); err != nil {
		return err
	}
	if n := v.Count(api.Failure); n > 0 {
		return api.Errorf(api.Failed, "%d of %d checks failed", n, len(v.Checks))
	}
	return nil
}

func (c *cli) printValidation(v *api.Validation) error {
	if c.json {
		return c.printJSON(v)
	}
	wide := 0
	for i := range v.Checks {
		wide = max(wide, len(v.Checks[i].Name))
	}
	for i := range v.Checks {
		k := &v.Checks[i]
		text := k.Found
		if k.Advice != "" {
			text += ": " + k.Advice
		}
		if _, err := fmt.Fprintf(c.out, "%-7s %-*s  %s\n", k.Outcome, wide, k.Name, text); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintf(c.out, "\n%d passed, %d warnings, %d failures\n", v.Count(api.Pass), v.Count(api.Warning), v.Count(api.Failure))
	return err
}
