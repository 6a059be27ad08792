package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"lunar/appliance/console"
	"lunar/appliance/firstboot"
)

// systemConfigure is for lunar-configure.service.
func (c *cli) systemConfigure() *cobra.Command {
	cmd := c.verb("configure", "Apply the name, network, join address and ssh key that this machine was told", 0, c.configure)
	cmd.Hidden = true
	return cmd
}

func (c *cli) configure(context.Context, []string) error {
	r, err := firstboot.Here().Configure()
	for name, why := range r.Problems {
		_, _ = fmt.Fprintf(c.err, "lunarctl: the setting %s is wrong: %s\n", name, why)
	}
	for _, note := range r.Notes {
		_, _ = fmt.Fprintf(c.err, "lunarctl: %s\n", note)
	}
	if err != nil {
		return err
	}
	return c.printOne(r, "this machine is %s", r.Name)
}

// systemConsole is for lunar-console@.service.
func (c *cli) systemConsole() *cobra.Command {
	cmd := c.verb("console", "Show this machine's state on a terminal, with a menu to mend it", 0, func(ctx context.Context, _ []string) error {
		m, err := console.Here(c.client)
		if err != nil {
			return err
		}
		err = console.Run(ctx, m, os.Stdin, os.Stdout)
		if errors.Is(err, console.ErrNoTerminal) {
			return usagef("%v", err)
		}
		return err
	})
	cmd.Hidden = true
	return cmd
}
