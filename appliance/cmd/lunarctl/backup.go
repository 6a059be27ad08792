package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"lunar/appliance/api"
)

func (c *cli) backupCommand() *cobra.Command {
	begin := c.backupBegin()
	end := c.verb("end VOLUME|ID", "End a backup: changes of the volume go on", 1, func(ctx context.Context, args []string) error {
		if err := c.client.EndBackup(ctx, args[0]); err != nil {
			return err
		}
		return c.done("the backup of %s has ended", args[0])
	})
	for _, cmd := range []*cobra.Command{begin, end} {
		cmd.ValidArgsFunction = c.complete(c.volumeNames)
	}
	return noun("backup", "Hold a volume for a backup tool, which reads its images by NBD",
		begin, end, c.verb("list", "List the backups that are under way", 0, c.backupList))
}

// backupFlags are those of begin that are not in the request as they are.
type backupFlags struct {
	limit, wait time.Duration
	keys        string
}

func (c *cli) backupBegin() *cobra.Command {
	var r api.BeginBackup
	var f backupFlags
	cmd := c.verb("begin VOLUME [--image V/PATH]... [--node N] [--since SNAPSHOT] [--snapshot S] [--attached] [--limit D] [--wait D] [--redirect] [--no-hooks] [--listen ADDRESS:PORT --keys DIR]",
		"Serve a volume's images as they are at one instant", 1, func(ctx context.Context, args []string) error {
			if (r.Listen == "") != (f.keys == "") {
				return usagef("--listen and --keys go together")
			}
			wait := f.wait.Nanoseconds()
			r.Volume, r.LimitNS, r.WaitNS = args[0], f.limit.Nanoseconds(), &wait
			return c.beginBackup(ctx, r, f.keys)
		})
	cmd.Long = `Take a snapshot of a volume's images at one instant, and serve it read-only by NBD: over a unix socket of the
node, and with --listen by TLS, for nbdcopy, qemu-img and other tools. The node coordinates the volume from then on.

Machines go on meanwhile. Changes of images by people (create, delete, rename, resize, clone, import, snapshots) wait,
and fail when --wait is over. All that ends with 'lunarctl backup end', at --limit, with the node, and with --attached
when this command does.

With --snapshot the snapshot stays under that name when the backup is ended by 'lunarctl backup end', for the next one to
be taken --since it: the metadata context qemu:dirty-bitmap:SNAPSHOT tells what has changed.`
	fl := cmd.Flags()
	fl.StringArrayVar(&r.Images, "image", nil, "VOLUME/PATH, may be given again; default: all images")
	fl.StringVar(&r.Node, "node", "", "node that coordinates the volume and serves (default: the one that is asked)")
	fl.StringVar(&r.Since, "since", "", "snapshot of the last backup: tell what has changed since")
	fl.StringVar(&r.Snapshot, "snapshot", "", "keep the snapshot under this name")
	fl.BoolVar(&r.Attached, "attached", false, "stay in the foreground: the backup ends with this command")
	fl.DurationVar(&f.limit, "limit", api.BackupLimit, "end the backup then, whatever happens")
	fl.DurationVar(&f.wait, "wait", api.BackupWait, "how long changes of images wait before they fail; 0: they fail at once")
	fl.BoolVar(&r.Redirect, "redirect", false, "send all nodes' I/O through the coordinator meanwhile")
	fl.BoolVar(&r.NoHooks, "no-hooks", false, "run no hooks of the images: applications are not stopped for the snapshot")
	fl.StringVar(&r.Listen, "listen", "", "serve by TLS there too")
	fl.StringVar(&f.keys, "keys", "", "with --listen: folder for ca-cert.pem, client-cert.pem and client-key.pem")
	return cmd
}

func (c *cli) beginBackup(ctx context.Context, r api.BeginBackup, keys string) error {
	begun := func(b api.Backup) error {
		if err := saveKeys(keys, b.Keys); err != nil {
			return err
		}
		b.Keys = nil
		for _, w := range b.Warnings {
			c.say("%s", w)
		}
		return c.showBackup(b, keys)
	}
	if !r.Attached {
		b, err := c.client.BeginBackup(ctx, r)
		if err != nil {
			return err
		}
		if err := begun(b); err != nil {
			return errors.Join(err, c.client.EndBackup(ctx, b.ID))
		}
		return nil
	}
	reason, err := c.client.AttachedBackup(ctx, r, begun)
	if err == nil {
		c.say("the backup has ended: %s", reason)
	}
	return err
}

// saveKeys writes what lets a tool in by TLS, under the names that libnbd and QEMU want.
func saveKeys(dir string, k *api.BackupKeys) error {
	if dir == "" || k == nil {
		return nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("--keys: %w", err)
	}
	for name, text := range map[string]string{"ca-cert.pem": k.CA, "client-cert.pem": k.Cert, "client-key.pem": k.Key} {
		at := filepath.Join(dir, name)
		if err := os.Remove(at); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("--keys: %w", err)
		}
		if err := os.WriteFile(at, []byte(text), 0o600); err != nil {
			return fmt.Errorf("--keys: %w", err)
		}
	}
	return nil
}

func (c *cli) showBackup(b api.Backup, keys string) error {
	if c.json {
		return c.printJSON(b)
	}
	err := c.fields("Backup", b.ID, "Volume", b.Volume, "Node", b.Node, "Snapshot", b.Snapshot, "Since", b.Since,
		"Until", when(b.Until), "I/O held", held(b.HoldNS).String(), "Changes wait", time.Duration(b.WaitNS).String())
	if err != nil {
		return err
	}
	_, _ = fmt.Fprintln(c.out)
	return printList(c, b.Images, "IMAGE SIZE DATA CHANGED URI", func(i *api.BackupImage) []string {
		uri := i.URI
		if i.TLSURI != "" && keys != "" {
			uri = i.TLSURI + "?tls-certificates=" + keys
		}
		return []string{i.Image, api.FormatSize(i.Size), api.FormatSize(i.Data), changed(i), uri}
	})
}

func changed(i *api.BackupImage) string {
	if i.Changed == nil {
		return "-"
	}
	return api.FormatSize(*i.Changed)
}

func (c *cli) backupList(ctx context.Context, _ []string) error {
	all, err := c.client.Backups(ctx)
	if err != nil {
		return err
	}
	return printList(c, all, "VOLUME ID NODE BEGUN UNTIL IMAGES DATA CHANGED READ SNAPSHOT SINCE", func(b *api.Backup) []string {
		var data, changed, read int64
		for i := range b.Images {
			data, read = data+b.Images[i].Data, read+b.Images[i].Read
			if n := b.Images[i].Changed; n != nil {
				changed += *n
			}
		}
		row := []string{b.Volume, b.ID, b.Node, when(b.Begun), when(b.Until), fmt.Sprint(len(b.Images)), api.FormatSize(data), api.FormatSize(changed),
			api.FormatSize(read), b.Snapshot, b.Since}
		if b.Since == "" {
			row[7] = "-"
		}
		return row
	})
}
