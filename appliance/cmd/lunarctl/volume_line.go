package main

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"time"

	systemd "github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"

	"lunar/appliance/api"
)

// offlineLimit bounds taking a volume off line when systemd stops its unit.
const offlineLimit = 60 * time.Second

func (c *cli) volumeOnline() *cobra.Command {
	var notify bool
	cmd := c.verb("online VOLUME [--notify]", "Have this node take part in a volume again", 1, func(ctx context.Context, args []string) error {
		if notify {
			return c.keepOnline(ctx, unescape(args[0]))
		}
		v, err := c.client.OnlineVolume(ctx, args[0])
		if err != nil {
			return err
		}
		return c.printOne(v, "%s is on line here; its coordinator is %s", v.Name, v.Coordinator)
	})
	cmd.Flags().BoolVar(&notify, "notify", false, "stay and tell systemd how the volume is; SIGTERM takes it off line. This is what lunar-volume@.service runs")
	return cmd
}

func (c *cli) volumeOffline() *cobra.Command {
	var force bool
	cmd := c.verb("offline VOLUME [--force]", "End this node's part in a volume, until `online`", 1, func(ctx context.Context, args []string) error {
		if err := c.client.OfflineVolume(ctx, args[0], force); err != nil {
			return err
		}
		return c.done("%s is off line here", args[0])
	})
	cmd.Long = "End this node's part in a volume, also after a restart, until `volume online`: hand it over to another node if this one\n" +
		"coordinates it, take its LUNs off line here, and let its device go. The other nodes keep it."
	cmd.Flags().BoolVar(&force, "force", false, "also while initiators are logged in to its LUNs on this node")
	return cmd
}

// keepOnline is the main process of a lunar-volume@.service. It ends without an error when the volume goes off line by
// other ways than this unit, and when lunard ends: the unit is then inactive, as the volume is.
func (c *cli) keepOnline(ctx context.Context, name string) error {
	if os.Getenv("NOTIFY_SOCKET") == "" {
		return usagef("--notify is for a unit of systemd: systemctl start lunar-volume@%s", name)
	}
	_, err := c.client.OnlineVolume(ctx, name)
	if err == nil {
		err = c.client.FollowVolume(ctx, name, tellSystemd)
	}
	switch {
	case ctx.Err() != nil:
		return c.stopOnline(context.WithoutCancel(ctx), name)
	case api.CodeOf(err) == api.Unreachable:
		say("lunard does not run: %s is off line on this node", name)
		return nil
	case err != nil:
		say("%v", err)
	}
	return err
}

func tellSystemd(l api.VolumeLine) error {
	say("%s", l.String())
	if l.End != "" {
		return nil
	}
	if _, err := systemd.SdNotify(false, systemd.SdNotifyReady); err != nil {
		return fmt.Errorf("notify systemd: %w", err)
	}
	return nil
}

// stopOnline takes the volume off line; a daemon that has stopped has done so already.
func (c *cli) stopOnline(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, offlineLimit)
	defer cancel()
	say("%s goes off line on this node", name)
	err := c.client.OfflineVolume(ctx, name, true)
	if code := api.CodeOf(err); code == api.Unreachable || code == api.NotFound {
		err = nil
	}
	if err != nil {
		say("%s is still on line: %v", name, err)
		return err
	}
	say("%s was taken off line on this node", name)
	return nil
}

// say sets the unit's status text; who does not hear it misses nothing else.
func say(format string, args ...any) {
	_, _ = systemd.SdNotify(false, "STATUS="+fmt.Sprintf(format, args...))
}

var escaped = regexp.MustCompile(`\\x[0-9a-f]{2}`)

// unescape reads the instance's name of a unit, plain or as systemd-escape writes it: a volume's name has no backslash.
func unescape(instance string) string {
	return escaped.ReplaceAllStringFunc(instance, func(code string) string {
		b, err := strconv.ParseUint(code[2:], 16, 8)
		if err != nil {
			return code
		}
		return string(rune(b))
	})
}
