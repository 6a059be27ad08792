package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"lunar/appliance/api"
	"lunar/appliance/diskfile"
)

// formatFlag adds --format to a command and returns how to read it; "" is none given.
func formatFlag(cmd *cobra.Command, usage string) func() (diskfile.Format, error) {
	text := cmd.Flags().String("format", "", usage+": "+diskfile.Formats)
	return func() (diskfile.Format, error) {
		if *text == "" {
			return "", nil
		}
		f, err := diskfile.ParseFormat(*text)
		if err != nil {
			return "", usagef("--format: %v", err)
		}
		return f, nil
	}
}

func (c *cli) imageImport() *cobra.Command {
	var r api.Transfer
	var format func() (diskfile.Format, error)
	cmd := c.verb("import FILE VOLUME/PATH [--format F] [--thick] [--force]", "Make an image of a file of this machine", 2,
		func(ctx context.Context, args []string) error {
			as, err := format()
			if err != nil {
				return err
			}
			r.Image = args[1]
			return c.importFile(ctx, args[0], as, r)
		})
	cmd.Long = `Make an image of a raw, qcow2, VHD, VHDX or VMDK file of this machine, or of a disk.

The content tells the format, and the command says what it found; --format overrides it. Give --format raw for a raw
file of a guest that you do not trust: what it wrote to its first sectors can look like another format. A file that
names other files (backing files, parents, extents) is refused. The file is checked first. The image appears when it
is whole; holes stay holes, unless --thick allocates all of it.`
	format = formatFlag(cmd, "the file's format, whatever its content says")
	cmd.Flags().BoolVar(&r.Thick, "thick", false, "allocate all of it now")
	cmd.Flags().BoolVar(&r.Force, "force", false, "replace an image that is there: its data is lost")
	return cmd
}

// say tells people something that is not the result.
func (c *cli) say(format string, args ...any) {
	_, _ = fmt.Fprintf(c.err, "lunarctl: "+format+"\n", args...)
}

func (c *cli) importFile(ctx context.Context, path string, as diskfile.Format, r api.Transfer) error {
	if _, _, err := api.SplitImage(r.Image); err != nil {
		return err
	}
	source, err := diskfile.Inspect(path, as)
	if err != nil {
		return err
	}
	tool, err := diskfile.Find()
	if err != nil {
		return err
	}
	if as == "" {
		c.say("%s is read as %s, by its content; --format overrides that", path, source.Format)
	}
	if err := tool.Check(ctx, source); err != nil {
		return err
	}
	size, err := tool.Measure(ctx, source)
	if err != nil {
		return err
	}
	r.Size, r.Data = size.Virtual, size.Data
	began := time.Now()
	image, err := c.transfer(ctx, r, func(ctx context.Context, p api.TransferPoint) error {
		return tool.Import(ctx, source, diskfile.Endpoint{Socket: p.Socket, Name: p.Name})
	})
	if err != nil {
		return err
	}
	return c.printOne(image, "%s: %s, %s allocated, from %s (%s) in %v", image.Name(), api.FormatSize(image.Size),
		api.FormatSize(image.Allocated), path, source.Format, time.Since(began).Round(time.Millisecond))
}

// transfer shows the node's progress meanwhile.
func (c *cli) transfer(ctx context.Context, r api.Transfer, use func(context.Context, api.TransferPoint) error) (image api.Image, err error) {
	err = c.progress(ctx, r.Image, func() (err error) {
		image, err = c.client.Transfer(ctx, r, use)
		return err
	})
	return image, err
}

func (c *cli) imageExport() *cobra.Command {
	var force bool
	var format func() (diskfile.Format, error)
	cmd := c.verb("export VOLUME/PATH FILE [--format F] [--force]", "Copy an image to a new file of this machine", 2,
		func(ctx context.Context, args []string) error {
			as, err := format()
			if err != nil {
				return err
			}
			return c.exportFile(ctx, args[0], args[1], as, force)
		})
	cmd.Long = `Copy an image to a new raw, qcow2, VHD, VHDX or VMDK file of this machine, with its holes.

The ending of FILE tells the format, or --format. On XFS the file shows the image as it was at one moment, also while
initiators write to it. The file appears when it is whole.`
	cmd.ValidArgsFunction = c.complete(c.imageNames)
	format = formatFlag(cmd, "the file's format")
	cmd.Flags().BoolVar(&force, "force", false, "replace a file that is there")
	return cmd
}

func (c *cli) exportFile(ctx context.Context, name, path string, as diskfile.Format, force bool) error {
	if as == "" {
		as = diskfile.ByName(path)
	}
	if as == "" {
		return usagef("%s: its ending names no format; give --format: %s", path, diskfile.Formats)
	}
	tool, err := diskfile.Find()
	if err != nil {
		return err
	}
	if err := diskfile.Absent(path, force); err != nil {
		return err
	}
	began, taken := time.Now(), time.Time{}
	image, err := c.transfer(ctx, api.Transfer{Image: name, Export: true}, func(ctx context.Context, p api.TransferPoint) error {
		taken = p.Taken
		return tool.Export(ctx, diskfile.Endpoint{Socket: p.Socket, Name: p.Name}, path, as, force)
	})
	if err != nil {
		return err
	}
	return c.printOne(image, "%s: %s of %s as it was at %s (%s), in %v", path, api.FormatSize(image.Size), name,
		when(taken), as, time.Since(began).Round(time.Millisecond))
}
