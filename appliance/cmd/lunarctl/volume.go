package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"lunar/appliance/api"
)

func (c *cli) volumeCommand() *cobra.Command {
	show := c.verb("show VOLUME", "Show a volume, its state on each node and its I/O", 1, c.volumeShow)
	rename := c.verb("rename VOLUME NEW", "Give a volume another name; exports follow", 2, c.volumeRename)
	redirect := c.verb("redirect VOLUME on|off", "Send this node's I/O through the coordinator", 2, c.volumeRedirect)
	move := c.volumeMove()
	repair := c.volumeRepair()
	eject := c.verb("eject VOLUME", "Unmount a volume and forget it; its files stay", 1, c.volumeEject)
	online, offline := c.volumeOnline(), c.volumeOffline()
	for _, cmd := range []*cobra.Command{show, rename, move, redirect, repair, eject, online, offline} {
		cmd.ValidArgsFunction = c.complete(c.volumeNames)
	}
	return noun("volume", "Back-end LUNs with their file systems",
		c.volumeAdd(), c.verb("list", "List the volumes", 0, c.volumeList), show, rename, move, redirect, online, offline, repair, eject)
}

func (c *cli) volumeAdd() *cobra.Command {
	var r api.AddVolume
	cmd := c.verb("add DEVICE [--name N] [--format xfs|ext4] [--force] [--allow-unfenced]", "Make a block device a volume", 1,
		func(ctx context.Context, args []string) error {
			r.Device = args[0]
			var v api.Volume
			err := c.progress(ctx, r.Device, func() (err error) {
				v, err = c.client.AddVolume(ctx, r)
				return err
			})
			if err != nil {
				return err
			}
			return c.printOne(v, "%s: %s on %s, %s, %s free", v.Name, v.FileSystem, v.Device, size(v.Size), size(v.Free))
		})
	cmd.Long = "Make a block device a volume. An XFS or ext4 file system that is there is used as it is;\n" +
		"--format makes a new one, and refuses a device that holds something unless --force is given."
	cmd.Flags().StringVar(&r.Name, "name", "", "name (default: the next free VolumeN)")
	cmd.Flags().StringVar(&r.Format, "format", "", "make a new file system, xfs or ext4")
	cmd.Flags().BoolVar(&r.Force, "force", false, "with --format: what the device holds is lost; without: take a volume that another cluster has not ejected")
	cmd.Flags().BoolVar(&r.AllowUnfenced, "allow-unfenced", false,
		"share a device without reservations: a node that is out is then only waited for")
	return cmd
}

func (c *cli) volumeMove() *cobra.Command {
	var to string
	cmd := c.verb("move VOLUME [--to NODE]", "Make another node the coordinator; I/O goes on", 1, func(ctx context.Context, args []string) error {
		m, err := c.client.MoveVolume(ctx, args[0], to)
		if err != nil {
			return err
		}
		return c.printOne(m, "%s: %s is the coordinator, epoch %d", m.Volume, m.Node, m.Epoch)
	})
	cmd.Flags().StringVar(&to, "to", "", "node (default: the best one)")
	_ = cmd.RegisterFlagCompletionFunc("to", func(cmd *cobra.Command, _ []string, typed string) ([]string, cobra.ShellCompDirective) {
		return c.complete(c.nodeNames)(cmd, nil, typed)
	})
	return cmd
}

func (c *cli) volumeList(ctx context.Context, _ []string) error {
	volumes, err := c.client.Volumes(ctx)
	if err != nil {
		return err
	}
	return printList(c, volumes, "NAME STATE REASON COORDINATOR FILESYSTEM SIZE FREE DEVICE", func(v *api.Volume) []string {
		return []string{v.Name, string(v.State), v.Reason, v.Coordinator, v.FileSystem, size(v.Size), size(v.Free), v.Device}
	})
}

func (c *cli) volumeShow(ctx context.Context, args []string) error {
	v, err := c.client.Volume(ctx, args[0])
	if err != nil {
		return err
	}
	if c.json {
		return c.printJSON(v)
	}
	err = c.fields("Volume", v.Name, "LUN", v.WWID, "Device", v.Device, "File system", v.FileSystem,
		"Size", size(v.Size), "Free", size(v.Free), "Coordinator", v.Coordinator, "Epoch", fmt.Sprint(v.Epoch),
		"Fencing", v.Fencing, "Added", when(v.Created))
	if err != nil {
		return err
	}
	_, _ = fmt.Fprintln(c.out)
	const header = "NODE STATE REASON DIRECT-READ DIRECT-WRITE REDIRECTED-READ REDIRECTED-WRITE METADATA"
	return printList(c, v.Nodes, header, func(n *api.VolumeNode) []string {
		return []string{n.Node, string(n.State), n.Reason, count(n.DirectRead), count(n.DirectWrite),
			count(n.RedirectedRead), count(n.RedirectedWrite), count(n.Metadata)}
	})
}

func (c *cli) volumeRename(ctx context.Context, args []string) error {
	if err := c.client.RenameVolume(ctx, args[0], args[1]); err != nil {
		return err
	}
	return c.done("%s is now %s", args[0], args[1])
}

func (c *cli) volumeRedirect(ctx context.Context, args []string) error {
	on, err := onOff(args[1])
	if err != nil {
		return err
	}
	if err := c.client.RedirectVolume(ctx, args[0], on); err != nil {
		return err
	}
	return c.done("%s: redirected I/O %s", args[0], args[1])
}

func (c *cli) volumeEject(ctx context.Context, args []string) error {
	if err := c.client.EjectVolume(ctx, args[0]); err != nil {
		return err
	}
	return c.done("%s is ejected; its device can be mounted on any Linux", args[0])
}
