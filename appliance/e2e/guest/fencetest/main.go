// Command fencetest proves fencing with real reservations: a guest with Linux's target and initiators, in which one
// initiator of a LUN fences the other under hostile writes. Needs root and QEMU; exits 0 only if all held.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"lunar/appliance/e2e/guest"
	"lunar/appliance/e2e/lab"
)

func main() {
	dir := flag.String("dir", "build/guest", "folder for disks and logs")
	bin := flag.String("bin", "build/bin", "folder of lunard, lunarctl and fenceprobe")
	targets := flag.String("targets", "LIO,Lunar", "whose LUN: LIO, Lunar")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *dir, *bin, strings.Split(*targets, ",")); err != nil {
		fmt.Fprintln(os.Stderr, "fence test:", err)
		stop()
		os.Exit(1) //nolint:gocritic // the only deferred call was just made
	}
}

func run(ctx context.Context, dir, bin string, targets []string) error {
	dir, err := filepath.Abs(dir) // QEMU runs in a folder of its own
	if err != nil {
		return err
	}
	program := filepath.Join(bin, "fenceprobe")
	if _, err := exec.LookPath(program); err != nil {
		return fmt.Errorf("%w: `make fence-test` builds it", err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	image, err := guest.BuildImage(ctx, filepath.Join(dir, "cache"), os.Stderr)
	if err != nil {
		return err
	}
	for _, target := range targets {
		fmt.Printf("== reservations of %s\n", target)
		if err := against(ctx, filepath.Join(dir, "fence-"+target), bin, target, program, image); err != nil {
			return fmt.Errorf("%s: %w", target, err)
		}
	}
	return nil
}

// limit bounds one target's run.
const limit = 12 * time.Minute

func against(ctx context.Context, dir, bin, target, program string, image guest.Image) (err error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	l, err := lab.Open(dir, bin)
	if err != nil {
		return err
	}
	defer func() {
		if err = errors.Join(err, l.Close()); err == nil {
			err = os.RemoveAll(dir)
		}
	}()
	s := guest.Scenario{Image: image, Lab: l, JudgeOptions: guest.JudgeOptions{Log: os.Stdout}}
	var output string
	switch target {
	case "LIO":
		output, err = s.FenceLIO(ctx, program)
	case "Lunar":
		var t guest.Target
		if t, err = guest.StartLunar(ctx, l, guest.LUNBytes, guest.LUNBytes); err != nil {
			return err
		}
		defer t.Close()
		output, err = s.FenceHost(ctx, program, t)
	default:
		return fmt.Errorf("unknown target %q: give LIO or Lunar", target)
	}
	fmt.Println(strings.TrimSpace(output))
	return err
}
