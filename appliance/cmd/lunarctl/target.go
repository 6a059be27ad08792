package main

import (
	"cmp"
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"lunar/appliance/api"
)

func (c *cli) targetCommand() *cobra.Command {
	unmap := c.verb("unmap IQN LUN", "Take a LUN out of a target", 2, c.targetUnmap)
	remove, mapping, allow, chap := c.targetDelete(), c.targetMap(), c.targetAllow(), c.targetCHAP()
	for _, cmd := range []*cobra.Command{unmap, remove, mapping, allow, chap} {
		cmd.ValidArgsFunction = c.complete(c.targetNames)
	}
	return noun("target", "iSCSI targets and their LUNs",
		c.verb("create IQN", "Make a target", 1, c.targetCreate), c.verb("list", "List the targets and their LUNs", 0, c.targetList),
		remove, mapping, unmap, allow, chap)
}

func (c *cli) targetCreate(ctx context.Context, args []string) error {
	t, err := c.client.CreateTarget(ctx, args[0])
	if err != nil {
		return err
	}
	return c.printOne(t, "%s is offered, without LUNs", t.Name)
}

// targetRow is a LUN with its target, or a target without LUNs.
type targetRow struct {
	*api.Target
	lun *api.LUN
}

func (c *cli) targetList(ctx context.Context, _ []string) error {
	targets, err := c.client.Targets(ctx)
	if err != nil || c.json {
		return firstError(err, func() error { return printList[api.Target](c, targets, "", nil) })
	}
	var rows []targetRow
	for i := range targets {
		t := &targets[i]
		for j := range t.LUNs {
			rows = append(rows, targetRow{t, &t.LUNs[j]})
		}
		if len(t.LUNs) == 0 {
			rows = append(rows, targetRow{t, &api.LUN{State: t.Reason}})
		}
	}
	return printList(c, rows, "TARGET LUN IMAGE SIZE STATE REASON ALLOW CHAP SESSIONS", targetCells)
}

// firstError returns err, or what next returns if there is none.
func firstError(err error, next func() error) error {
	if err != nil {
		return err
	}
	return next()
}

func targetCells(r *targetRow) []string {
	number := ""
	if r.lun.Image != "" {
		number = strconv.Itoa(int(r.lun.Number))
	}
	allow := "all"
	if r.Restricted {
		allow = cmp.Or(strings.Join(r.Allow, ","), "none")
	}
	chap := "no"
	if r.CHAP != nil {
		chap = r.CHAP.User
	}
	state := r.lun.State
	if r.lun.ReadOnly {
		state += ", read-only"
	}
	return []string{r.Name, number, r.lun.Image, size(r.lun.Size), state, r.lun.Reason, allow, chap, strconv.Itoa(r.Sessions)}
}

func (c *cli) targetDelete() *cobra.Command {
	var force bool
	cmd := c.verb("delete IQN [--force]", "Delete a target; its images stay", 1, func(ctx context.Context, args []string) error {
		if err := c.client.DeleteTarget(ctx, args[0], force); err != nil {
			return err
		}
		return c.done("%s is deleted", args[0])
	})
	cmd.Flags().BoolVar(&force, "force", false, "also with LUNs mapped or initiators logged in")
	return cmd
}

func (c *cli) targetMap() *cobra.Command {
	var number int
	cmd := c.verb("map IQN VOLUME/PATH[@SNAPSHOT] [--lun N]", "Export an image as a LUN, of a snapshot a read-only one", 2, func(ctx context.Context, args []string) error {
		r := api.Map{Image: args[1]}
		if number >= 0 {
			if number > 65535 {
				return usagef("--lun: %d is no LUN", number)
			}
			lun := uint16(number)
			r.LUN = &lun
		}
		lun, err := c.client.Map(ctx, args[0], r)
		if err != nil {
			return err
		}
		note := ""
		if lun.ReadOnly {
			note = ", read-only"
		}
		return c.printOne(lun, "%s: LUN %d is %s%s, naa.%s", args[0], lun.Number, lun.Image, note, lun.NAA)
	})
	cmd.Flags().IntVar(&number, "lun", -1, "number (default: the lowest free one)")
	return cmd
}

func (c *cli) targetUnmap(ctx context.Context, args []string) error {
	n, err := strconv.ParseUint(args[1], 10, 16)
	if err != nil {
		return usagef("%q is no LUN", args[1])
	}
	if err := c.client.Unmap(ctx, args[0], uint16(n)); err != nil {
		return err
	}
	return c.done("%s: LUN %d is unmapped", args[0], n)
}

func (c *cli) targetAllow() *cobra.Command {
	var remove bool
	cmd := c.verb("allow IQN INITIATOR-IQN|all [--remove]", "Let an initiator in; with the first one all others are out", 2,
		func(ctx context.Context, args []string) error {
			if remove {
				return firstError(c.client.Disallow(ctx, args[0], args[1]), func() error {
					return c.done("%s: %s is off the list", args[0], args[1])
				})
			}
			return firstError(c.client.Allow(ctx, args[0], args[1]), func() error {
				return c.done("%s: %s may log in", args[0], args[1])
			})
		})
	cmd.Flags().BoolVar(&remove, "remove", false, "take the initiator off the list")
	return cmd
}

func (c *cli) targetCHAP() *cobra.Command {
	var r api.SetCHAP
	cmd := c.verb("chap IQN --user U [--mutual] | --remove", "Set CHAP credentials; the secret comes on standard input", 1,
		func(ctx context.Context, args []string) (err error) {
			if r.Remove == (r.User != "") {
				return usagef("give either --user or --remove")
			}
			if !r.Remove {
				if r.Secret, err = c.readSecret(fmt.Sprintf("CHAP secret for %s: ", r.User)); err != nil {
					return err
				}
			}
			if err := c.client.SetCHAP(ctx, args[0], r); err != nil {
				return err
			}
			if r.Remove {
				return c.done("%s: CHAP is removed", args[0])
			}
			return c.done("%s: CHAP is set; it counts from the next login", args[0])
		})
	cmd.Flags().StringVar(&r.User, "user", "", "user name")
	cmd.Flags().BoolVar(&r.Mutual, "mutual", false, "the credentials by which the target proves itself")
	cmd.Flags().BoolVar(&r.Remove, "remove", false, "ask for no CHAP any more")
	return cmd
}
