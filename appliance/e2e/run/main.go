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
	dir := flag.String("dir", "build/run", "`folder` for the volume's file and the node's state; emptied first")
	address := flag.String("address", "127.0.0.1", "IP `address` to serve at")
	once := flag.Bool("once", false, "stop after the check")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, *bin, *dir, *address, *once)
	interrupted := ctx.Err() != nil
	stop()
	if err != nil && !interrupted {
		fmt.Fprintln(os.Stderr, "run:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, bin, dir, address string, once bool) (err error) {
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	l, err := lab.Open(dir, bin)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	s := &show{lab: l}
	if err := s.check(ctx, address); err != nil {
		return err
	}
	if once {
		return nil
	}
	return s.serve(ctx)
}
