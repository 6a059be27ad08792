// Command run judges iSCSI targets by a real Linux guest: it boots a machine from a LUN, and runs the list of commands
// against LIO, tgtd or Lunar. Needs root and QEMU; exits 0 only if Lunar's results are all as wanted.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"lunar/appliance/e2e/guest"
)

type options struct {
	dir, cache, bin, page string
	targets, boot         []string
	only                  *regexp.Regexp
	limit                 time.Duration
	image                 guest.Image // built by run
}

func main() {
	o, err := parse(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "guest test:", err)
		os.Exit(2)
	}
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	if err := o.run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "guest test:", err)
		cancel()
		os.Exit(1) //nolint:gocritic // the only deferred call was just made
	}
}

func parse(args []string) (options, error) {
	var o options
	flags := flag.NewFlagSet("run", flag.ContinueOnError)
	flags.StringVar(&o.dir, "dir", "build/guest", "folder for disks, logs and results")
	flags.StringVar(&o.cache, "cache", "", "folder of built guest images (default DIR/cache)")
	flags.StringVar(&o.bin, "bin", "build/bin", "folder of lunard and lunarctl")
	flags.StringVar(&o.page, "page", "", "Markdown page whose table is written anew")
	flags.DurationVar(&o.limit, "limit", 20*time.Minute, "limit of one target's list, and of one boot scenario")
	targets := flags.String("targets", "LIO,Lunar", "whose list to run: LIO, tgtd, Lunar")
	boot := flags.String("boot", "Lunar", "from whose LUN to boot: tgtd, Lunar")
	only := flags.String("only", "", "run only the commands that match this expression")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	o.targets, o.boot = split(*targets), split(*boot)
	if o.cache == "" {
		o.cache = filepath.Join(o.dir, "cache")
	}
	if *only == "" {
		return o, nil
	}
	var err error
	o.only, err = regexp.Compile(*only)
	return o, err
}

func split(list string) []string {
	return slices.DeleteFunc(strings.Split(list, ","), func(name string) bool { return name == "" })
}

func (o options) run(ctx context.Context) error {
	if err := os.MkdirAll(o.dir, 0o755); err != nil {
		return err
	}
	image, err := guest.BuildImage(ctx, o.cache, os.Stderr)
	if err != nil {
		return err
	}
	o.image = image
	for _, name := range o.boot {
		if err := o.bootFrom(ctx, name); err != nil {
			return fmt.Errorf("boot from %s: %w", name, err)
		}
	}
	for _, name := range o.targets {
		if err := o.judge(ctx, name); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return o.report()
}
