package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"lunar/appliance/api"
)

func (c *cli) clusterCommand() *cobra.Command {
	return noun("cluster", "This node's part in a cluster",
		c.verb("init", "Make a cluster of this node, which keeps its volumes and targets", 0, c.clusterInit),
		c.verb("status", "Show the members, their votes, and what to do", 0, c.clusterStatus),
		c.clusterToken(), c.clusterJoin(), c.clusterLeave(),
		c.verb("validate", "Check networks, clocks, versions, disk paths and reservations, and say what to do", 0, c.clusterValidate),
		c.verb("save FILE", "Write the cluster's database, secrets included, to a new file", 1, c.clusterSave), c.clusterRestore())
}

func (c *cli) clusterInit(ctx context.Context, _ []string) error {
	var s api.Cluster
	err := c.progress(ctx, "", func() (err error) {
		s, err = c.client.InitCluster(ctx)
		return err
	})
	if err != nil {
		return err
	}
	return c.printOne(s, "cluster %s: %s is its first node, at %s; `lunarctl cluster token` lets another one in", s.ID, s.Node, s.Address)
}

func (c *cli) clusterStatus(ctx context.Context, _ []string) error {
	s, err := c.client.Cluster(ctx)
	if err != nil {
		return err
	}
	if c.json {
		return c.printJSON(s)
	}
	id := s.ID
	if id == "" {
		id = "none; `lunarctl cluster init` makes one, `lunarctl cluster join` takes this node into one"
	}
	votes := ""
	if s.Voters > 0 {
		votes = fmt.Sprintf("%d of %d voters live", s.Living, s.Voters)
	}
	err = c.fields("Cluster", id, "Asked", strings.TrimSpace(s.Node+" "+s.Address), "Leader", s.Leader, "Votes", votes, "Reason", s.Reason)
	if err != nil {
		return err
	}
	if len(s.Nodes) > 0 {
		_, _ = fmt.Fprintln(c.out)
		if err := c.printNodes(s.Nodes); err != nil {
			return err
		}
	}
	for _, line := range s.Advice {
		_, _ = fmt.Fprintf(c.out, "\n%s\n", line)
	}
	return nil
}

func (c *cli) clusterToken() *cobra.Command {
	var life time.Duration
	cmd := c.verb("token [--life D]", "Make a token that lets one node in, once", 0, func(ctx context.Context, _ []string) error {
		if life != 0 && life < time.Second {
			return usagef("--life: %v is too short", life)
		}
		t, err := c.client.NewToken(ctx, api.NewToken{Seconds: int64(life / time.Second)})
		if err != nil {
			return err
		}
		return c.printOne(t, "%s", t.Token)
	})
	cmd.Flags().DurationVar(&life, "life", 0, "how long it is good for, such as 10m (default 1h)")
	return cmd
}

func (c *cli) clusterJoin() *cobra.Command {
	var r api.Join
	cmd := c.verb("join ADDRESS --token T", "Take this node into the cluster of the node at ADDRESS", 1,
		func(ctx context.Context, args []string) (err error) {
			r.Address = args[0]
			if r.Token == "-" {
				if r.Token, err = c.readSecret("Token: "); err != nil {
					return err
				}
			}
			s, err := c.client.JoinCluster(ctx, r)
			if err != nil {
				return err
			}
			return c.printOne(s, "%s is in cluster %s now, with %s", s.Node, s.ID, others(s.Nodes, s.Node))
		})
	cmd.Flags().StringVar(&r.Token, "token", "", "what `lunarctl cluster token` printed; - reads it from standard input")
	_ = cmd.MarkFlagRequired("token")
	return cmd
}

func others(nodes []api.Node, self string) string {
	var names []string
	for i := range nodes {
		if nodes[i].Name != self {
			names = append(names, nodes[i].Name)
		}
	}
	return strings.Join(names, ", ")
}

