package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"

	"lunar/appliance/e2e/cluster/load"
	"lunar/appliance/e2e/lab"
)

// show is the demonstration.
type show struct {
	cluster *lab.Cluster
	fleet   *load.Fleet
	failed  []error
	struck  *lab.ClusterNode
	strikes map[*lab.ClusterNode]*atomic.Int64 // odd: its own commands may fail now
}

const imageSize = 256 << 20

func (s *show) start(ctx context.Context, l *lab.Lab) (err error) {
	fmt.Println("Three nodes, each a network namespace with its own path (a loop device) to one shared LUN …")
	if s.cluster, err = l.Cluster(ctx, lab.ClusterConfig{}); err != nil {
		return err
	}
	if err := s.cluster.Serve(ctx, imageSize); err != nil {
		return err
	}
	out, err := s.cluster.Nodes[0].Ctl(ctx, "cluster", "status")
	if err != nil {
		return err
	}
	fmt.Println(indent(out))
	return s.exported(ctx)
}

// exported shows that every node serves the same LUN.
func (s *show) exported(ctx context.Context) error {
	var identities []string
	for _, n := range s.cluster.Nodes {
		out, err := lab.Run(ctx, "iscsi-inq", "-e", "1", "-c", "128", n.URL(lab.ClusterTarget))
		if err != nil {
			return err
		}
		identities = append(identities, strings.TrimSpace(out))
		fmt.Printf("  %s  %s\n", n.Name, n.URL(lab.ClusterTarget))
	}
	if identities[0] != identities[1] || identities[0] != identities[2] {
		return fmt.Errorf("the nodes' LUNs have other serial numbers: %q", identities)
	}
	fmt.Printf("  the same LUN at each: %s\n\n", identities[0])
	return nil
}

func indent(text string) string {
	return "  " + strings.ReplaceAll(strings.TrimSpace(text), "\n", "\n  ") + "\n"
}

// run goes through the faults with initiators at work, and looks at the end whether all is there.
func (s *show) run(ctx context.Context) error {
	var err error
	if s.fleet, err = load.StartFleet(ctx, s.cluster); err != nil {
		return err
	}
	defer s.fleet.Abandon()
	s.fleet.Go(ctx, s.clerk().Run)
	fmt.Println("Initiators write and check 4 KiB blocks through all nodes, over written and unwritten space, while images are made,")
	fmt.Println("cloned, resized and deleted. Longest time of one command at the initiators of the nodes that were not touched:")
	fmt.Println()
	fmt.Printf("  %-26s %-22s %9s %11s %10s %9s\n", "EVENT", "WHAT FOLLOWED", "DIRECT", "REDIRECTED", "METADATA", "MACHINE")
	for _, a := range s.acts() {
		if err := s.perform(ctx, a); err != nil {
			return fmt.Errorf("%s: %w", a.name, err)
		}
	}
	return s.end(ctx)
}

// end checks what the initiators were told, and the file system.
func (s *show) end(ctx context.Context) error {
	s.fleet.Finish(ctx)
	fmt.Printf("\n%s\n", s.fleet)
	out, err := s.cluster.Nodes[0].Ctl(ctx, "volume", "show", lab.ClusterVolume)
	if err != nil {
		return err
	}
	fmt.Println(indent(out))
	if err := s.cluster.Eject(ctx); err != nil {
		return err
	}
	if err := errors.Join(s.cluster.Stop(), s.cluster.Repair(ctx)); err != nil {
		return err
	}
	fmt.Println("xfs_repair -n: clean")
	return errors.Join(append(s.failed, s.fleet.Record.Errors()...)...)
}

// clerk gives orders about images to all nodes.
func (s *show) clerk() *load.Clerk {
	var orders []load.Order
	s.strikes = map[*lab.ClusterNode]*atomic.Int64{}
	for _, n := range s.cluster.Nodes {
		s.strikes[n] = new(atomic.Int64)
		orders = append(orders, load.Order{Name: n.Name, Client: n.API, Strikes: s.strikes[n]})
	}
	return load.NewClerk(s.fleet.Record, lab.ClusterVolume, 1, orders...)
}
