package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"lunar/appliance/api"
)

// completeTimeout keeps a shell responsive when the node is not.
const completeTimeout = 2 * time.Second

// complete offers names that the node tells for the first argument.
func (c *cli) complete(names func(context.Context) ([]string, error)) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		c.client = api.NewClient(c.socket)
		ctx, cancel := context.WithTimeout(cmd.Context(), completeTimeout)
		defer cancel()
		found, err := names(ctx)
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		return found, cobra.ShellCompDirectiveNoFileComp
	}
}

func (c *cli) volumeNames(ctx context.Context) ([]string, error) {
	return named(c.client.Volumes(ctx))(func(v *api.Volume) string { return v.Name })
}

func (c *cli) imageNames(ctx context.Context) ([]string, error) {
	return named(c.client.Images(ctx, ""))(func(i *api.Image) string { return i.Name() })
}

func (c *cli) targetNames(ctx context.Context) ([]string, error) {
	return named(c.client.Targets(ctx))(func(t *api.Target) string { return t.Name })
}

func named[T any](values []T, err error) func(func(*T) string) ([]string, error) {
	return func(name func(*T) string) ([]string, error) {
		names := make([]string, len(values))
		for i := range values {
			names[i] = name(&values[i])
		}
		return names, err
	}
}
