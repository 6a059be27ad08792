package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"lunar/appliance/api"
)

func (c *cli) snapshotCommand() *cobra.Command {
	list := &cobra.Command{
		Use: "list [VOLUME]", Short: "List the snapshots", Args: cobra.MaximumNArgs(1), DisableFlagsInUseLine: true,
		RunE:              c.runs(c.snapshotList),
		ValidArgsFunction: c.complete(c.volumeNames),
	}
	diff := c.verb("diff VOLUME/PATH@A VOLUME/PATH@B", "Show where an image differs between two snapshots", 2, c.snapshotDiff)
	create, remove, revert := c.snapshotCreate(), c.snapshotDelete(), c.snapshotRevert()
	create.ValidArgsFunction = c.complete(c.imageNames)
	for _, cmd := range []*cobra.Command{diff, remove, revert} {
		cmd.ValidArgsFunction = c.complete(c.snapshotNames)
	}
	return noun("snapshot", "Keep images as they are at one instant", create, list, remove, diff, revert)
}

func (c *cli) snapshotNames(ctx context.Context) ([]string, error) {
	return named(c.client.Snapshots(ctx, ""))((*api.Snapshot).FullName)
}

func (c *cli) snapshotCreate() *cobra.Command {
	var name string
	var noHooks bool
	cmd := &cobra.Command{
		Use: "create VOLUME/PATH... [--name S] [--no-hooks]", Short: "Keep images of one volume as they are at one instant",
		Args: cobra.MinimumNArgs(1), DisableFlagsInUseLine: true,
		RunE: c.runs(func(ctx context.Context, args []string) error {
			s, err := c.client.CreateSnapshot(ctx, api.CreateSnapshot{Images: args, Name: name, NoHooks: noHooks})
			if err != nil {
				return err
			}
			for _, w := range s.Warnings {
				_, _ = fmt.Fprintln(c.err, "lunarctl:", w)
			}
			hooks := ""
			if s.Hooks > 0 {
				hooks = fmt.Sprintf(", %d hooks were run", s.Hooks)
			}
			return c.printOne(s, "%s@%s: %d images, I/O was held for %v%s", s.Volume, s.Name, len(s.Images), held(s.HoldNS), hooks)
		}),
	}
	cmd.Flags().StringVar(&name, "name", "", "the snapshot's name, by default the time")
	cmd.Flags().BoolVar(&noHooks, "no-hooks", false, "run no hooks of the images: applications are not stopped for it")
	return cmd
}

func held(ns int64) time.Duration { return time.Duration(ns).Round(10 * time.Microsecond) }

func (c *cli) snapshotList(ctx context.Context, args []string) error {
	all, err := c.client.Snapshots(ctx, strings.Join(args, ""))
	if err != nil {
		return err
	}
	return printList(c, all, "SNAPSHOT SIZE EXCLUSIVE TAKEN HOLD", func(s *api.Snapshot) []string {
		return []string{s.FullName(), api.FormatSize(s.Size), api.FormatSize(s.Exclusive), when(s.Taken), held(s.HoldNS).String()}
	})
}

func (c *cli) snapshotDelete() *cobra.Command {
	var force bool
	cmd := c.verb("delete VOLUME[/PATH]@SNAPSHOT [--force]", "Delete a snapshot, or one image of it", 1, func(ctx context.Context, args []string) error {
		if err := c.client.DeleteSnapshot(ctx, args[0], force); err != nil {
			return err
		}
		return c.done("%s is deleted", args[0])
	})
	cmd.Flags().BoolVar(&force, "force", false, "delete a snapshot with data that nothing else has: it is lost")
	return cmd
}

func (c *cli) snapshotRevert() *cobra.Command {
	var force bool
	cmd := c.verb("revert VOLUME/PATH@SNAPSHOT [--force]", "Make an image that is not exported what it was", 1, func(ctx context.Context, args []string) error {
		i, err := c.client.Revert(ctx, args[0], force)
		if err != nil {
			return err
		}
		return c.printOne(i, "%s is again what it was in %s: %s", i.Name(), args[0], api.FormatSize(i.Size))
	})
	cmd.Flags().BoolVar(&force, "force", false, "lose what was written since the snapshot")
	return cmd
}

func (c *cli) snapshotDiff(ctx context.Context, args []string) error {
	d, err := c.client.Diff(ctx, args[0], args[1])
	if err != nil {
		return err
	}
	if c.json {
		return c.printJSON(d)
	}
	rows := make([][]string, len(d.Changed))
	for i, r := range d.Changed {
		rows[i] = []string{fmt.Sprint(r.Offset), fmt.Sprint(r.Length)}
	}
	return c.table("OFFSET LENGTH", rows)
}
