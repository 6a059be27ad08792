package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"syscall"
)

// errFailures makes the exit status; the table has said the rest.
var errFailures = errors.New("there were failures")

func main() {
	bin := flag.String("bin", "build/bin", "`folder` of lunard, lunarctl and gotgt")
	peer := flag.String("peer", "", "test `tgtd` or gotgt instead of lunard")
	match := flag.String("run", ".", "run only the tests that match this `regexp`")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := conformance(ctx, *bin, *peer, *match)
	stop()
	if err != nil {
		if !errors.Is(err, errFailures) {
			fmt.Fprintln(os.Stderr, "conformance:", err)
		}
		os.Exit(1)
	}
}

func conformance(ctx context.Context, bin, peer, match string) (err error) {
	pattern, err := regexp.Compile(match)
	if err != nil {
		return err
	}
	names, err := tests(ctx, pattern)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "lunar-conformance")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // a temporary folder
	t := &targets{bin: bin, peer: peer, dir: dir}
	defer func() { err = errors.Join(err, t.close()) }()
	s := suite{start: t.start, out: os.Stdout}
	tally, err := s.run(ctx, names)
	if err != nil {
		return err
	}
	fmt.Println(tally)
	if tally.Failed > tally.Defects && peer == "" {
		return errFailures
	}
	return nil
}
