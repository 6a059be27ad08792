package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"lunar/appliance/api"
)

func (c *cli) sessionCommand() *cobra.Command {
	return noun("session", "iSCSI sessions", c.verb("list", "List the sessions of all nodes", 0, c.sessionList))
}

func (c *cli) sessionList(ctx context.Context, _ []string) error {
	all, err := c.client.Sessions(ctx)
	if err != nil {
		return err
	}
	tellSilent(c.err, "the sessions", all.Silent)
	const header = "NODE INITIATOR TARGET ADDRESS PORTAL LANE IN-FLIGHT COMMANDS READ WRITTEN SINCE"
	return printList(c, all.Sessions, header, func(s *api.Session) []string {
		return []string{s.Node, s.Initiator, s.Target, s.Remote, s.Local, strconv.Itoa(s.Lane), strconv.Itoa(s.InFlight),
			strconv.FormatUint(s.Commands, 10), api.FormatSize(int64(s.Read)), api.FormatSize(int64(s.Written)), when(s.Since)}
	})
}

func (c *cli) logCommand() *cobra.Command {
	var follow bool
	var volume string
	cmd := c.verb("log [--follow] [--volume V]", "Print what was done and what happened in the cluster", 0,
		func(ctx context.Context, _ []string) error { return c.client.Log(ctx, volume, follow, c.printEvent) })
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what happens")
	cmd.Flags().StringVar(&volume, "volume", "", "only of this volume")
	return cmd
}

func (c *cli) printEvent(e api.Event) error {
	if c.json {
		return json.NewEncoder(c.out).Encode(e)
	}
	epoch := ""
	if e.Epoch > 0 && !strings.Contains(e.Text, "epoch") {
		epoch = fmt.Sprintf(" (epoch %d)", e.Epoch)
	}
	_, err := fmt.Fprintf(c.out, "%s %s %s: %s%s\n", when(e.Time), e.Node, e.Kind, e.Text, epoch)
	return err
}

func (c *cli) versionCommand() *cobra.Command {
	return c.verb("version", "Print the versions of lunarctl and of the node", 0, c.version)
}

// version works without a node too.
func (c *cli) version(ctx context.Context, _ []string) error {
	both := struct {
		Client api.Version  `json:"client"`
		Node   *api.Version `json:"node,omitempty"`
	}{Client: api.BuildVersion()}
	if v, err := c.client.Version(ctx); err == nil {
		both.Node = &v
	}
	if c.json {
		return c.printJSON(both)
	}
	lines := []string{"lunarctl", line(&both.Client)}
	if both.Node != nil {
		lines = append(lines, "lunard on "+both.Node.Node, line(both.Node))
	}
	return c.fields(lines...)
}

func line(v *api.Version) string {
	return strings.Join(strings.Fields(v.Version+" "+v.Commit+" "+v.Go), " ")
}