func (c *cli) clusterLeave() *cobra.Command {
	var r api.Leave
	var o offLine
	cmd := c.verb("leave [--force]", "Take this node out of its cluster, which keeps the volumes and targets", 0,
		func(ctx context.Context, _ []string) error {
			err := c.client.LeaveCluster(ctx, r)
			if api.CodeOf(err) == api.Unreachable && r.Force {
				return c.leaveOffLine(ctx, &o, err)
			}
			if err != nil {
				return err
			}
			return c.done("this node is in no cluster now")
		})
	cmd.Long = "Take this node out of its cluster, which keeps the volumes and targets. With --force it also forgets a cluster\n" +
		"that has evicted it, while lunard does not run."
	o.flags(cmd)
	cmd.Flags().BoolVar(&r.Force, "force", false,
		"also with initiators logged in here, as the last node, or without the others: then evict this node there")
	return cmd
}

// leaveOffLine is for a node whose lunard does not start, because the others have evicted it.
func (c *cli) leaveOffLine(ctx context.Context, o *offLine, unreachable error) error {
	var was api.Cluster
	if err := o.call(ctx, &was, "--leave"); err != nil {
		if api.CodeOf(err) == api.NotFound {
			return unreachable
		}
		return err
	}
	return c.printOne(was, "%s has forgotten cluster %s; start lunard, and evict %s there if that was not done", was.Node, was.ID, was.Node)
}

// clusterSave shows the file only when it is whole.
func (c *cli) clusterSave(ctx context.Context, args []string) error {
	path := args[0]
	if _, err := os.Lstat(path); err == nil {
		return api.Errorf(api.Exists, "there is a file %s already", path).WithHint("give another name, or remove it")
	}
	file, err := os.CreateTemp(filepath.Dir(path), ".lunar-save-*") // of mode 0600
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(file.Name()) }()
	saved, err := c.client.SaveCluster(ctx, file)
	if err := firstError(err, file.Sync); err != nil {
		_ = file.Close()
		return err
	}
	if err := firstError(file.Close(), func() error { return os.Link(file.Name(), path) }); err != nil {
		return err
	}
	return c.printOne(saved, "%s: %s, revision %d; it holds the cluster's secrets", path, api.FormatSize(saved.Bytes), saved.Revision)
}

func (c *cli) clusterRestore() *cobra.Command {
	var o offLine
	var force bool
	cmd := &cobra.Command{
		Use: "restore FILE [--force]", Short: "Begin anew from a saved file, when most voters are lost for good",
		Args: cobra.ExactArgs(1), DisableFlagsInUseLine: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			c.parsed = true
			return c.restore(cmd.Context(), &o, force, args[0])
		},
	}
	cmd.Long = "Put a saved file in the place of this node's database. lunard must not run here, nor on any other node of\n" +
		"the cluster: they leave it with --force and join anew. The database before is kept beside it."
	o.flags(cmd)
	cmd.Flags().BoolVar(&force, "force", false, "over the database of another cluster, or of a node in no cluster")
	return cmd
}

func (c *cli) nodeCommand() *cobra.Command {
	show := c.verb("show NODE", "Show a node and how it reaches the volumes", 1, c.nodeShow)
	drain := c.verb("drain NODE", "Move a node's volumes to others, and let it coordinate none until it is resumed", 1, c.nodeDrain)
	resume := c.verb("resume NODE", "Let a node coordinate volumes again", 1, c.nodeResume)
	evict := c.nodeEvict()
	for _, cmd := range []*cobra.Command{show, drain, resume, evict} {
		cmd.ValidArgsFunction = c.complete(c.nodeNames)
	}
	return noun("node", "The nodes of the cluster", c.verb("list", "List the nodes", 0, c.nodeList), show, drain, resume, evict)
}

func (c *cli) nodeNames(ctx context.Context) ([]string, error) {
	return named(c.client.Nodes(ctx))(func(n *api.Node) string { return n.Name })
}

