package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"lunar/appliance/api"
)

func (c *cli) imageCommand() *cobra.Command {
	list := &cobra.Command{
		Use: "list [VOLUME]", Short: "List the images", Args: cobra.MaximumNArgs(1), DisableFlagsInUseLine: true,
		RunE:              c.runs(c.imageList),
		ValidArgsFunction: c.complete(c.volumeNames),
	}
	show := c.verb("show VOLUME/PATH", "Show an image", 1, c.imageShow)
	rename := c.verb("rename VOLUME/PATH VOLUME/NEWPATH", "Move an image that is not exported inside its volume", 2, c.imageRename)
	clone := c.verb("clone VOLUME/PATH[@SNAPSHOT] VOLUME/NEWPATH", "Make a copy that shares its blocks with the source", 2, c.imageClone)
	resize, remove := c.imageResize(), c.imageDelete()
	for _, cmd := range []*cobra.Command{show, rename, clone, resize, remove} {
		cmd.ValidArgsFunction = c.complete(c.imageNames)
	}
	return noun("image", "Raw files on volumes that back LUNs", c.imageCreate(), list, show, resize, rename, clone, remove,
		c.imageHook(), c.imageImport(), c.imageExport())
}

// sizeFlag adds --size to a command and returns how to read it.
func sizeFlag(cmd *cobra.Command, usage string) func() (int64, error) {
	text := cmd.Flags().String("size", "", usage)
	_ = cmd.MarkFlagRequired("size")
	return func() (int64, error) {
		n, err := api.ParseSize(*text)
		if err != nil {
			return 0, usagef("--size: %v", err)
		}
		return n, nil
	}
}

func (c *cli) imageCreate() *cobra.Command {
	var r api.CreateImage
	var bytes func() (int64, error)
	cmd := c.verb("create VOLUME/PATH --size S [--thick]", "Make an image", 1, func(ctx context.Context, args []string) (err error) {
		if r.Size, err = bytes(); err != nil {
			return err
		}
		r.Image = args[0]
		var i api.Image
		err = c.progress(ctx, r.Image, func() (err error) {
			i, err = c.client.CreateImage(ctx, r)
			return err
		})
		if err != nil {
			return err
		}
		return c.printOne(i, "%s: %s, %s allocated", i.Name(), api.FormatSize(i.Size), api.FormatSize(i.Allocated))
	})
	bytes = sizeFlag(cmd, "size, such as 10GiB")
	cmd.Flags().BoolVar(&r.Thick, "thick", false, "allocate all of it now")
	return cmd
}

func (c *cli) imageList(ctx context.Context, args []string) error {
	images, err := c.client.Images(ctx, strings.Join(args, ""))
	if err != nil {
		return err
	}
	return printList(c, images, "IMAGE SIZE ALLOCATED MAPPED", func(i *api.Image) []string {
		return []string{i.Name(), api.FormatSize(i.Size), api.FormatSize(i.Allocated), mappings(i.Mapped)}
	})
}

func mappings(m []api.Mapping) string {
	parts := make([]string, len(m))
	for i := range m {
		parts[i] = fmt.Sprintf("%s/%d", m[i].Target, m[i].LUN)
	}
	return strings.Join(parts, ",")
}

func (c *cli) imageShow(ctx context.Context, args []string) error {
	i, err := c.client.Image(ctx, args[0])
	if err != nil {
		return err
	}
	if c.json {
		return c.printJSON(i)
	}
	return c.fields("Image", i.Name(), "Size", fmt.Sprintf("%s (%d bytes)", api.FormatSize(i.Size), i.Size),
		"Allocated", api.FormatSize(i.Allocated), "Mapped", mappings(i.Mapped), "Modified", when(i.Modified))
}

func (c *cli) imageResize() *cobra.Command {
	var r api.ChangeImage
	var bytes func() (int64, error)
	cmd := c.verb("resize VOLUME/PATH --size S [--force]", "Grow or shrink an image", 1, func(ctx context.Context, args []string) (err error) {
		if r.Size, err = bytes(); err != nil {
			return err
		}
		if r.Size == 0 {
			return usagef("--size: an image cannot be empty")
		}
		i, err := c.client.ChangeImage(ctx, args[0], r)
		if err != nil {
			return err
		}
		return c.printOne(i, "%s: %s", i.Name(), api.FormatSize(i.Size))
	})
	bytes = sizeFlag(cmd, "new size, such as 20GiB")
	cmd.Flags().BoolVar(&r.Force, "force", false, "shrink below its data: what lies beyond the new end is lost")
	return cmd
}

func (c *cli) imageRename(ctx context.Context, args []string) error {
	i, err := c.client.ChangeImage(ctx, args[0], api.ChangeImage{Name: args[1]})
	if err != nil {
		return err
	}
	return c.printOne(i, "%s is now %s", args[0], i.Name())
}

func (c *cli) imageClone(ctx context.Context, args []string) error {
	i, err := c.client.CreateImage(ctx, api.CreateImage{From: args[0], Image: args[1]})
	if err != nil {
		return err
	}
	return c.printOne(i, "%s: a clone of %s, %s", i.Name(), args[0], api.FormatSize(i.Size))
}

func (c *cli) imageDelete() *cobra.Command {
	var force bool
	cmd := c.verb("delete VOLUME/PATH [--force]", "Delete an image", 1, func(ctx context.Context, args []string) error {
		if err := c.client.DeleteImage(ctx, args[0], force); err != nil {
			return err
		}
		return c.done("%s is deleted", args[0])
	})
	cmd.Flags().BoolVar(&force, "force", false, "delete an image that holds data: it is lost")
	return cmd
}
