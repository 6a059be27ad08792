// Command fenceprobe runs in a guest and fences one initiator of a LUN from another, under hostile writes, with
// the code that a node uses: fenceprobe VICTIM-DEVICE FENCER-DEVICE, both of one LUN whose first 16 MiB are
// overwritten. It exits 0 only if everything held, and prints what it saw.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"
)

func main() {
	if len(os.Args) == 3 && os.Args[1] == "hostile" {
		hostile(os.Args[2])
		return
	}
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: fenceprobe VICTIM-DEVICE FENCER-DEVICE")
		os.Exit(2)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 8*time.Minute)
	err := run(ctx, os.Args[1], os.Args[2])
	cancel()
	if err != nil {
		fmt.Println("FAILED:", err)
		os.Exit(1)
	}
	fmt.Println("all held")
}

func run(ctx context.Context, victim, own string) error {
	p, err := open(ctx, victim, own)
	if err != nil {
		return err
	}
	steps := []struct {
		name string
		do   func(context.Context) error
	}{
		{"both nodes register", p.admit},
		{"hostile writes change the LUN before the fencing", p.sensitive},
		{"32 hostile writers, fenced, ten times", p.rounds},
		{"the fenced incarnation stays out", p.staysOut},
		{"a retried preempt conflicts, READ KEYS tells", p.retried},
		{"a key that nobody admitted is swept out", p.sweep},
		{"the next incarnation writes again", p.returns},
	}
	for _, s := range steps {
		if err := s.do(ctx); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		fmt.Println("ok:", s.name)
	}
	return errors.Join(p.victim.Leave(ctx), p.fencer.Eject(ctx))
}