func (c *cli) nodeList(ctx context.Context, _ []string) error {
	nodes, err := c.client.Nodes(ctx)
	if err != nil {
		return err
	}
	return c.printNodes(nodes)
}

func (c *cli) printNodes(nodes []api.Node) error {
	return printList(c, nodes, "NODE STATE ROLE VOTE LEADER COORDINATES ADDRESS JOINED", func(n *api.Node) []string {
		return []string{n.Name, string(n.State), n.Role, n.Vote, yes(n.Leader), strconv.Itoa(n.Coordinates), n.Address, when(n.Joined)}
	})
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return ""
}

func noYes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func (c *cli) nodeShow(ctx context.Context, args []string) error {
	n, err := c.client.Node(ctx, args[0])
	if err != nil {
		return err
	}
	if c.json {
		return c.printJSON(n)
	}
	number, session := "", "none"
	if n.Number != 0 {
		number = strconv.Itoa(int(n.Number))
	}
	if n.Present {
		session = strconv.FormatUint(n.Incarnation, 10)
	}
	err = c.fields("Node", n.Name, "State", string(n.State), "Number", number, "Role", n.Role, "Vote", n.Vote, "Leader", yes(n.Leader),
		"Address", n.Address, "Portals", strings.Join(n.Portals, ", "), "Answers", noYes(n.Answers), "Session", session,
		"Draining", yes(n.Draining), "Joined", when(n.Joined))
	if err != nil {
		return err
	}
	_, _ = fmt.Fprintln(c.out)
	return printList(c, n.Volumes, "VOLUME PATH COORDINATES", func(v *api.NodePath) []string {
		return []string{v.Volume, noYes(v.Path), noYes(v.Coordinates)}
	})
}

func (c *cli) nodeDrain(ctx context.Context, args []string) error {
	var d api.Drained
	err := c.progress(ctx, args[0], func() (err error) {
		d, err = c.client.DrainNode(ctx, args[0])
		return err
	})
	if err != nil {
		return err
	}
	text := fmt.Sprintf("%s is drained: %d volumes moved", d.Node, len(d.Moved))
	if len(d.Stay) > 0 {
		text += "; it keeps " + strings.Join(d.Stay, ", ") + ", which no other node can take"
	}
	return c.printOne(d, "%s", text)
}

func (c *cli) nodeResume(ctx context.Context, args []string) error {
	if err := c.client.ResumeNode(ctx, args[0]); err != nil {
		return err
	}
	return c.done("%s may coordinate volumes again", args[0])
}

func (c *cli) nodeEvict() *cobra.Command {
	var force bool
	cmd := c.verb("evict NODE [--force]", "Fence a node that is lost, and take it out of the cluster", 1,
		func(ctx context.Context, args []string) error {
			var e api.Evicted
			err := c.progress(ctx, args[0], func() (err error) {
				e, err = c.client.EvictNode(ctx, args[0], force)
				return err
			})
			if err != nil {
				return err
			}
			return c.printEvicted(&e)
		})
	cmd.Flags().BoolVar(&force, "force", false, "also a node that lives, or that is not proven to be fenced: be sure that it is off")
	return cmd
}

func (c *cli) printEvicted(e *api.Evicted) error {
	if c.json {
		return c.printJSON(e)
	}
	_, _ = fmt.Fprintf(c.out, "%s is out of the cluster\n", e.Node)
	for _, line := range e.Fenced {
		_, _ = fmt.Fprintf(c.out, "  fenced from %s\n", line)
	}
	for _, line := range e.Notes {
		_, _ = fmt.Fprintf(c.err, "lunarctl: not proven: %s\n", line)
	}
	return nil
}

// tellSilent warns of nodes that are missing in a list.
func tellSilent(w io.Writer, what string, nodes []string) {
	if len(nodes) > 0 {
		_, _ = fmt.Fprintf(w, "lunarctl: %s of %s are missing: no answer\n", what, strings.Join(nodes, ", "))
	}
}
