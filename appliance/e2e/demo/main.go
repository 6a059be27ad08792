package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"lunar/appliance/e2e/lab"
)

func main() {
	bin := flag.String("bin", "build/bin", "`folder` of lunard and lunarctl")
	dir := flag.String("dir", "build/demo", "`folder` for the nodes' state and logs; emptied first")
	growth := flag.Bool("growth", false, "measure memory and CPU at rest with many images instead")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, *bin, *dir, *growth)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, bin, dir string, growth bool) (err error) {
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	l, err := lab.Open(dir, bin)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	if growth {
		return grow(ctx, l)
	}
	s := &show{}
	if err := s.start(ctx, l); err != nil {
		return err
	}
	return s.run(ctx)
}
