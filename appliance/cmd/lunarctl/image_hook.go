package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"lunar/appliance/api"
)

func (c *cli) imageHook() *cobra.Command {
	var h api.Hook
	var limit time.Duration
	var remove bool
	cmd := c.verb("hook VOLUME/PATH [--before COMMAND] [--after COMMAND] [--agent SOCKET] [--node N] [--limit D] | --clear",
		"Show, set or clear what runs around an image's snapshots", 1, nil)
	cmd.RunE = c.runs(func(ctx context.Context, args []string) error {
		h.Image, h.LimitNS = args[0], int64(limit)
		sets := h.Before+h.After+h.Agent != ""
		switch {
		case remove && cmd.Flags().NFlag() > countSet(cmd, "clear", "json", "socket"):
			return usagef("--clear goes with no other flag")
		case remove:
			return firstError(c.client.ClearHook(ctx, args[0]), func() error { return c.done("%s has no hook any more", args[0]) })
		case !sets && (h.Node != "" || limit != 0):
			return usagef("--node and --limit go with --before, --after or --agent")
		case h.Agent != "" && h.Before+h.After != "":
			return usagef("give commands or --agent, not both")
		case sets:
			return c.showHook(c.client.SetHook(ctx, h))
		}
		return c.showHook(c.client.Hook(ctx, args[0]))
	})
	cmd.Long = "Show, set or clear an image's hook: commands that run before and after each snapshot of it, or a QEMU guest agent that freezes\n" +
		"and thaws the guest's file systems. It makes the snapshot one of an application at rest, where it would else be as after a power cut.\n\n" +
		"The command after it runs also when the one before it or the snapshot failed, was too slow, or when lunard was killed in between:\n" +
		"then by another process at once, or at the next start. It may run twice. When what runs before it fails, no snapshot is taken.\n" +
		"Commands get LUNAR_VOLUME, LUNAR_IMAGE, LUNAR_SNAPSHOT, LUNAR_PHASE (before, after) and LUNAR_RESULT (taken, failed, unknown)."
	f := cmd.Flags()
	f.StringVar(&h.Before, "before", "", "command line for /bin/sh")
	f.StringVar(&h.After, "after", "", "command line for /bin/sh")
	f.StringVar(&h.Agent, "agent", "", "unix socket of a QEMU guest agent, on the node")
	f.StringVar(&h.Node, "node", "", "node where it runs (default: the one that is asked)")
	f.DurationVar(&limit, "limit", 0, "of what runs before, of the time until the snapshot is taken, and of what runs after (default 15s)")
	f.BoolVar(&remove, "clear", false, "take the hook away")
	cmd.ValidArgsFunction = c.complete(c.imageNames)
	return cmd
}

// countSet is how many of the named flags were given.
func countSet(cmd *cobra.Command, names ...string) (n int) {
	for _, name := range names {
		if cmd.Flags().Changed(name) {
			n++
		}
	}
	return n
}

func (c *cli) showHook(h api.Hook, err error) error {
	if err != nil {
		return err
	}
	if c.json {
		return c.printJSON(h)
	}
	return c.fields("Image", h.Image, "Node", h.Node, "Before", h.Before, "After", h.After, "Guest agent", h.Agent, "Limit", time.Duration(h.LimitNS).String())
}
